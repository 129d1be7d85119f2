//! Two hundred configurations with something wrong in them: none takes the node down.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::NODE;
use crate::support::users::{id, numbered};
use crate::support::xray::{freedom, vless_inbound, vless_outbound};
use crate::support::{Echo, NodeProcess, Panel, Streams, XrayClient, ports, times};

/// Every place in a value, as JSON pointers.
fn places(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                places(value, &format!("{at}/{key}"), into);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                places(value, &format!("{at}/{index}"), into);
            }
        }
        _ => {}
    }
}

/// What became of them.
#[derive(Debug, Default)]
struct Counts {
    refused: u32,
    late: u32,
    accepted: u32,
    /// The longest that nobody was served because of one that failed late.
    longest: Duration,
    /// Connections that ended.
    broken: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_mutated_configurations_take_nothing_down() {
    let counts = mutated_configurations("off", 200).await;
    println!("one core after the other: {counts:?}");
    assert!(
        counts.refused > 20 && counts.accepted > 20 && counts.late > 0,
        "{counts:?}"
    );
    assert!(counts.longest < Duration::from_secs(3), "{counts:?}");
}

/// Where a second core is started beside the first one, what fails late costs nothing, either.
#[tokio::test(flavor = "multi_thread")]
async fn mutated_configurations_cut_nobody() {
    let counts = mutated_configurations("auto", times(12, 200)).await;
    println!("one core beside the other: {counts:?}");
    assert!(counts.accepted > 1, "{counts:?}");
    assert_eq!((counts.broken, counts.late), (0, 0), "{counts:?}");
}

async fn mutated_configurations(handover: &str, count: usize) -> Counts {
    let node = NodeProcess::start_with(NODE, &[("LOG_LEVEL", "info"), ("HANDOVER", handover)]);
    let panel = Panel::of(&node);
    let (echo, port) = (Echo::start().await, ports::free());
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap().port();
    let mut trojan = vless_inbound("trojan", ports::free());
    trojan["protocol"] = json!("trojan");
    trojan["settings"] = json!({ "clients": [], "fallbacks": [{ "dest": 80 }] });
    let config = json!({
        "log": { "loglevel": "warning", "access": "none" },
        "inbounds": [vless_inbound("vless", port), trojan],
        "outbounds": [freedom(), { "tag": "block", "protocol": "blackhole" }],
        "routing": { "domainStrategy": "AsIs", "rules": [{ "domain": ["full:a.example"], "outboundTag": "block" }] },
        "policy": { "levels": { "0": { "handshake": 4 } } },
        "dns": { "servers": ["127.0.0.1"] },
    });
    let users = numbered(0..5, &["vless", "trojan"]);
    panel.start(&config, &users).await.unwrap();
    let client = XrayClient::start(&vless_outbound(port, id("0")));
    let mut streams = Streams::hold(&client, &echo, 50).await;
    let mut core = node.core();

    let mut all = Vec::new();
    places(&config, "", &mut all);
    // The same two hundred each time.
    let seed = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut random = TestRunner::new_with_rng(Config::default(), seed);
    let junk = prop_oneof![
        Just(Value::Null),
        Just(json!(-1)),
        Just(json!(70_000)),
        Just(json!(taken)),
        Just(json!("nonsense")),
        Just(json!("")),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null])),
        Just(json!({ "x": { "y": 1 } })),
        Just(json!(true)),
        Just(json!(1.5)),
    ];
    let mutation = (0..all.len(), junk);
    let mut counts = Counts::default();
    for _ in 0..count {
        let (place, junk) = mutation.new_tree(&mut random).unwrap().current();
        let mut mutated = config.clone();
        *mutated.pointer_mut(&all[place]).unwrap() = junk.clone();
        let what = format!("{} = {junk}", all[place]);
        let began = Instant::now();
        match panel.start(&mutated, &users).await {
            Err(_) if node.core() == core => {
                counts.refused += 1;
                assert_eq!(streams.broken(), 0, "{what}");
            }
            Err(status) => {
                // Only the start itself could show it: what served before serves again.
                counts.late += 1;
                counts.longest = counts.longest.max(began.elapsed());
                assert!(panel.info().await.started, "{what}: {status}");
            }
            Ok(_) => {
                counts.accepted += 1;
                assert!(panel.info().await.started, "{what}");
            }
        }
        let now = node.core();
        if now != core {
            panel.start(&config, &users).await.unwrap();
            if node.draining().is_empty() {
                drop(streams.end().await);
                streams = Streams::hold(&client, &echo, 50).await;
            }
            counts.broken += streams.broken();
            core = node.core();
        }
    }
    assert_eq!(streams.end().await.broken, 0);
    assert!(panel.start(&config, &users).await.unwrap().started);
    counts
}
