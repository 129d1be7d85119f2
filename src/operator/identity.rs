//! Who the node is to panels, and what its operator changes about that.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tonic::{Code, Status};

use crate::host;
use crate::identity::{self, Shown};
use crate::panel::key_ring::{self, KeyRing};
use crate::panel::reload::{Current, Pair};
use crate::proto::raynode::v1::{Certificate, GetPairingResponse, RenewCertificateRequest};
use crate::settings::{Protocols, subject_names};

/// Who the node is to panels.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Where panels connect.
    pub address: SocketAddr,
    /// Where their buttons lead.
    pub maintenance: Option<SocketAddr>,
    /// What is served there.
    pub protocols: Protocols,
    /// The keys that open the node.
    pub key_ring: Arc<KeyRing>,
    /// The files of the certificate and its key.
    pub pair: Pair,
    /// The certificate that is in force.
    pub certificate: Arc<Current>,
    /// Names and addresses for one that the node makes.
    pub names: Vec<String>,
}

impl Identity {
    /// What a panel asks for when the node is added to it, with the key.
    ///
    /// # Errors
    /// When the key or the certificate can't be read.
    pub fn pairing(&self) -> Result<GetPairingResponse, identity::Error> {
        let certificate = self.certificate();
        let api_key = self.key_ring.own()?.to_string();
        let connection = match self.protocols {
            Protocols::Both => "grpc or rest",
            Protocols::Grpc => "grpc",
            Protocols::Rest => "rest",
        };
        Ok(GetPairingResponse {
            address: reachable(self.address.ip()).to_string(),
            port: self.address.port().into(),
            api_port: self.maintenance.map_or(0, |address| address.port().into()),
            connection: connection.to_owned(),
            api_key,
            certificate: certificate.pem,
            fingerprint: certificate.fingerprint,
            names: certificate.names,
        })
    }

    /// The certificate that is in force.
    pub(super) fn certificate(&self) -> Certificate {
        let chain = self.certificate.chain();
        let leaf = chain.first();
        let shown = leaf.and_then(Shown::of);
        let path = self.pair.certificate.display().to_string();
        let pem = chain.iter().map(pem).collect();
        let fingerprint = leaf.map(identity::fingerprint).unwrap_or_default();
        match shown {
            Some(shown) => Certificate {
                path,
                pem,
                fingerprint,
                names: shown.names,
                issuer: shown.issuer,
                self_signed: shown.is_self_signed,
                begins: shown.begins,
                ends: shown.ends,
            },
            None => Certificate {
                path,
                pem,
                fingerprint,
                ..Certificate::default()
            },
        }
    }

    pub(super) fn renew(&self, request: &RenewCertificateRequest) -> Result<Certificate, Status> {
        let RenewCertificateRequest {
            names,
            replace,
            only,
        } = request;
        let certificate = self.certificate();
        if !certificate.self_signed && !*replace {
            let text = format!(
                "{} was signed by {}: get another one there and import it, or say --replace to have a self-signed one",
                certificate.path, certificate.issuer
            );
            return Err(Status::failed_precondition(text));
        }
        let more = more_names(names)?;
        // Whoever connects to a name that was in it goes on doing so.
        let goes_on = certificate.self_signed && !*only;
        let before = certificate.names.iter().filter(|_| goes_on);
        let mut names: Vec<String> = self
            .names
            .iter()
            .chain(&more)
            .chain(before)
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        let Pair { certificate, key } = &self.pair;
        identity::renew_certificate(certificate, key, &names).map_err(|error| of(&error))?;
        self.pair.reload(&self.certificate);
        Ok(self.certificate())
    }

    pub(super) fn import(&self, pems: (&str, &str)) -> Result<Certificate, Status> {
        let Pair { certificate, key } = &self.pair;
        identity::import_certificate(certificate, key, pems).map_err(|error| of(&error))?;
        self.pair.reload(&self.certificate);
        Ok(self.certificate())
    }
}

fn more_names(asked_for: &[String]) -> Result<Vec<String>, Status> {
    let names = asked_for
        .iter()
        .map(|text| subject_names(text).filter(|names| !names.is_empty()));
    let names: Option<Vec<Vec<String>>> = names.collect();
    names.map(|names| names.concat()).ok_or_else(|| {
        Status::invalid_argument(
            "--name wants a host name or an address, such as node.example or 192.0.2.1",
        )
    })
}

/// An address that a panel could use: the one listened on, or the first that this machine has.
fn reachable(listening: IpAddr) -> IpAddr {
    if !listening.is_unspecified() {
        return listening;
    }
    let own = host::addresses();
    let same_family = own
        .iter()
        .find(|address| address.is_ipv4() == listening.is_ipv4());
    same_family
        .or(own.first())
        .copied()
        .unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

fn pem(certificate: &CertificateDer<'static>) -> String {
    use base64::Engine;

    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

pub(super) fn of(error: &identity::Error) -> Status {
    let code = match error {
        identity::Error::NoPair(_) | identity::Error::Generate(_) => Code::InvalidArgument,
        identity::Error::Io { .. }
        | identity::Error::KeysFile { .. }
        | identity::Error::Unusable { .. }
        | identity::Error::HalfAPair { .. } => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

pub(super) fn of_key(error: &key_ring::Error) -> Status {
    let code = match error {
        key_ring::Error::Identity(error) => return of(error),
        key_ring::Error::Name(_) => Code::InvalidArgument,
        key_ring::Error::Exists(_) => Code::AlreadyExists,
        key_ring::Error::NotFound(_) => Code::NotFound,
        key_ring::Error::SetByOperator | key_ring::Error::Last(..) => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_none_is_refused() {
        let names = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            more_names(&texts).map_err(|status| status.code())
        };
        assert_eq!(names(&[]).unwrap(), [""; 0]);
        let list = names(&["node.example", "192.0.2.1,::1"]);
        assert_eq!(list.unwrap(), ["node.example", "192.0.2.1", "::1"]);
        for name in ["", " ", ",", "a b"] {
            assert_eq!(names(&["node.example", name]), Err(Code::InvalidArgument));
        }
    }
}
