//! Stop and Start as panels send them: nearly every Start comes behind a Stop.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic::Code;

use crate::NODE;
use crate::support::panel::backend;
use crate::support::users::{id, numbered};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{Echo, NodeProcess, Panel, Streams, XrayClient, eventually, ports, times};

#[tokio::test(flavor = "multi_thread")]
async fn a_panel_that_reconnects_a_hundred_times_cuts_nobody() {
    let node = NodeProcess::start_with(NODE, &[("STOP_GRACE", "30s"), ("LOG_LEVEL", "info")]);
    let panel = Panel::of(&node);
    let (echo, port) = (Echo::start().await, ports::free());
    let (config, users) = (vless_config(port), numbered(0..50, &["vless"]));
    panel.start(&config, &users).await.unwrap();
    let client = XrayClient::start(&vless_outbound(port, id("0")));
    let streams = Streams::hold(&client, &echo, 1000).await;
    let core = node.core();
    for _ in 0..times(100, 1000) {
        panel.start(&config, &users).await.unwrap();
    }
    for round in 0..times(100, 1000) {
        panel.stop().await.unwrap();
        // Every call answers as after a Stop.
        if round % 10 == 0 {
            assert!(!panel.info().await.started);
            let error = panel.stop().await.unwrap_err();
            assert_eq!(
                (error.code(), error.message()),
                (Code::Unavailable, "backend not initialized")
            );
            let error = panel.sync_all(&users).await.unwrap_err();
            assert_eq!(error.message(), "backend not initialized");
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        panel.start(&config, &users).await.unwrap();
    }
    // Within two seconds, on connections of their own.
    for _ in 0..2 {
        Panel::of(&node).stop().await.unwrap();
        Panel::of(&node).start(&config, &users).await.unwrap();
    }
    assert_eq!(node.core(), core);
    let table = streams.end().await;
    assert_eq!(table.broken, 0, "{table:?}");
    println!("100 Starts, 100 times Stop and Start: {table:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panel_that_does_not_come_back_is_waited_for_and_then_not() {
    let node = NodeProcess::start_with(NODE, &[("STOP_GRACE", "2s")]);
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel
        .start(&config, &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let core = node.core();
    panel.stop().await.unwrap();
    let stopped = Instant::now();
    // A panel that tries and fails is still there, however long that goes on.
    let bad = json!({ "inbounds": [{ "protocol": "nosuch", "port": 1 }] });
    while stopped.elapsed() < Duration::from_secs(5) {
        panel.start(&bad, &[]).await.unwrap_err();
        panel.stop().await.unwrap_err();
        assert_eq!(node.core(), core);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let given_up = Instant::now();
    eventually("the core ends", || async {
        node.cores().is_empty().then_some(())
    })
    .await;
    assert!(
        given_up.elapsed() > Duration::from_millis(500),
        "{:?}",
        given_up.elapsed()
    );
    assert!(
        given_up.elapsed() < Duration::from_secs(5),
        "{:?}",
        given_up.elapsed()
    );
    panel.start(&config, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lingers_goes_on_lingering_under_the_next_daemon() {
    let mut node = NodeProcess::start_with(NODE, &[("STOP_GRACE", "4s")]);
    let panel = Panel::of(&node);
    let (config, users) = (vless_config(ports::free()), numbered(0..2, &["vless"]));
    panel.start(&config, &users).await.unwrap();
    let core = node.core();
    panel.stop().await.unwrap();
    let stopped = Instant::now();
    node.kill();
    node.launch();
    assert!(
        !Panel::of(&node).info().await.started,
        "the Stop still holds"
    );
    assert_eq!(node.core(), core);
    eventually("the core ends", || async {
        node.cores().is_empty().then_some(())
    })
    .await;
    let lingered = stopped.elapsed();
    assert!(
        lingered > Duration::from_millis(3500) && lingered < Duration::from_secs(8),
        "{lingered:?}"
    );
    // And it is not started again: a panel has stopped it.
    node.kill();
    node.launch();
    assert_eq!(node.cores(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_sigterm_end_the_core_at_once() {
    let mut node = NodeProcess::start_with(NODE, &[("STOP_GRACE", "1h")]);
    let panel = Panel::of(&node);
    let mut start = backend(&vless_config(ports::free()), &[]);
    start.keep_alive = 2;
    panel.start_backend(start.clone()).await.unwrap();
    let silent = Instant::now();
    eventually("the keep-alive is over", || async {
        node.cores().is_empty().then_some(())
    })
    .await;
    assert!(silent.elapsed() < Duration::from_secs(6));
    panel.start_backend(start).await.unwrap();
    panel.stop().await.unwrap();
    node.core();
    assert!(node.stop().success());
    assert_eq!(node.cores(), Vec::<i32>::new());
}
