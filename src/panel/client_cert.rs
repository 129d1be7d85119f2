//! Client certificates, trusted by equality: a client is known when it shows one of the certificates
//! in `SSL_CLIENT_CERT_FILE` and holds its key.
//!
//! No chain is built, because the certificates of panels that use this have none: they are signed by
//! themselves, one generation makes them in X.509 version 1 without any extension, and openssl's
//! defaults mark them as authorities. The usual verifiers refuse both.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};
use x509_parser::prelude::FromDer;

/// The certificates that are trusted, and whether every client has to show one.
#[derive(Debug)]
pub struct ClientCertificates {
    trusted: Vec<CertificateDer<'static>>,
    required: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It can't be read, or is not PEM.
    #[error("not a PEM certificate ({0})")]
    Pem(rustls::pki_types::pem::Error),
    /// There is nothing in it.
    #[error("holds no certificate")]
    Empty,
    /// What is in it is no certificate.
    #[error("holds something that is not a certificate")]
    Malformed,
}

impl ClientCertificates {
    /// Those in a PEM file.
    ///
    /// # Errors
    /// When there is none, or one can't be read.
    pub fn from_file(path: &Path, required: bool) -> Result<Arc<Self>, Unusable> {
        let trusted = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(Unusable::Pem)?;
        if trusted.is_empty() {
            return Err(Unusable::Empty);
        }
        if trusted
            .iter()
            .any(|certificate| public_key(certificate).is_none())
        {
            return Err(Unusable::Malformed);
        }
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Ok(Arc::new(Self {
            trusted,
            required,
            algorithms,
        }))
    }

    /// The client has the key when its signature over the handshake fits the certificate's.
    fn check(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(certificate).ok_or(CertificateError::BadEncoding)?;
        let algorithms = self.algorithms.mapping.iter();
        let (_, candidates) = algorithms
            .into_iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(PeerIncompatible::NoSignatureSchemesInCommon)?;
        let fits = candidates.iter().any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == key.algorithm
                && algorithm
                    .verify_signature(&key.bits, message, signed.signature())
                    .is_ok()
        });
        if fits {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl ClientCertVerifier for ClientCertificates {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.trusted.iter().any(|trusted| trusted == end_entity) {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // RFC 8446, 4.2.3: not for signatures of the handshake.
        let outdated = [
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA512,
        ];
        if outdated.contains(&signed.scheme) {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        self.check(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A certificate's public key, in the two parts that a signature is checked with.
struct PublicKey {
    /// DER of the algorithm's identifier, without its outer sequence.
    algorithm: Vec<u8>,
    bits: Vec<u8>,
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let key = parsed.public_key();
    let algorithm = content_of_sequence(content_of_sequence(key.raw)?)?.to_vec();
    Some(PublicKey {
        algorithm,
        bits: key.subject_public_key.data.to_vec(),
    })
}

/// What is inside a DER sequence at the beginning of `der`.
fn content_of_sequence(der: &[u8]) -> Option<&[u8]> {
    let (0x30, rest) = der.split_first().map(|(tag, rest)| (*tag, rest))? else {
        return None;
    };
    let (first, rest) = rest.split_first()?;
    let (length, rest) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let length = bytes
            .iter()
            .fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
        (length, rest)
    };
    rest.get(..length)
}

/// Set on a connection whose client has shown a certificate that is trusted.
#[derive(Clone, Copy, Debug)]
pub struct Certified;
