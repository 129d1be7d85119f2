//! TLS as panels expect it: always on, HTTP/2 agreed by ALPN.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio_rustls::TlsAcceptor;

use crate::identity::Certificate;

/// Accepts TLS 1.2 and 1.3 with this certificate.
///
/// # Errors
/// When key and certificate do not belong together.
pub fn acceptor(certificate: Certificate) -> Result<TlsAcceptor, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificate.chain, certificate.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
