//! Two hundred configurations with something wrong in them: none takes the node down.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};

use crate::NODE;
use crate::support::users::{id, numbered};
use crate::support::xray::{freedom, vless_inbound, vless_outbound};
use crate::support::{Echo, NodeProcess, Panel, Streams, XrayClient, eventually, ports};

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

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_mutated_configurations_take_nothing_down() {
    let node = NodeProcess::start_with(NODE, &[("LOG_LEVEL", "info")]);
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
    let (mut refused, mut late, mut accepted) = (0, 0, 0);
    let mut longest = Duration::ZERO;
    for _ in 0..200 {
        let (place, junk) = mutation.new_tree(&mut random).unwrap().current();
        let mut mutated = config.clone();
        *mutated.pointer_mut(&all[place]).unwrap() = junk.clone();
        let what = format!("{} = {junk}", all[place]);
        let began = Instant::now();
        match panel.start(&mutated, &users).await {
            Err(_) if node.core() == core => {
                refused += 1;
                assert_eq!(streams.broken(), 0, "{what}");
            }
            Err(status) => {
                // Only the start itself could show it: what served before serves again.
                late += 1;
                longest = longest.max(began.elapsed());
                assert!(panel.info().await.started, "{what}: {status}");
            }
            Ok(_) => {
                accepted += 1;
                assert!(panel.info().await.started, "{what}");
            }
        }
        let now = eventually("one core", || async {
            match node.cores().as_slice() {
                [core] => Some(*core),
                _ => None,
            }
        })
        .await;
        if now != core {
            panel.start(&config, &users).await.unwrap();
            drop(streams.end().await);
            streams = Streams::hold(&client, &echo, 50).await;
            core = node.core();
        }
    }
    println!(
        "of 200 configurations {refused} were refused at no cost, {late} failed late (served again within {longest:?}), {accepted} ran"
    );
    assert!(
        refused > 20 && accepted > 20 && late > 0,
        "{refused} {late} {accepted}"
    );
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    assert_eq!(streams.end().await.broken, 0);
    assert!(panel.start(&config, &users).await.unwrap().started);
}
