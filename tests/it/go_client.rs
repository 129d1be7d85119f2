//! A panel on grpc-go and on Go's net/http, and the tool that people try a gRPC service with.

#![allow(
    clippy::print_stderr,
    reason = "what a client said is shown when its test fails"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use base64::Engine as _;
use raynode::proto::SERVICE_DESCRIPTORS;
use serde_json::{Value, json};

use crate::NODE;
use crate::support::users::{id, numbered};
use crate::support::xray::vless_config;
use crate::support::{Echo, NodeProcess, Panel, eventually, ports, script, times, vless};

/// It gives up by itself before.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program of `tests/go`.
fn client(name: &str) -> Option<PathBuf> {
    Some(script::named("RAYNODE_TEST_GO_CLIENTS")?.join(name))
}

async fn drive(transport: &str) {
    let Some(bridge) = client("bridge") else {
        return;
    };
    let node = NodeProcess::start(NODE);
    let users: Vec<Value> = (1..=5000)
        .map(|number| {
            let email = number.to_string();
            json!({ "email": email, "proxies": { "vless": { "id": id(&email) } }, "inbounds": ["vless"] })
        })
        .collect();
    let setup = json!({
        "transport": transport,
        "address": format!("127.0.0.1:{}", node.port),
        "key": node.api_key,
        "certificate": std::fs::read_to_string(node.certificate()).unwrap(),
        "descriptors": base64::engine::general_purpose::STANDARD.encode(SERVICE_DESCRIPTORS),
        "config": vless_config(ports::free()).to_string(),
        "node_version": env!("CARGO_PKG_VERSION"),
        "users": users,
    });
    let log = node.folder().join("drive.log");
    let what = format!("the panel in Go over {transport}");
    script::run(&bridge, &[], &setup, &log, PATIENCE, &what).await;
    assert!(node.cores().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panel_in_go_over_grpc() {
    drive("grpc").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panel_in_go_over_rest() {
    drive("rest").await;
}

fn ask(grpcurl: &Path, node: &NodeProcess, key: Option<String>, arguments: &[&str]) -> Output {
    let mut command = Command::new(grpcurl);
    command
        .args(["-max-time", "10", "-cacert"])
        .arg(node.certificate());
    if let Some(key) = key {
        command.args(["-H", &format!("x-api-key: {key}")]);
    }
    // The address goes before what is asked of it, and flags before the address.
    let (flags, rest) = arguments.split_at(
        arguments
            .iter()
            .take_while(|word| word.starts_with('-'))
            .count(),
    );
    command
        .args(flags)
        .arg(format!("127.0.0.1:{}", node.port))
        .args(rest);
    command.output().unwrap()
}

#[test]
fn grpcurl_finds_its_way_around() {
    let Some(grpcurl) = client("grpcurl") else {
        return;
    };
    let node = NodeProcess::start(NODE);
    let run = |key, arguments: &[&str]| ask(&grpcurl, &node, key, arguments);
    let said = |arguments: &[&str]| {
        let output = run(Some(node.api_key.to_string()), arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let services = said(&["list"]);
    for service in [
        "service.NodeService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    ] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    assert!(
        said(&["describe", "service.NodeService.AddRoutingRule"]).contains("AddRoutingRuleRequest")
    );
    assert!(said(&["service.NodeService/GetBaseInfo"]).contains("coreVersion"));
    assert!(said(&["grpc.health.v1.Health/Check"]).contains("SERVING"));
    assert!(
        said(&[
            "-d={\"service\":\"service.NodeService\"}",
            "grpc.health.v1.Health/Check"
        ])
        .contains("NOT_SERVING")
    );
    // Nobody looks around without a key.
    let output = run(None, &["list"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && error.contains("missing x-api-key header"),
        "{error}"
    );
}

/// grpc-go answers PINGs from another thread than the one that gets the reply; and this one ends with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_with_its_report_has_it() {
    let Some(grpcurl) = client("grpcurl") else {
        return;
    };
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    panel
        .start(&vless_config(inbound), &numbered(0..30, &["vless"]))
        .await
        .unwrap();
    let rounds = times(5, 100);
    for _ in 0..rounds {
        for user in 0..30 {
            let user = id(&user.to_string());
            vless::echo(inbound, user, echo.address, 50).await.unwrap();
        }
        let key = Some(node.api_key.to_string());
        let reset = [
            r#"-d={"type": "UsersStat", "reset": true}"#,
            "service.NodeService/GetStats",
        ];
        let output = ask(&grpcurl, &node, key, &reset);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["stats"].as_array().unwrap().len(), 60, "{said}");
    }
    eventually("the verdicts", || async {
        let log = node.log();
        assert!(!log.contains("it comes again"), "{log}");
        (log.matches("usage arrived").count() == rounds).then_some(())
    })
    .await;
}
