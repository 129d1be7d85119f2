//! What a certificate says.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What people want to know of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The names and addresses that it is for, in its own order.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Whether that is itself.
    pub is_self_signed: bool,
    /// Since when it holds, Unix seconds.
    pub begins: i64,
    /// When it ends, Unix seconds.
    pub ends: i64,
}

impl Shown {
    /// Reads it; `None` for what is no certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.iter().filter_map(name));
        let validity = certificate.validity();
        Some(Self {
            names: names.into_iter().flatten().collect(),
            issuer: certificate.issuer().to_string(),
            is_self_signed: certificate.issuer() == certificate.subject(),
            begins: validity.not_before.timestamp(),
            ends: validity.not_after.timestamp(),
        })
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
            v4.or(v6).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}
