//! Ports: free, or answering; and whether a firewall names them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::Finding;
use super::daemon::Found;
use super::symptoms::{
    FIREWALL_IS_CLOSED, METRICS_ARE_NOT_SERVED, PORT_DOES_NOT_ANSWER, PORT_IS_TAKEN,
    PORT_NEEDS_A_CAPABILITY,
};
use crate::settings::Settings;

/// How long a port of our own may take to answer.
const DEADLINE: Duration = Duration::from_secs(3);

pub(super) async fn look(settings: &Settings, found: &Found) -> Vec<Finding> {
    let mut findings = Vec::new();
    let firewall = firewall().await;
    for address in std::iter::once(settings.listen).chain(settings.maintenance) {
        findings.push(match found {
            Found::Nobody => is_free(address),
            Found::Running(_) | Found::Hanging(_) | Found::Failing(_) | Found::Closed => {
                answers(address).await
            }
        });
        let rules = firewall.as_deref();
        findings.extend(rules.and_then(|rules| names(rules, address.port())));
    }
    findings.extend(settings.metrics.map(|address| metrics(address, found)));
    findings
}

fn is_free(address: SocketAddr) -> Finding {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Finding::well("ports", format!("{address} is free")),
        Err(error) => is_not_free(address, &error),
    }
}

fn is_not_free(address: SocketAddr, error: &io::Error) -> Finding {
    let symptom = match error.kind() {
        io::ErrorKind::PermissionDenied => &PORT_NEEDS_A_CAPABILITY,
        _ => &PORT_IS_TAKEN,
    };
    let found = format!("{address}: {error}");
    Finding::ill(symptom, found, &address.port().to_string())
}

/// Where on this machine what listens there is reached.
fn reached_at(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn answers(address: SocketAddr) -> Finding {
    let asked = handshake(reached_at(address));
    let port = address.port().to_string();
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(())) => Finding::well("ports", format!("{address} answers")),
        Ok(Err(error)) => Finding::ill(&PORT_DOES_NOT_ANSWER, format!("{address}: {error}"), &port),
        Err(_) => {
            let found = format!("{address}: nothing within {} s", DEADLINE.as_secs());
            Finding::ill(&PORT_DOES_NOT_ANSWER, found, &port)
        }
    }
}

/// Only the daemon knows whether it is the one who answers there.
fn metrics(address: SocketAddr, found: &Found) -> Finding {
    let port = address.port().to_string();
    match found {
        Found::Running(running) if running.status.metrics.is_empty() => Finding::ill(
            &METRICS_ARE_NOT_SERVED,
            format!("{address}: the daemon did not get it at its start"),
            &port,
        ),
        Found::Running(running) => {
            let served = format!("{} has the metrics", running.status.metrics);
            Finding::well("ports", served)
        }
        Found::Nobody => match is_free(address) {
            Finding {
                symptom: Some(_),
                found,
                ..
            } => Finding::ill(&METRICS_ARE_NOT_SERVED, found, &port),
            free => free,
        },
        Found::Hanging(_) | Found::Failing(_) | Found::Closed => Finding::well(
            "ports",
            format!("{address}: nobody can be asked whether metrics are there"),
        ),
    }
}

/// Whoever answers: a certificate that is refused was shown, and whether it is the right one is looked at
/// elsewhere.
async fn handshake(address: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::IpAddress(address.ip().into());
    match connector.connect(name, stream).await {
        Err(error) if !was_shown_a_certificate(&error) => Err(error),
        _ => Ok(()),
    }
}

fn was_shown_a_certificate(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}

/// The rules of a firewall that runs; `None` where none does, or nobody may look.
async fn firewall() -> Option<String> {
    let asked = Command::new("ufw")
        .arg("status")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, asked).await.ok()?.ok()?;
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    rules.starts_with("Status: active").then_some(rules)
}

fn names(rules: &str, port: u16) -> Option<Finding> {
    let port = port.to_string();
    let is_named = rules.lines().any(|line| {
        let mut words = line.split_whitespace();
        let to = words.next().unwrap_or_default();
        let number = to.split('/').next().unwrap_or_default();
        (number == port || to == "Anywhere") && line.contains("ALLOW")
    });
    (!is_named).then(|| {
        let found = format!("ufw is active and does not name {port}");
        Finding::ill(&FIREWALL_IS_CLOSED, found, &port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_free_or_taken_and_answers_or_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(is_free(address).symptom, Some(&PORT_IS_TAKEN));
        drop(listener);
        assert_eq!(is_free(address).symptom, None);
        assert_eq!(answers(address).await.symptom, Some(&PORT_DOES_NOT_ANSWER));
    }

    #[test]
    fn a_port_that_is_forbidden_is_not_one_that_is_taken() {
        let address = "127.0.0.1:443".parse().unwrap();
        let found = |kind: io::ErrorKind| is_not_free(address, &kind.into()).symptom;
        assert_eq!(
            found(io::ErrorKind::PermissionDenied),
            Some(&PORT_NEEDS_A_CAPABILITY)
        );
        assert_eq!(found(io::ErrorKind::AddrInUse), Some(&PORT_IS_TAKEN));
    }

    #[test]
    fn a_firewall_that_does_not_name_the_port_is_found() {
        let rules = "Status: active\n\nTo                         Action      From\n--                         ------      ----\n22/tcp                     ALLOW       Anywhere\n62050/tcp                  ALLOW       Anywhere\n";
        assert_eq!(names(rules, 62050), None);
        assert_eq!(
            names(rules, 62051).unwrap().symptom,
            Some(&FIREWALL_IS_CLOSED)
        );
    }
}
