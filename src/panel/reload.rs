//! The certificate that new connections get, and its exchange while others live on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::signal::unix::Signal;

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

fn certified(certificate: Certificate) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(
        certificate.chain,
        certificate.key,
        &ring::default_provider(),
    )
}

/// Where the pair comes from.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Files {
    /// When each was last changed, as far as that can be told.
    fn stamps(&self) -> [Option<(SystemTime, u64)>; 2] {
        [&self.certificate, &self.key].map(|path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.modified().ok()?, file.len()))
        })
    }

    /// Takes the pair over when both are there and belong together; otherwise the old one stays.
    fn load_into(&self, current: &Current) -> Result<String, String> {
        let pair = identity::load_certificate(&self.certificate, &self.key);
        let pair = pair.map_err(|error| error.to_string())?;
        let fingerprint = pair.fingerprint();
        current.0.store(Arc::new(
            certified(pair).map_err(|error| error.to_string())?,
        ));
        Ok(fingerprint)
    }

    /// Reloads when the files change, once they have come to rest, and whenever `hangup` says so.
    pub async fn watch(self, current: Arc<Current>, mut hangup: Signal) {
        let mut loaded = self.stamps();
        let mut seen = loaded;
        loop {
            let asked = tokio::select! {
                signal = hangup.recv() => signal.is_some(),
                () = tokio::time::sleep(LOOK) => false,
            };
            let stamps = self.stamps();
            // Two files can't be replaced at once: wait until a look finds what the last one found.
            let at_rest = std::mem::replace(&mut seen, stamps) == stamps;
            if !asked && (!at_rest || stamps == loaded) {
                continue;
            }
            loaded = stamps;
            match self.load_into(&current) {
                Ok(sha256) => tracing::info!(sha256, "new connections get this certificate"),
                Err(reason) => tracing::error!(
                    reason,
                    "the certificate was not reloaded, the old one stays"
                ),
            }
        }
    }
}
