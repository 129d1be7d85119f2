//! What the operator decides: environment variables and the `.env` file.
//!
//! The names are those of the PasarGuard node, so an existing `.env` works. Every mistake is
//! reported in one run; nothing is silently replaced by a default.

mod core;
mod effective;
mod limits;
mod parse;
pub mod reference;
mod source;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use uuid::Uuid;

pub use self::core::{CoreSettings, InstallSettings, MemoryLimit};
pub use self::effective::{Effective, InForce};
pub use self::limits::Limits;
use self::parse::{Listen, Reader};
pub use self::parse::{duration as a_span, subject_names};
pub use self::source::{Source, Sources};
use crate::usage::{Policy, Unsure};
use crate::xray::handover;

/// Names the file of settings, where that is not the usual one.
const FILE_VARIABLE: &str = "RAYNODE_SETTINGS";
/// The usual one, in the working directory.
const HERE: &str = ".env";
/// Where those of the service are.
const SERVICE: &str = "/etc/raynode/raynode.env";

/// What lives as long as the machine runs, where nothing is set.
const USUAL_RUNTIME_DIR: &str = "/run/raynode";

/// Longest path of a unix socket on Linux is 107 bytes; ours is below the runtime folder, and Xray
/// puts a mode behind it.
const MAX_RUNTIME_DIR: usize = 67;

/// Panels are back within 50 ms of a Stop, and within 20 s when they start anew themselves.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// Only for this machine: whoever reads them needs no key.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 62052);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const A_DAY: Duration = Duration::from_secs(86_400);

/// Everything that can be set.
#[derive(Debug)]
pub struct Settings {
    /// Where panels connect (`NODE_HOST`, `SERVICE_PORT`).
    pub listen: SocketAddr,
    /// Where panels look after the node (`NODE_HOST`, `API_PORT`); nowhere with port 0.
    pub maintenance: Option<SocketAddr>,
    /// What is served there (`SERVICE_PROTOCOL`).
    pub protocols: Protocols,
    /// Where Prometheus looks (`METRICS_LISTEN`); nowhere when it is `off`.
    pub metrics: Option<SocketAddr>,
    /// What panels and strangers may take.
    pub limits: Limits,
    /// The key that panels show (`API_KEY`); generated and kept when it is not set.
    pub api_key: Option<Secret>,
    /// More keys, each with a name (`API_KEYS_FILE`).
    pub api_keys_file: Option<PathBuf>,
    /// The node's certificate (`SSL_CERT_FILE`).
    pub certificate: PathBuf,
    /// Its key (`SSL_KEY_FILE`).
    pub certificate_key: PathBuf,
    /// Certificates of clients that are trusted (`SSL_CLIENT_CERT_FILE`).
    pub client_certificates: Option<PathBuf>,
    /// Whether every client has to show one of them (`REQUIRE_CLIENT_CERT`).
    pub require_client_certificate: bool,
    /// Names and addresses for a generated certificate, beside this machine's own (`CERT_SAN`).
    pub certificate_names: Vec<String>,
    /// What cores are made of.
    pub core: CoreSettings,
    /// How a core makes way for another one (`HANDOVER`, `DRAIN_TIMEOUT`).
    pub handover: handover::Policy,
    /// Where cores and geo files are installed from.
    pub sources: InstallSettings,
    /// What survives a reboot (`STATE_DIR`).
    pub state_dir: PathBuf,
    /// What does not (`RUNTIME_DIR`).
    pub runtime_dir: PathBuf,
    /// How long a core serves on after a panel's Stop (`STOP_GRACE`).
    pub stop_grace: Duration,
    /// Whether what was served last is started again where no core runs (`RESTORE_ON_BOOT`).
    pub restore_on_boot: bool,
    /// What becomes of what is used (`HARVEST_INTERVAL`, `USAGE_RETENTION`, `USAGE_UNSURE`).
    pub usage: Policy,
    /// Where the running configuration is written when debugging (`DEBUG`, `GENERATED_CONFIG_PATH`).
    pub debug_config: Option<PathBuf>,
    /// How many log lines are remembered for viewers (`LOG_BUFFER_SIZE`).
    pub log_buffer: usize,
    /// How many of Xray's last lines an error shows (`STARTUP_LOG_TAIL_SIZE`).
    pub startup_log_tail: usize,
    /// How much the node says about itself (`LOG_LEVEL`).
    pub log_level: LevelFilter,
    /// In which form (`LOG_FORMAT`).
    pub log_format: LogFormat,
}

/// A value that is never shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub Uuid);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// The transports that panels may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// gRPC and REST on the same port.
    Both,
    /// Only gRPC.
    Grpc,
    /// Only REST.
    Rest,
}

/// The form of the node's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, an object a line.
    Json,
    /// To the journal of systemd, by its own protocol.
    Journald,
}

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    variable: String,
    value: String,
    allowed: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.variable, self.value, self.allowed)
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<Mistake>);

impl Settings {
    /// Reads the environment, and a file where there is one: that which `RAYNODE_SETTINGS` names, or else
    /// `.env` in the working directory. The environment wins; only the file can change while a daemon runs.
    ///
    /// # Errors
    /// With every mistake there is.
    pub fn load() -> Result<Self, Mistakes> {
        let (sources, mistakes) = Sources::of_the_daemon();
        Self::read(&sources, mistakes)
    }

    /// The same for a command that somebody gives anywhere: where there is a file of the service, it reads that
    /// and no `.env`.
    ///
    /// # Errors
    /// With every mistake there is.
    pub fn find() -> Result<Self, Mistakes> {
        let (sources, mistakes) = Sources::of_a_command();
        Self::read(&sources, mistakes)
    }

    /// Where the daemon is to be found of which these are the settings. Whatever else is wrong with them is in
    /// nobody's way.
    ///
    /// # Errors
    /// When the file or a line of it can't be read and may name the folder, or the folder is no path.
    pub fn find_runtime_dir() -> Result<PathBuf, Mistakes> {
        let (sources, mistakes) = Sources::of_a_command();
        // One that can't be read may be the one that is looked for.
        let mistakes = match sources.get("RUNTIME_DIR") {
            Some(_) => Vec::new(),
            None => mistakes,
        };
        let mut reader = Reader::new(&sources, mistakes);
        let runtime_dir = reader.path("RUNTIME_DIR", USUAL_RUNTIME_DIR);
        match reader.into_mistakes() {
            none if none.is_empty() => Ok(runtime_dir),
            mistakes => Err(Mistakes(mistakes)),
        }
    }

    /// Reads the settings from any source.
    ///
    /// # Errors
    /// With every mistake there is.
    pub fn from_source(source: &impl Source) -> Result<Self, Mistakes> {
        Self::read(source, Vec::new())
    }

    fn read(source: &impl Source, mistakes: Vec<Mistake>) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(source, mistakes);
        let (listen, maintenance) = addresses(&mut reader);
        let state_dir = reader.path("STATE_DIR", "/var/lib/raynode");
        let runtime_dir = reader.path("RUNTIME_DIR", USUAL_RUNTIME_DIR);
        reader.check("RUNTIME_DIR", &runtime_dir, "a path without a comma, of at most 67 bytes: a unix socket below it must fit the kernel's limit", |path| {
            let bytes = path.as_os_str().as_encoded_bytes();
            bytes.len() <= MAX_RUNTIME_DIR && !bytes.contains(&b',')
        });
        reader.check(
            "STATE_DIR",
            &state_dir,
            "another folder than RUNTIME_DIR",
            |state_dir| state_dir != runtime_dir,
        );
        reader.together("SSL_CERT_FILE", "SSL_KEY_FILE");
        let certs = state_dir.join("certs");
        let certificate = reader.path("SSL_CERT_FILE", certs.join("ssl_cert.pem"));
        let certificate_key = reader.path("SSL_KEY_FILE", certs.join("ssl_key.pem"));
        let debug = reader
            .parsed("DEBUG", "true or false", parse::boolean)
            .unwrap_or(false);
        let generated = reader.path("GENERATED_CONFIG_PATH", state_dir.join("generated"));
        let client_certificates = reader.optional_path("SSL_CLIENT_CERT_FILE");
        let require_client_certificate = reader
            .parsed("REQUIRE_CLIENT_CERT", "true or false", parse::boolean)
            .unwrap_or(false);
        if require_client_certificate && client_certificates.is_none() {
            reader.missing("SSL_CLIENT_CERT_FILE", "REQUIRE_CLIENT_CERT");
        }
        let limits = Limits::read(&mut reader);
        let settings = Self {
            limits,
            client_certificates,
            require_client_certificate,
            listen,
            maintenance,
            metrics: metrics(&mut reader),
            protocols: reader
                .parsed("SERVICE_PROTOCOL", "both, grpc or rest", parse::protocols)
                .unwrap_or(Protocols::Both),
            api_key: reader.secret(
                "API_KEY",
                "a UUID, or nothing to have one generated",
                |text| {
                    Uuid::try_parse(text)
                        .ok()
                        .filter(|key| !key.is_nil())
                        .map(Secret)
                },
            ),
            api_keys_file: reader.optional_path("API_KEYS_FILE"),
            certificate,
            certificate_key,
            certificate_names: reader
                .parsed(
                    "CERT_SAN",
                    "names and addresses, separated by commas",
                    subject_names,
                )
                .unwrap_or_default(),
            core: CoreSettings::read(&mut reader, &state_dir),
            handover: handover::Policy {
                mode: reader
                    .parsed("HANDOVER", "auto, plain or off", parse::handover)
                    .unwrap_or(handover::Mode::Auto),
                drain_timeout: reader.duration("DRAIN_TIMEOUT", HOUR, SECOND, 30 * A_DAY),
            },
            sources: InstallSettings::read(&mut reader),
            state_dir,
            runtime_dir,
            stop_grace: reader.duration("STOP_GRACE", STOP_GRACE, Duration::ZERO, A_DAY),
            restore_on_boot: reader
                .parsed("RESTORE_ON_BOOT", "true or false", parse::boolean)
                .unwrap_or(true),
            usage: usage(&mut reader, limits.message),
            debug_config: debug.then_some(generated),
            log_buffer: reader.count("LOG_BUFFER_SIZE", 10_000, 1_000_000),
            startup_log_tail: reader.count("STARTUP_LOG_TAIL_SIZE", 200, 10_000),
            log_level: reader
                .parsed(
                    "LOG_LEVEL",
                    "off, error, warn, info, debug or trace",
                    |text| text.parse().ok(),
                )
                .unwrap_or(LevelFilter::INFO),
            log_format: reader
                .parsed("LOG_FORMAT", "text, json or journald", parse::log_format)
                .unwrap_or(LogFormat::Text),
        };
        let mistakes = reader.into_mistakes();
        if mistakes.is_empty() {
            Ok(settings)
        } else {
            Err(Mistakes(mistakes))
        }
    }
}

/// What becomes of what is used; a reply of at most so many bytes tells of it.
fn usage(reader: &mut Reader<'_, impl Source>, reply: usize) -> Policy {
    Policy {
        harvest_interval: reader.duration("HARVEST_INTERVAL", 2 * SECOND, SECOND / 10, 60 * SECOND),
        retention: reader.duration("USAGE_RETENTION", 31 * A_DAY, A_DAY / 24, 366 * A_DAY),
        reply,
        unsure: reader
            .parsed("USAGE_UNSURE", "settle or return", parse::unsure)
            .unwrap_or(Unsure::Settle),
    }
}

/// Where Prometheus looks.
fn metrics(reader: &mut Reader<'_, impl Source>) -> Option<SocketAddr> {
    let allowed = "an address with a port, a port of the loopback, or off";
    match reader.parsed("METRICS_LISTEN", allowed, parse::listen) {
        Some(Listen::Off) => None,
        Some(Listen::At(address)) => Some(address),
        None => Some(METRICS),
    }
}

/// Where panels connect, and where they look after the node.
fn addresses(reader: &mut Reader<'_, impl Source>) -> (SocketAddr, Option<SocketAddr>) {
    let host = reader.parsed(
        "NODE_HOST",
        "an IPv4 or IPv6 address, e.g. 0.0.0.0 or [::]",
        parse::address,
    );
    let port = reader.parsed("SERVICE_PORT", "a port from 1 to 65535", |text| {
        text.parse().ok().filter(|port| *port > 0)
    });
    let host = host.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let port = port.unwrap_or(62050);
    let api_port = reader
        .parsed(
            "API_PORT",
            "a port up to 65535 beside SERVICE_PORT, or 0 for none",
            |text| text.parse().ok().filter(|api_port| *api_port != port),
        )
        .unwrap_or(62051);
    (
        SocketAddr::new(host, port),
        (api_port > 0).then(|| SocketAddr::new(host, api_port)),
    )
}

#[cfg(test)]
mod tests;
