//! TLS as panels expect it: always on, HTTP/2 or HTTP/1.1.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio_rustls::TlsAcceptor;

use super::client_cert::ClientCertificates;
use super::reload::Current;

/// Accepts TLS 1.2 and 1.3 with the certificate that is in force when a client comes.
///
/// # Errors
/// When the cryptography library knows neither version.
pub fn acceptor(
    certificate: Arc<Current>,
    clients: Option<Arc<ClientCertificates>>,
) -> Result<TlsAcceptor, rustls::Error> {
    let clients: Arc<dyn ClientCertVerifier> = match clients {
        Some(clients) => clients,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = [&b"h2"[..], b"http/1.1", b"http/1.0"]
        .map(Vec::from)
        .to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
