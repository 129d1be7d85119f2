//! Bad input: each gets its code and text, and changes nothing.

use std::time::{Duration, Instant};

use raynode::panel::wire::Backend;
use raynode::proto::service::StatType;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use uuid::Uuid;

use crate::NODE;
use crate::support::users::{numbered, user};
use crate::support::xray::{freedom, vless_config, vless_inbound};
use crate::support::{NodeProcess, Panel, ports};

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_right_key_is_told_why() {
    let node = NodeProcess::start(NODE);
    for (headers, code, text) in [
        (vec![], Code::Unauthenticated, "missing x-api-key header"),
        (
            vec![("x-api-key", "hunter2".to_owned())],
            Code::InvalidArgument,
            "invalid api key format: must be a valid UUID",
        ),
        (
            vec![("x-api-key", Uuid::new_v4().to_string())],
            Code::PermissionDenied,
            "api key mismatch",
        ),
        (
            vec![("x-api-key", Uuid::nil().to_string())],
            Code::PermissionDenied,
            "api key mismatch",
        ),
    ] {
        let panel = Panel::with(&node, &headers);
        for error in [
            panel.stop().await.unwrap_err(),
            panel.start(&vless_config(1), &[]).await.unwrap_err(),
            panel.sync_user(user("1", &[])).await.unwrap_err(),
        ] {
            assert_eq!((error.code(), error.message()), (code, text));
        }
    }
    let braced = node.api_key.braced().to_string().to_uppercase();
    assert!(
        !Panel::with(&node, &[("x-api-key", braced)])
            .info()
            .await
            .started
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_start_everything_else_is_unavailable() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let mut client = panel.client.clone();
    let empty = || raynode::proto::service::Empty {};
    let named = || raynode::proto::service::StatRequest {
        name: "1".to_owned(),
        ..Default::default()
    };
    for error in [
        panel.stop().await.unwrap_err(),
        panel.sync_user(user("1", &["vless"])).await.unwrap_err(),
        panel.sync_all(&[]).await.unwrap_err(),
        panel
            .sync_chunked(&numbered(0..3, &["vless"]), 2)
            .await
            .unwrap_err(),
        panel
            .stats(StatType::UsersStat, "", true)
            .await
            .unwrap_err(),
        client.get_backend_stats(empty()).await.unwrap_err(),
        client.get_system_stats(empty()).await.unwrap_err(),
        client.get_logs(empty()).await.map(drop).unwrap_err(),
        client.get_user_online_stats(named()).await.unwrap_err(),
        client
            .get_user_online_ip_list_stats(named())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(
            (error.code(), error.message()),
            (Code::Unavailable, "backend not initialized")
        );
    }
    let request = raynode::proto::service::LatencyRequest::default();
    assert!(
        client
            .get_outbounds_latency(request)
            .await
            .unwrap()
            .into_inner()
            .latencies
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_can_not_run_leaves_the_running_core_alone() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let port = ports::free();
    let good = vless_config(port);
    panel
        .start(&good, &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let core = node.core();

    let mut unknown = good.clone();
    unknown["inbounds"][0]["protocol"] = json!("nosuch");
    let mut twice = good.clone();
    twice["inbounds"]
        .as_array_mut()
        .unwrap()
        .push(vless_inbound("vless", ports::free()));
    let cases = [
        ("{ not json".to_owned(), "the config is not valid JSON"),
        ("null".to_owned(), "the config is not a JSON object"),
        (unknown.to_string(), "unknown config id: nosuch"),
        (twice.to_string(), "existing tag found: vless"),
    ];
    for (config, reason) in cases {
        let start = Backend {
            config,
            ..Backend::default()
        };
        let error = panel.start_backend(start).await.unwrap_err();
        assert_eq!(error.code(), Code::Unknown, "{error}");
        assert!(
            error.message().lines().next().unwrap().contains(reason),
            "{error}"
        );
        assert_eq!(node.core(), core);
        assert!(panel.info().await.started);
    }
    // Bad users refuse the Start just so.
    let mut bad = user("bad", &["vless"]);
    bad.proxies.as_mut().unwrap().vless.as_mut().unwrap().id = "x".to_owned();
    let error = panel.start(&good, &[bad]).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::Unknown,
            "user bad: inbound \"vless\": the vless id is not a UUID"
        )
    );
    let error = panel
        .start(&good, &[user("", &["vless"])])
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unknown, "email is required")
    );
    assert_eq!(node.core(), core);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_somebody_else_has_is_named_and_the_last_config_serves_on() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = vless_config(foreign.local_addr().unwrap().port());

    // With nothing running: refused, nothing runs.
    let error = panel.start(&taken, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    assert!(
        error
            .message()
            .lines()
            .next()
            .unwrap()
            .contains("address already in use"),
        "{error}"
    );
    assert!(node.cores().is_empty() && !panel.info().await.started);

    // With a core running: refused, and the old config serves again.
    let port = ports::free();
    panel
        .start(&vless_config(port), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let error = panel.start(&taken, &[]).await.unwrap_err();
    assert!(
        error
            .message()
            .lines()
            .next()
            .unwrap()
            .contains("address already in use"),
        "{error}"
    );
    assert!(panel.info().await.started);
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    node.core();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_xray_is_named() {
    let node = NodeProcess::start_with(NODE, &[("XRAY_EXECUTABLE_PATH", "/nonexistent/xray")]);
    let panel = Panel::of(&node);
    let error = panel
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unknown);
    let text = error.message();
    assert!(
        text.contains("/nonexistent/xray") && text.contains("No such file"),
        "{text}"
    );
    let info = panel.info().await;
    assert!(!info.started && info.core_version.is_empty());

    let node = NodeProcess::start_with(NODE, &[("XRAY_EXECUTABLE_PATH", "/bin/true")]);
    let error = Panel::of(&node)
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap_err();
    assert!(
        error.message().contains("does not print what xray prints"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn other_backends_are_refused() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    for (kind, code) in [(1, Code::Unimplemented), (7, Code::InvalidArgument)] {
        let start = Backend {
            r#type: kind,
            config: "{}".to_owned(),
            ..Backend::default()
        };
        assert_eq!(panel.start_backend(start).await.unwrap_err().code(), code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_what_is_not_there() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    for (kind, text) in [
        (StatType::UserStat, "email required"),
        (StatType::Inbound, "tag required"),
        (StatType::Outbound, "tag required"),
    ] {
        let error = panel.stats(kind, "", false).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unknown, text));
        assert!(panel.stats(kind, "nobody", true).await.unwrap().is_empty());
    }
    let mut client = panel.client.clone();
    let request = raynode::proto::service::StatRequest {
        r#type: 77,
        ..Default::default()
    };
    let error = client.get_stats(request).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unknown, "not implemented stat type")
    );

    let named = |name: &str| raynode::proto::service::StatRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    for error in [
        client
            .get_user_online_stats(named("nobody"))
            .await
            .unwrap_err(),
        client
            .get_user_online_ip_list_stats(named("nobody"))
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.code(), Code::NotFound);
        assert!(error.message().ends_with("not found."), "{error}");
    }
    let error = client.get_user_online_stats(named("")).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unknown, "email required")
    );

    let request = raynode::proto::service::LatencyRequest::default();
    let error = client.get_outbounds_latency(request).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unknown, "xray outbound latency is not available")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_may_have_64_mib_and_not_a_byte_more() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let padded = |bytes: usize| {
        let mut start = Backend {
            config: "x".repeat(bytes),
            ..Backend::default()
        };
        let excess = prost::Message::encoded_len(&start) - bytes;
        start.config.truncate(bytes - excess);
        start
    };
    // It fits, and is no JSON.
    let error = panel.start_backend(padded(64 << 20)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unknown, "{error}");
    let error = panel.start_backend(padded(65 << 20)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(!panel.info().await.started);
    // What it took is given back.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(node.memory_kib() < 100 << 10, "{} KiB", node.memory_kib());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_client_that_says_nothing_is_let_go() {
    let node = NodeProcess::start(NODE);
    let mut silent = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    let began = Instant::now();
    let mut byte = [0];
    let end = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut byte)).await;
    assert_eq!(end.expect("the connection is closed").unwrap_or(0), 0);
    assert!(
        began.elapsed() >= Duration::from_secs(5),
        "an honest client may take a while"
    );
    assert!(!Panel::of(&node).info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_secrets_open_nothing() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let inbound = |tag: &str, protocol: &str, settings: serde_json::Value| json!({ "tag": tag, "listen": "127.0.0.1", "port": ports::free(), "protocol": protocol, "settings": settings });
    let config = json!({
        "inbounds": [
            inbound("trojan", "trojan", json!({})),
            inbound("vless", "vless", json!({ "decryption": "none" })),
            inbound("vmess", "vmess", json!({})),
        ],
        "outbounds": [freedom()],
    });
    let mut empty = user("1", &["trojan", "vless", "vmess"]);
    let proxies = empty.proxies.as_mut().unwrap();
    proxies.trojan.as_mut().unwrap().password.clear();
    proxies.vless.as_mut().unwrap().id.clear();
    proxies.vmess.as_mut().unwrap().id = "not a uuid".to_owned();
    // Two of them: were they given accounts, they would share their secrets and be refused.
    let other = raynode::proto::service::User {
        email: "2".to_owned(),
        ..empty.clone()
    };
    panel
        .start(&config, &[empty.clone(), other.clone()])
        .await
        .unwrap();
    panel.sync_all(&[other, empty]).await.unwrap();
    node.core();
}
