//! The certificate: the operator's, or one that the node signs itself.
//!
//! Panels take the certificate as its own authority and check that it names the address they use,
//! so a generated one names every address of this machine.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use super::Error;
use crate::disk;

/// As long as the installers of this field make theirs.
const VALID: Duration = Duration::days(3650);
/// A clock of the panel's that is behind must not refuse it.
const BACKDATED: Duration = Duration::days(1);

/// A certificate with its key, as TLS takes them.
pub struct Certificate {
    /// The certificate, then those that signed it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Where it is.
    pub path: PathBuf,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    fn certified(&self) -> Result<CertifiedKey, rustls::Error> {
        let (chain, key) = (self.chain.clone(), self.key.clone_key());
        CertifiedKey::from_der(chain, key, &ring::default_provider())
    }

    fn belongs_together(&self) -> bool {
        self.certified().is_ok()
    }

    /// SHA-256 over the certificate, as browsers and openssl show it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.chain.first().map(fingerprint).unwrap_or_default()
    }
}

/// SHA-256 over a certificate, as browsers and openssl show it.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let pairs: Vec<String> = Sha256::digest(certificate)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    pairs.join(":")
}

/// The pair at these places; one is made when neither is there.
///
/// # Errors
/// When only one is there, one can't be read or is not what it should be, or none can be made.
pub fn certificate(
    certificate: &Path,
    key: &Path,
    extra_names: &[String],
) -> Result<Certificate, Error> {
    match (exists(certificate)?, exists(key)?) {
        (true, true) => {}
        (false, false) => generate(certificate, key, extra_names)?,
        (true, false) => {
            return Err(Error::HalfAPair {
                there: certificate.to_owned(),
                missing: key.to_owned(),
            });
        }
        (false, true) => {
            return Err(Error::HalfAPair {
                there: key.to_owned(),
                missing: certificate.to_owned(),
            });
        }
    }
    let pair = load_certificate(certificate, key)?;
    if !pair.belongs_together()
        && let Ok(before) = load_certificate(&beside(certificate), &beside(key))
        && before.belongs_together()
    {
        tracing::error!(certificate = %certificate.display(), "certificate and key do not belong together, so the pair of before is used; give the node another one");
        return Ok(before);
    }
    Ok(pair)
}

/// The pair at these places, which has to be there.
///
/// # Errors
/// When one can't be read or is not what it should be.
pub fn load_certificate(certificate: &Path, key: &Path) -> Result<Certificate, Error> {
    let unusable = |path: &Path, reason: String| Error::Unusable {
        path: path.to_owned(),
        reason,
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(certificate, format!("not a PEM certificate ({error})")))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "holds no certificate".to_owned()));
    }
    // The parser's words are left out: they could repeat a part of the key.
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|_| unusable(key, "not a PEM private key without passphrase".to_owned()))?;
    Ok(Certificate {
        chain,
        key,
        path: certificate.to_owned(),
    })
}

/// Another self-signed pair in the place of the one at these places, which stays beside it.
///
/// # Errors
/// When none can be made or written.
pub fn renew_certificate(
    certificate: &Path,
    key: &Path,
    extra_names: &[String],
) -> Result<Certificate, Error> {
    keep_beside(certificate)?;
    keep_beside(key)?;
    generate(certificate, key, extra_names)?;
    load_certificate(certificate, key)
}

/// This pair in the place of the one at these places, which stays beside it.
///
/// # Errors
/// When it is no pair, or can't be written; nothing changes in the first case.
pub fn import_certificate(
    certificate: &Path,
    key: &Path,
    (certificate_pem, key_pem): (&str, &str),
) -> Result<Certificate, Error> {
    let trial = Certificate {
        chain: CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Error::NoPair(format!("the certificate is no PEM ({error})")))?,
        key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| {
            Error::NoPair("the key is no PEM private key without passphrase".to_owned())
        })?,
        path: certificate.to_owned(),
    };
    if trial.chain.is_empty() {
        return Err(Error::NoPair("there is no certificate in it".to_owned()));
    }
    trial
        .certified()
        .map_err(|error| Error::NoPair(error.to_string()))?;
    keep_beside(certificate)?;
    keep_beside(key)?;
    write(key, key_pem, disk::write_private)?;
    write(certificate, certificate_pem, disk::write_public)?;
    Ok(trial)
}

/// The last one is kept.
fn keep_beside(path: &Path) -> Result<(), Error> {
    let beside = beside(path);
    match std::fs::copy(path, &beside) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io {
            path: beside,
            source,
        }),
        _ => Ok(()),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".old");
    beside.into()
}

fn write(path: &Path, text: &str, write: fn(&Path, &[u8]) -> io::Result<()>) -> Result<(), Error> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail(folder))?;
    }
    write(path, text.as_bytes()).map_err(fail(path))
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

fn generate(certificate: &Path, key: &Path, extra_names: &[String]) -> Result<(), Error> {
    let pair = KeyPair::generate()?;
    let mut names = vec!["localhost".to_owned()];
    for address in own_addresses() {
        names.push(address.to_string());
    }
    for name in extra_names {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "raynode");
    params.not_before = OffsetDateTime::now_utc() - BACKDATED;
    params.not_after = OffsetDateTime::now_utc() + VALID;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let signed = params.self_signed(&pair)?;

    // The key first: with it alone the next start says what is missing.
    write(key, &pair.serialize_pem(), disk::write_private)?;
    write(certificate, &signed.pem(), disk::write_public)?;
    tracing::info!(certificate = %certificate.display(), "made a certificate for this node");
    Ok(())
}

/// The loopback addresses and all that this machine's interfaces have.
fn own_addresses() -> Vec<IpAddr> {
    let mut addresses = vec![
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    addresses.extend(crate::host::addresses());
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pair_is_made_once_and_its_key_is_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (
            folder.path().join("certs/cert.pem"),
            folder.path().join("certs/key.pem"),
        );
        let first = certificate(&cert, &key, &["node.example".to_owned()]).unwrap();
        let second = certificate(&cert, &key, &[]).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!(first.fingerprint().len(), 32 * 3 - 1);
        assert_eq!(
            std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let pem = std::fs::read_to_string(&cert).unwrap();
        assert!(
            pem.len() <= 2048,
            "panels refuse a longer one: {}",
            pem.len()
        );
    }

    #[test]
    fn a_pair_that_was_cut_off_while_it_was_written_gives_way_to_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (
            folder.path().join("cert.pem"),
            folder.path().join("key.pem"),
        );
        let first = certificate(&cert, &key, &[]).unwrap();
        renew_certificate(&cert, &key, &[]).unwrap();
        std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let used = certificate(&cert, &key, &[]).unwrap();
        assert_eq!(used.fingerprint(), first.fingerprint());
    }

    #[test]
    fn half_a_pair_is_an_error_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (
            folder.path().join("cert.pem"),
            folder.path().join("key.pem"),
        );
        std::fs::write(&cert, "x").unwrap();
        let error = certificate(&cert, &key, &[]).unwrap_err().to_string();
        assert!(error.contains("key.pem is not"), "{error}");
        assert!(!key.exists());
    }

    #[test]
    fn what_is_no_key_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (
            folder.path().join("cert.pem"),
            folder.path().join("key.pem"),
        );
        certificate(&cert, &key, &[]).unwrap();
        std::fs::write(&key, "sesame").unwrap();
        let error = certificate(&cert, &key, &[]).unwrap_err().to_string();
        assert!(
            error.contains("key.pem") && !error.contains("sesame"),
            "{error}"
        );
    }
}
