//! The certificate that new connections get, and files that are read anew while others live on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, oneshot};

use crate::identity::{self, Certificate, Shown};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The pair that is in force.
#[derive(Debug)]
pub struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Current {
    /// This pair, for now.
    ///
    /// # Errors
    /// When key and certificate do not belong together.
    pub fn new(certificate: Certificate) -> Result<Self, rustls::Error> {
        certified(certificate).map(|pair| Self(ArcSwap::from_pointee(pair)))
    }
}

impl Current {
    /// The certificate, then those that signed it.
    #[must_use]
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.0.load().cert.clone()
    }

    /// When it ends, Unix seconds; `None` where that can't be read.
    #[must_use]
    pub fn ends(&self) -> Option<i64> {
        let pair = self.0.load();
        let shown = Shown::of(pair.cert.first()?)?;
        Some(shown.ends)
    }
}

fn certified(certificate: Certificate) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(
        certificate.chain,
        certificate.key,
        &ring::default_provider(),
    )
}

/// Where the pair comes from.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Pair {
    /// Takes the pair over when both are there and belong together; otherwise the old one stays.
    pub fn reload(&self, current: &Current) {
        match self.load_into(current) {
            Ok(sha256) => tracing::info!(sha256, "new connections get this certificate"),
            Err(reason) => {
                tracing::error!(
                    reason,
                    "the certificate was not reloaded, the old one stays"
                );
            }
        }
    }

    fn load_into(&self, current: &Current) -> Result<String, String> {
        let pair = identity::load_certificate(&self.certificate, &self.key);
        let pair = pair.map_err(|error| error.to_string())?;
        let fingerprint = pair.fingerprint();
        let pair = certified(pair).map_err(|error| error.to_string())?;
        current.0.store(Arc::new(pair));
        Ok(fingerprint)
    }
}

/// Asks for one thing to be read anew.
#[derive(Clone, Debug)]
pub struct Trigger(mpsc::Sender<oneshot::Sender<()>>);

/// Where that is asked for.
#[derive(Debug)]
pub struct Pulls(mpsc::Receiver<oneshot::Sender<()>>);

/// The two ends of one pull at a time.
#[must_use]
pub fn trigger() -> (Trigger, Pulls) {
    let (trigger, pulls) = mpsc::channel(1);
    (Trigger(trigger), Pulls(pulls))
}

impl Trigger {
    /// Returns when it has been read, whatever came of that.
    pub async fn pull(&self) {
        let (done, read) = oneshot::channel();
        if self.0.send(done).await.is_ok() {
            // Whoever is done drops it.
            drop(read.await);
        }
    }
}

/// Calls `reload` when one of the files has changed, and whenever somebody `pulls`.
///
/// Two files can't be replaced at once, so a change counts when two looks in a row find the same.
pub async fn watch(files: Vec<PathBuf>, mut pulls: Pulls, reload: impl Fn()) {
    let mut loaded = stamps(&files);
    let mut seen = loaded.clone();
    loop {
        let pull = tokio::select! {
            Some(pull) = pulls.0.recv() => Some(pull),
            () = tokio::time::sleep(LOOK) => None,
        };
        let now = stamps(&files);
        let at_rest = std::mem::replace(&mut seen, now.clone()) == now;
        if pull.is_some() || (at_rest && now != loaded) {
            loaded = now;
            reload();
        }
        drop(pull);
    }
}

/// When each was last changed, as far as that can be told.
fn stamps(files: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    };
    files.iter().map(stamp).collect()
}
