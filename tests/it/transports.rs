//! Every protocol over the transports that people use: the inbound, and the client of user 7.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::node::xray_binary;
use crate::support::ports;
use crate::support::users::{self, SHADOWSOCKS_METHOD};
use crate::support::xray::{tls_client, tls_server, vless_outbound};

/// A protocol over a transport: the inbound, and the outbound of a user's client.
pub(crate) struct Case {
    pub(crate) inbound: Value,
    pub(crate) outbound: Value,
    /// The flow that the panel gives the user.
    pub(crate) flow: &'static str,
    /// More inbounds that this one needs.
    pub(crate) also: Vec<Value>,
    /// Certificates.
    _folder: Option<tempfile::TempDir>,
}

pub(crate) fn inbound(port: u16, protocol: &str, settings: &Value, stream: &Value) -> Value {
    json!({
        "tag": "in", "listen": "127.0.0.1", "port": port, "protocol": protocol,
        "settings": settings, "streamSettings": stream,
    })
}

fn case(
    port: u16,
    protocol: &str,
    settings: &Value,
    server: &Value,
    outbound: Value,
    client: &Value,
) -> Case {
    let mut outbound = outbound;
    outbound["streamSettings"] = client.clone();
    Case {
        inbound: inbound(port, protocol, settings, server),
        outbound,
        flow: "",
        also: Vec::new(),
        _folder: None,
    }
}

fn server(protocol: &str, server: &Value) -> Value {
    json!({ "protocol": protocol, "settings": { "servers": [server] } })
}

/// A certificate for `localhost`, as an operator would bring one.
fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    (cert, key)
}

/// A fresh REALITY key pair: private and public.
fn reality_keys() -> (String, String) {
    let output = Command::new(xray_binary()).arg("x25519").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut last_words = text
        .lines()
        .map(|line| line.split_whitespace().last().unwrap().to_owned());
    (last_words.next().unwrap(), last_words.next().unwrap())
}

/// The Shadowsocks 2022 key that a client derives from a password that is no key.
pub(crate) fn derived_key(email: &str, key_bytes: usize) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    STANDARD.encode(&Sha256::digest(users::password(email))[..key_bytes])
}

const VISION: &str = "xtls-rprx-vision";

fn raw() -> Value {
    json!({ "network": "tcp" })
}

fn vless_settings() -> Value {
    json!({ "clients": [], "decryption": "none" })
}

/// VLESS over a transport that needs no TLS.
fn plain_vless(stream: &Value) -> Case {
    let port = ports::free();
    let outbound = vless_outbound(port, users::id("7"));
    case(port, "vless", &vless_settings(), stream, outbound, stream)
}

pub(crate) fn vless_over_tcp() -> Case {
    plain_vless(&raw())
}

pub(crate) fn vless_over_websocket() -> Case {
    Case {
        // The panel's user has a flow that this transport can't carry: it must not keep him out.
        flow: VISION,
        ..plain_vless(&json!({ "network": "ws", "wsSettings": { "path": "/ray" } }))
    }
}

pub(crate) fn vless_over_grpc() -> Case {
    plain_vless(&json!({ "network": "grpc", "grpcSettings": { "serviceName": "ray" } }))
}

/// Many streams of the user in one connection.
pub(crate) fn vless_with_mux() -> Case {
    let mut case = vless_over_tcp();
    case.outbound["mux"] = json!({ "enabled": true, "concurrency": 8 });
    case
}

pub(crate) fn vless_with_vision_over_tls() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let port = ports::free();
    let server =
        json!({ "network": "tcp", "security": "tls", "tlsSettings": tls_server(&cert, &key) });
    let client = json!({ "network": "tcp", "security": "tls", "tlsSettings": tls_client(&cert) });
    let mut outbound = vless_outbound(port, users::id("7"));
    outbound["settings"]["vnext"][0]["users"][0]["flow"] = json!(VISION);
    Case {
        flow: VISION,
        _folder: Some(folder),
        ..case(port, "vless", &vless_settings(), &server, outbound, &client)
    }
}

pub(crate) fn vless_over_reality() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let (private, public) = reality_keys();
    let (port, target) = (ports::free(), ports::free());
    // REALITY borrows the handshake of a real TLS server; this one is an inbound of the same core.
    let borrowed = json!({
        "tag": "target", "listen": "127.0.0.1", "port": target, "protocol": "trojan",
        "settings": { "clients": [] },
        "streamSettings": { "network": "tcp", "security": "tls", "tlsSettings": tls_server(&cert, &key) },
    });
    let server = json!({ "network": "tcp", "security": "reality", "realitySettings": {
        "dest": format!("127.0.0.1:{target}"), "serverNames": ["localhost"], "privateKey": private, "shortIds": ["aa"],
    }});
    let client = json!({ "network": "tcp", "security": "reality", "realitySettings": {
        "serverName": "localhost", "publicKey": public, "shortId": "aa", "fingerprint": "chrome",
    }});
    let mut outbound = vless_outbound(port, users::id("7"));
    outbound["settings"]["vnext"][0]["users"][0]["flow"] = json!(VISION);
    Case {
        flow: VISION,
        also: vec![borrowed],
        _folder: Some(folder),
        ..case(port, "vless", &vless_settings(), &server, outbound, &client)
    }
}

/// VLESS in a WebSocket on a unix socket, which an inbound in front of it falls back to.
pub(crate) fn vless_behind_a_fallback() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ws.sock");
    let ws = json!({ "network": "ws", "wsSettings": { "path": "/ray" } });
    let front = plain_vless(&ws);
    let mut behind = front.inbound.clone();
    let listen = format!("{},0666", socket.display());
    behind["listen"] = listen.into();
    behind.as_object_mut().unwrap().remove("port");
    let mut first = front.inbound;
    first["tag"] = "front".into();
    first["streamSettings"] = raw();
    first["settings"]["fallbacks"] = json!([{ "path": "/ray", "dest": socket }]);
    Case {
        inbound: behind,
        outbound: front.outbound,
        flow: "",
        also: vec![first],
        _folder: Some(folder),
    }
}

pub(crate) fn vmess_over_tcp() -> Case {
    let port = ports::free();
    let outbound = json!({ "protocol": "vmess", "settings": { "vnext": [{
        "address": "127.0.0.1", "port": port, "users": [{ "id": users::id("7"), "security": "auto" }],
    }]}});
    let settings = json!({ "clients": [] });
    case(port, "vmess", &settings, &raw(), outbound, &raw())
}

pub(crate) fn trojan_over_tls() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let port = ports::free();
    let outbound = server(
        "trojan",
        &json!({ "address": "127.0.0.1", "port": port, "password": users::password("7") }),
    );
    let server =
        json!({ "network": "tcp", "security": "tls", "tlsSettings": tls_server(&cert, &key) });
    let client = json!({ "network": "tcp", "security": "tls", "tlsSettings": tls_client(&cert) });
    let settings = json!({ "clients": [] });
    Case {
        _folder: Some(folder),
        ..case(port, "trojan", &settings, &server, outbound, &client)
    }
}

pub(crate) fn shadowsocks() -> Case {
    let port = ports::free();
    let outbound = server(
        "shadowsocks",
        &json!({
            "address": "127.0.0.1", "port": port, "method": SHADOWSOCKS_METHOD, "password": users::password("7"),
        }),
    );
    let settings = json!({ "clients": [], "network": "tcp,udp" });
    case(port, "shadowsocks", &settings, &raw(), outbound, &raw())
}

pub(crate) fn shadowsocks_2022(method: &str, key_bytes: usize) -> Case {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let port = ports::free();
    let server_key = STANDARD.encode(vec![5; key_bytes]);
    let user_key = derived_key("7", key_bytes);
    let outbound = server(
        "shadowsocks",
        &json!({
            "address": "127.0.0.1", "port": port, "method": method, "password": format!("{server_key}:{user_key}"),
        }),
    );
    let settings =
        json!({ "method": method, "password": server_key, "clients": [], "network": "tcp,udp" });
    case(port, "shadowsocks", &settings, &raw(), outbound, &raw())
}

pub(crate) fn hysteria() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let port = ports::free();
    let mut tls = tls_server(&cert, &key);
    tls["alpn"] = json!(["h3"]);
    let server = json!({
        "network": "hysteria", "security": "tls", "tlsSettings": tls, "hysteriaSettings": { "version": 2 },
    });
    let mut tls = tls_client(&cert);
    tls["alpn"] = json!(["h3"]);
    let client = json!({
        "network": "hysteria", "security": "tls", "tlsSettings": tls,
        "hysteriaSettings": { "version": 2, "auth": users::password("7") },
    });
    let outbound = json!({ "protocol": "hysteria", "settings": { "version": 2, "address": "127.0.0.1", "port": port } });
    let settings = json!({ "version": 2, "clients": [] });
    Case {
        _folder: Some(folder),
        ..case(port, "hysteria", &settings, &server, outbound, &client)
    }
}
