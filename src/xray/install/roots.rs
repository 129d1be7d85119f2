//! Whom this machine believes: the authorities that vouch for servers.

use std::path::Path;

use rustls::RootCertStore;

/// Where systems keep all of them in one file: Debian and Alpine, Fedora, SUSE, others.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The authorities, none where there are none.
///
/// Beside our `SSL_KEY_FILE`, `SSL_CERT_FILE` is our certificate, and not the file of authorities that it
/// is for all others.
pub(super) fn authorities() -> RootCertStore {
    read(std::env::var_os("SSL_KEY_FILE").is_some())
}

fn read(certificate_is_ours: bool) -> RootCertStore {
    let found = if certificate_is_ours {
        let bundle = BUNDLES
            .map(Path::new)
            .into_iter()
            .find(|path| path.exists());
        rustls_native_certs::load_certs_from_paths(bundle, None)
    } else {
        rustls_native_certs::load_native_certs()
    };
    for error in &found.errors {
        tracing::warn!(%error, "some certificates of authorities can't be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_certificate_is_no_authority() {
        let here = BUNDLES.iter().any(|path| Path::new(path).exists());
        assert_eq!(!read(true).is_empty(), here);
    }
}
