//! The panel's own client library, unmodified, drives the node through every call it has over gRPC.

use std::time::Duration;

use serde_json::json;

use crate::NODE;
use crate::support::node::xray_version;
use crate::support::users;
use crate::support::xray::{vless_clients, vless_config, vless_inbound};
use crate::support::{NodeProcess, Origin, Panel, ports, script};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/drive.py");
const LEAVING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/leaving.py");
/// The script gives up by itself before.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_on_its_way_comes_before_the_goodbye() {
    let Some(interpreter) = script::python() else {
        return;
    };
    for _ in 0..4 {
        let mut node = NodeProcess::start(NODE);
        let panel = Panel::of(&node);
        panel
            .start(&vless_config(ports::free()), &[])
            .await
            .unwrap();
        let setup = json!({
            "port": node.port,
            "api_key": node.api_key,
            "certificate": std::fs::read_to_string(node.certificate()).unwrap(),
            "node": node.pid(),
            "core": node.core(),
        });
        let log = node.folder().join("leaving.log");
        script::run(
            &interpreter,
            &["-u", LEAVING],
            &setup,
            &log,
            PATIENCE,
            "a client of a node that leaves",
        )
        .await;
        assert!(node.stop_asked().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_panels_own_client_gets_what_it_expects() {
    let Some(interpreter) = script::python() else {
        return;
    };
    let mut node = NodeProcess::start(NODE);
    let origin = Origin::start().await;
    let (managed, excluded) = (ports::free(), ports::free());
    let mut config = vless_config(managed);
    config["log"] = json!({ "loglevel": "info" });
    let mut fixed = vless_inbound("fixed", excluded);
    fixed["settings"]["clients"] = json!([{ "email": "own", "id": users::id("own") }]);
    config["inbounds"].as_array_mut().unwrap().push(fixed);

    let (_clients, described) = vless_clients([("1", managed), ("2", managed), ("own", excluded)]);
    let (year, month, day) = xray_version();
    let setup = json!({
        "port": node.port,
        "api_key": node.api_key,
        "certificate": std::fs::read_to_string(node.certificate()).unwrap(),
        "node_version": env!("CARGO_PKG_VERSION"),
        "core_version": format!("{year}.{month}.{day}"),
        "config": config,
        "inbound": "vless",
        "excluded": "fixed",
        "outbound": "direct",
        "origin": origin.address.port(),
        "clients": described,
    });

    let log = node.folder().join("drive.log");
    script::run(
        &interpreter,
        &["-u", SCRIPT],
        &setup,
        &log,
        PATIENCE,
        "the panel's client",
    )
    .await;
    assert!(node.stop().success());
    assert!(node.cores().is_empty());
}
