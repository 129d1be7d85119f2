//! Known bytes through every protocol, and what the node says of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use raynode::proto::service::StatType;
use serde_json::{Value, json};

use crate::NODE;
use crate::support::node::{xray_binary, xray_version};
use crate::support::origin::Download;
use crate::support::users::{self, SHADOWSOCKS_METHOD};
use crate::support::xray::{freedom, tls_client, tls_server, vless_outbound};
use crate::support::{NodeProcess, Origin, Panel, XrayClient, eventually, origin, ports};

const UP: u64 = 1_500_007;
const DOWN: u64 = 3_000_011;

/// A protocol over a transport: the inbound, and the outbound of a user's client.
struct Case {
    inbound: Value,
    outbound: Value,
    /// The flow that the panel gives the user.
    flow: &'static str,
    /// More inbounds that this one needs.
    also: Vec<Value>,
}

fn inbound(port: u16, protocol: &str, settings: &Value, stream: &Value) -> Value {
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

/// Starts the case's core, moves known bytes each way, and compares every counter with them.
async fn known_bytes_are_counted(case: Case) {
    let mut node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let origin = Origin::start().await;
    let mut inbounds = vec![case.inbound];
    inbounds.extend(case.also);
    let config = json!({
        "log": { "loglevel": "info", "error": node.core_log_path() },
        "inbounds": inbounds,
        "outbounds": [freedom()],
    });
    let user = users::user_with("7", &["in"], case.flow);
    panel
        .start(&config, std::slice::from_ref(&user))
        .await
        .unwrap();

    let client = XrayClient::start(&case.outbound);
    let mut stream = client.connect(origin.address).await.unwrap();
    origin::exchange(&mut stream, UP, DOWN).await.unwrap();
    drop(stream);

    let (up, down) = (i64::try_from(UP).unwrap(), i64::try_from(DOWN).unwrap());
    // Vision counts what the kernel copied when the copying ends.
    eventually("the user's counters hold every byte", || async {
        (panel.traffic(StatType::UserStat, "7").await == (up, down)).then_some(())
    })
    .await;
    assert_eq!(panel.traffic(StatType::UsersStat, "7").await, (up, down));
    assert_eq!(
        panel.traffic(StatType::Outbound, "direct").await,
        (up, down)
    );
    assert_eq!(
        panel.traffic(StatType::Outbounds, "direct").await,
        (up, down)
    );
    // An inbound counts what is on the wire: the same bytes and the protocol around them. Xray leaves
    // out some of what it writes (seen on 26.3.27: up to 4%), so this is no equality.
    let counts_inbounds =
        config["inbounds"][0]["protocol"] != "hysteria" || xray_version() >= (26, 10, 10);
    for kind in [StatType::Inbound, StatType::Inbounds] {
        let (wire_up, wire_down) = panel.traffic(kind, "in").await;
        if counts_inbounds {
            assert!(
                (up - up / 10..up + up / 10).contains(&wire_up),
                "{kind:?}: {wire_up} for {up}"
            );
            assert!(
                (down - down / 10..down + down / 10).contains(&wire_down),
                "{kind:?}: {wire_down} for {down}"
            );
        } else {
            assert_eq!((wire_up, wire_down), (0, 0));
        }
    }
    // Nothing that the node adds to the core shows.
    for kind in [StatType::UsersStat, StatType::Inbounds, StatType::Outbounds] {
        for stat in panel.stats(kind, "", false).await.unwrap() {
            assert!(
                ["7", "in", "direct", "target"].contains(&stat.name.as_str()),
                "{stat:?}"
            );
            assert_eq!(stat.link, "traffic");
        }
    }

    // What was reported once is in no other report, and the core's own counters say what they said.
    let read: i64 = panel
        .stats(StatType::UsersStat, "", true)
        .await
        .unwrap()
        .iter()
        .map(|stat| stat.value)
        .sum();
    assert_eq!(read, up + down);
    let again = panel.stats(StatType::UsersStat, "", true).await.unwrap();
    assert_eq!(again, []);
    let one = panel.stats(StatType::UserStat, "7", true).await.unwrap();
    assert_eq!(
        one.iter().map(|stat| stat.value).collect::<Vec<_>>(),
        [0, 0]
    );
    assert_eq!(panel.traffic(StatType::UserStat, "7").await, (up, down));

    // Another user comes live, is served and goes, while this one's download runs.
    let core = node.core();
    let stream = client.connect(origin.address).await.unwrap();
    let download = Download::start(stream).await.unwrap();
    panel
        .sync_user(users::user_with("8", &["in"], case.flow))
        .await
        .unwrap();
    let of_other = XrayClient::start(&for_user("8", &case.outbound));
    served(&of_other, &origin).await.unwrap();
    drop(of_other);
    panel
        .sync_user(users::user_with("8", &[], case.flow))
        .await
        .unwrap();
    let of_other = XrayClient::start(&for_user("8", &case.outbound));
    assert!(
        served(&of_other, &origin).await.is_err(),
        "the removed user is still served"
    );
    drop(of_other);
    assert!(download.end().await.unwrap() > 0);

    // A user who is removed and comes back live is served by the API alone: the same core.
    panel
        .sync_user(users::user_with("7", &[], case.flow))
        .await
        .unwrap();
    // A protocol that authenticates once per session refuses the next session: a new client.
    drop(client);
    let client = XrayClient::start(&case.outbound);
    assert!(
        served(&client, &origin).await.is_err(),
        "the removed user is still served"
    );
    drop(client);
    panel.sync_user(user).await.unwrap();
    let client = XrayClient::start(&case.outbound);
    served(&client, &origin).await.unwrap();
    assert_eq!(node.core(), core);
    assert!(node.stop().success());
    assert_eq!(node.cores(), Vec::<i32>::new());
}

/// The outbound of user 7 with another user's secrets in it.
fn for_user(email: &str, outbound: &Value) -> Value {
    let mut text = outbound.to_string();
    let secrets = |email: &str| {
        [
            users::id(email).to_string(),
            users::password(email),
            derived_key(email, 16),
            derived_key(email, 32),
        ]
    };
    for (old, new) in secrets("7").iter().zip(secrets(email)) {
        text = text.replace(old, &new);
    }
    serde_json::from_str(&text).unwrap()
}

/// The Shadowsocks 2022 key that a client derives from a password that is no key.
fn derived_key(email: &str, key_bytes: usize) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    STANDARD.encode(&Sha256::digest(users::password(email))[..key_bytes])
}

/// Whether this client's user gets through.
async fn served(client: &XrayClient, origin: &Origin) -> std::io::Result<()> {
    let attempt = async {
        let mut stream = client.connect(origin.address).await?;
        origin::exchange(&mut stream, 100, 100).await
    };
    match tokio::time::timeout(Duration::from_secs(5), attempt).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::other("no answer")),
    }
}

fn raw() -> Value {
    json!({ "network": "tcp" })
}

fn vless_settings() -> Value {
    json!({ "clients": [], "decryption": "none" })
}

#[tokio::test(flavor = "multi_thread")]
async fn vless_over_tcp() {
    let port = ports::free();
    let outbound = vless_outbound(port, users::id("7"));
    known_bytes_are_counted(case(
        port,
        "vless",
        &vless_settings(),
        &raw(),
        outbound,
        &raw(),
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vless_over_websocket() {
    let port = ports::free();
    let ws = json!({ "network": "ws", "wsSettings": { "path": "/ray" } });
    let outbound = vless_outbound(port, users::id("7"));
    // The panel's user has a flow that this transport can't carry: it must not keep him out.
    let case = Case {
        flow: "xtls-rprx-vision",
        ..case(port, "vless", &vless_settings(), &ws, outbound, &ws)
    };
    known_bytes_are_counted(case).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vless_with_vision_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(folder.path());
    let port = ports::free();
    let server =
        json!({ "network": "tcp", "security": "tls", "tlsSettings": tls_server(&cert, &key) });
    let client = json!({ "network": "tcp", "security": "tls", "tlsSettings": tls_client(&cert) });
    let mut outbound = vless_outbound(port, users::id("7"));
    outbound["settings"]["vnext"][0]["users"][0]["flow"] = json!("xtls-rprx-vision");
    let case = Case {
        flow: "xtls-rprx-vision",
        ..case(port, "vless", &vless_settings(), &server, outbound, &client)
    };
    known_bytes_are_counted(case).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vless_over_reality() {
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
    outbound["settings"]["vnext"][0]["users"][0]["flow"] = json!("xtls-rprx-vision");
    let case = case(port, "vless", &vless_settings(), &server, outbound, &client);
    known_bytes_are_counted(Case {
        flow: "xtls-rprx-vision",
        also: vec![borrowed],
        ..case
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vmess_over_tcp() {
    let port = ports::free();
    let outbound = json!({ "protocol": "vmess", "settings": { "vnext": [{
        "address": "127.0.0.1", "port": port, "users": [{ "id": users::id("7"), "security": "auto" }],
    }]}});
    known_bytes_are_counted(case(
        port,
        "vmess",
        &json!({ "clients": [] }),
        &raw(),
        outbound,
        &raw(),
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trojan_over_tls() {
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
    known_bytes_are_counted(case(
        port,
        "trojan",
        &json!({ "clients": [] }),
        &server,
        outbound,
        &client,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shadowsocks() {
    let port = ports::free();
    let outbound = server(
        "shadowsocks",
        &json!({
            "address": "127.0.0.1", "port": port, "method": SHADOWSOCKS_METHOD, "password": users::password("7"),
        }),
    );
    let settings = json!({ "clients": [], "network": "tcp,udp" });
    known_bytes_are_counted(case(
        port,
        "shadowsocks",
        &settings,
        &raw(),
        outbound,
        &raw(),
    ))
    .await;
}

async fn shadowsocks_2022(method: &str, key_bytes: usize) {
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
    known_bytes_are_counted(case(
        port,
        "shadowsocks",
        &settings,
        &raw(),
        outbound,
        &raw(),
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shadowsocks_2022_aes_128() {
    shadowsocks_2022("2022-blake3-aes-128-gcm", 16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shadowsocks_2022_aes_256() {
    shadowsocks_2022("2022-blake3-aes-256-gcm", 32).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hysteria() {
    if xray_version() < (26, 3, 23) {
        // An older core does not know it, and says so.
        let node = NodeProcess::start(NODE);
        let config = json!({ "inbounds": [inbound(ports::free(), "hysteria", &json!({ "clients": [] }), &json!({}))] });
        let error = Panel::of(&node).start(&config, &[]).await.unwrap_err();
        assert!(error.message().contains("hysteria"), "{error}");
        return;
    }
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
    known_bytes_are_counted(case(
        port, "hysteria", &settings, &server, outbound, &client,
    ))
    .await;
}
