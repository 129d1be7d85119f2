//! The certificate that new connections get, and files that are read anew while others live on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::Signal;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::identity::{self, Certificate};

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
    /// When the pair that is in force ends, Unix seconds; `None` for a certificate that nobody can read.
    #[must_use]
    pub fn ends(&self) -> Option<i64> {
        let pair = self.0.load();
        let (_, certificate) = X509Certificate::from_der(pair.cert.first()?).ok()?;
        Some(certificate.validity().not_after.timestamp())
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

/// Calls `reload` when one of the files has changed, and whenever `hangup` says so.
///
/// Two files can't be replaced at once, so a change counts when two looks in a row find the same.
pub async fn watch(files: Vec<PathBuf>, mut hangup: Signal, reload: impl Fn()) {
    let mut loaded = stamps(&files);
    let mut seen = loaded.clone();
    loop {
        let asked = tokio::select! {
            signal = hangup.recv() => signal.is_some(),
            () = tokio::time::sleep(LOOK) => false,
        };
        let now = stamps(&files);
        let at_rest = std::mem::replace(&mut seen, now.clone()) == now;
        if asked || (at_rest && now != loaded) {
            loaded = now;
            reload();
        }
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
