//! A second Xray that plays the user: a SOCKS port in front of one outbound.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::node::xray_binary;
use super::{ports, socks};

pub struct XrayClient {
    child: Child,
    pub port: u16,
    folder: TempDir,
}

impl XrayClient {
    /// A client that reaches the world through `outbound`.
    pub fn start(outbound: &Value) -> Self {
        let folder = tempfile::Builder::new().prefix("rn").tempdir().unwrap();
        let port = ports::free();
        let config = json!({
            "log": { "loglevel": "info" },
            "inbounds": [{ "listen": "127.0.0.1", "port": port, "protocol": "socks", "settings": { "udp": true } }],
            "outbounds": [outbound],
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut child = Command::new(xray_binary())
            .args(["run", "-c", "config.json"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "the client's xray did not start: {}",
                std::fs::read_to_string(folder.path().join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            child,
            port,
            folder,
        }
    }

    pub async fn connect(&self, target: SocketAddr) -> std::io::Result<TcpStream> {
        socks::connect(self.port, target).await
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// A client for each of these users, each to the VLESS inbound on its port, and what a script has to know
/// of them.
pub fn vless_clients<const N: usize>(
    users: [(&str, u16); N],
) -> (Vec<XrayClient>, serde_json::Map<String, Value>) {
    let mut described = serde_json::Map::new();
    let clients = users
        .map(|(email, port)| {
            let id = super::users::id(email);
            let client = XrayClient::start(&vless_outbound(port, id));
            described.insert(email.to_owned(), json!({ "id": id, "port": client.port }));
            client
        })
        .into();
    (clients, described)
}

impl Drop for XrayClient {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- the client's log:\n{}\n---", self.log());
        }
    }
}

/// An outbound that lets traffic go to the loopback, which newer cores refuse otherwise.
pub fn freedom() -> Value {
    json!({ "tag": "direct", "protocol": "freedom", "settings": { "finalRules": [{ "action": "allow" }] } })
}

/// A small configuration: one VLESS inbound over plain TCP.
pub fn vless_config(port: u16) -> Value {
    json!({
        "log": { "loglevel": "warning" },
        "inbounds": [vless_inbound("vless", port)],
        "outbounds": [freedom(), { "tag": "block", "protocol": "blackhole" }],
    })
}

pub fn vless_inbound(tag: &str, port: u16) -> Value {
    json!({
        "tag": tag, "listen": "127.0.0.1", "port": port, "protocol": "vless",
        "settings": { "clients": [], "decryption": "none" },
    })
}

/// What that user's client dials.
pub fn vless_outbound(port: u16, id: uuid::Uuid) -> Value {
    json!({
        "protocol": "vless",
        // The core counts nobody as online who comes from 127.0.0.1.
        "sendThrough": "127.0.0.2",
        "settings": { "vnext": [{
            "address": "127.0.0.1", "port": port,
            "users": [{ "id": id, "encryption": "none" }],
        }]},
    })
}

/// TLS for an inbound, with a certificate for `localhost`.
pub fn tls_server(certificate: &Path, key: &Path) -> Value {
    json!({ "certificates": [{ "certificateFile": certificate, "keyFile": key }] })
}

/// TLS for its client, which trusts exactly that certificate.
pub fn tls_client(certificate: &Path) -> Value {
    json!({
        "serverName": "localhost",
        "certificates": [{ "usage": "verify", "certificateFile": certificate }],
    })
}
