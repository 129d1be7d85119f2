//! One panel's control: Start, Start again, takeover, silence, Stop.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic::Code;

use crate::NODE;
use crate::support::panel::backend;
use crate::support::users::numbered;
use crate::support::xray::{vless_config, vless_inbound};
use crate::support::{NodeProcess, Panel, eventually, ports};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_start_again_changes_nothing() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (config, users) = (vless_config(ports::free()), numbered(0..100, &["vless"]));
    let first = panel.start(&config, &users).await.unwrap();
    let core = node.core();
    assert!(first.started);
    assert_eq!(first.node_version, env!("CARGO_PKG_VERSION"));
    let (year, month, day) = crate::support::node::xray_version();
    assert_eq!(first.core_version, format!("{year}.{month}.{day}"));

    // The order of keys and users, and what the node leaves out anyway, make no difference.
    let mut same = json!({ "outbounds": config["outbounds"], "log": config["log"], "inbounds": config["inbounds"] });
    same["inbounds"][0]["settings"]["clients"] = json!([{ "id": "leftover" }]);
    let mut shuffled = users.clone();
    shuffled.reverse();
    let second = panel.start(&same, &shuffled).await.unwrap();
    assert_eq!(node.core(), core);
    assert_ne!(
        first.session_id, second.session_id,
        "each Start makes a session"
    );

    // Other users: told over the API.
    panel
        .start(&config, &numbered(50..150, &["vless"]))
        .await
        .unwrap();
    assert_eq!(node.core(), core);

    // Another config: another core.
    let mut other = config.clone();
    other["inbounds"]
        .as_array_mut()
        .unwrap()
        .push(vless_inbound("more", ports::free()));
    panel.start(&other, &users).await.unwrap();
    assert_ne!(node.core(), core);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_id_opens_until_another_panel_takes_over() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (config, users) = (vless_config(ports::free()), numbered(0..2, &["vless"]));
    let bearer =
        |session: &str| Panel::with(&node, &[("authorization", format!("Bearer {session}"))]);

    let first = bearer(&panel.start(&config, &users).await.unwrap().session_id);
    assert!(first.info().await.started);
    first.sync_all(&users).await.unwrap();

    let second = bearer(&panel.start(&config, &users).await.unwrap().session_id);
    let error = first.sync_all(&users).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    second.sync_all(&users).await.unwrap();

    second.stop().await.unwrap();
    assert_eq!(
        second.stop().await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(panel.info().await.session_id, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_the_core_and_everything_that_needs_it() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let before = panel.info().await;
    assert!(!before.started && !before.core_version.is_empty());
    panel
        .start(&vless_config(ports::free()), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    assert!(panel.info().await.started);
    panel.stop().await.unwrap();
    assert_eq!(node.cores(), Vec::<i32>::new());
    assert!(!panel.info().await.started);
    let error = panel.stop().await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unavailable, "backend not initialized")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_panel_loses_control_after_its_keep_alive() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let start = || {
        let mut start = backend(&vless_config(ports::free()), &numbered(0..2, &["vless"]));
        start.keep_alive = 2;
        start
    };
    panel.start_backend(start()).await.unwrap();
    let began = Instant::now();
    // Calls that succeed keep it; those that fail do not.
    let stranger = Panel::with(&node, &[("x-api-key", uuid::Uuid::new_v4().to_string())]);
    let mut silent = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        silent = Instant::now();
        panel.info().await;
        assert!(!node.cores().is_empty());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eventually("the core is stopped", || async {
        assert!(stranger.stop().await.is_err());
        node.cores().is_empty().then_some(())
    })
    .await;
    assert!(silent.elapsed() >= Duration::from_secs(2));
    let error = panel.stop().await.unwrap_err();
    assert_eq!(error.message(), "backend not initialized");

    // An open log is a panel that is there.
    panel.start_backend(start()).await.unwrap();
    let mut client = panel.client.clone();
    let log = client
        .get_logs(raynode::proto::service::Empty {})
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!node.cores().is_empty());
    drop(log);
    eventually("the core is stopped", || async {
        node.cores().is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_goes_on_when_its_caller_gives_up_and_the_repeat_joins_it() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let start = backend(
        &vless_config(ports::free()),
        &numbered(0..20_000, &["vless"]),
    );
    let hasty = tokio::time::timeout(
        Duration::from_millis(30),
        panel.start_backend(start.clone()),
    )
    .await;
    assert!(hasty.is_err(), "20,000 users take longer");
    // Meanwhile the node answers, and tells the truth.
    let asked = Instant::now();
    panel.info().await;
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert!(panel.start_backend(start).await.unwrap().started);
    node.core();
    assert_eq!(
        node.log().matches("core started").count(),
        1,
        "{}",
        node.log()
    );
}
