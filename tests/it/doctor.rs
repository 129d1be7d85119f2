//! `raynode doctor` finds what is wrong: each thing here is made wrong for real.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::NODE;
use crate::support::users::user;
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, ports, tricky};

/// What it finds: name and verdict of each thing that is not as it should be.
fn found(node: &NodeProcess) -> Vec<(String, String)> {
    let output = node.command(&["doctor", "--quiet", "--json"]);
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |one: &Value, of: &str| one[of].as_str().unwrap().to_owned();
    let findings: Vec<(String, String)> = findings
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            assert!(!text(one, "means").is_empty() && !text(one, "mend").is_empty());
            (text(one, "name"), text(one, "verdict"))
        })
        .collect();
    let fails = findings.iter().any(|(_, verdict)| verdict == "fail");
    assert_eq!(output.status.code(), Some(i32::from(fails)), "{findings:?}");
    findings
}

fn names(node: &NodeProcess) -> Vec<String> {
    found(node).into_iter().map(|(name, _)| name).collect()
}

fn has(node: &NodeProcess, name: &str) -> bool {
    names(node).iter().any(|found| found == name)
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_well_has_no_failing_line() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let users = [user("anna", &["vless"])];
    panel
        .start(&vless_config(ports::free()), &users)
        .await
        .unwrap();
    let fails: Vec<_> = found(&node)
        .into_iter()
        .filter(|(_, verdict)| verdict == "fail")
        .collect();
    assert_eq!(fails, []);
    let text = String::from_utf8(node.command(&["doctor"]).stdout).unwrap();
    for about in [
        "settings",
        "daemon",
        "folders",
        "disk",
        "key",
        "certificate",
        "ports",
        "xray",
        "clock",
        "limits",
        "kernel",
    ] {
        let mut lines = text.lines();
        assert!(lines.any(|line| line.contains(about)), "{about}: {text}");
    }

    let mut broken = vless_config(ports::free());
    broken["inbounds"][0]["protocol"] = "nonsense".into();
    panel.start(&broken, &users).await.unwrap_err();
    assert!(has(&node, "change-was-refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cost_connections_is_found_afterwards() {
    let node = NodeProcess::start_with(NODE, &[("HANDOVER", "off")]);
    let panel = Panel::of(&node);
    let mut config = vless_config(ports::free());
    panel.start(&config, &[]).await.unwrap();
    assert!(!has(&node, "core-was-restarted"));
    config["log"]["loglevel"] = "error".into();
    panel.start(&config, &[]).await.unwrap();
    assert!(has(&node, "core-was-restarted"));
}

#[test]
fn it_works_with_the_daemon_down() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    let fresh = names(&node);
    for name in [
        "daemon-is-down",
        "folder-is-missing",
        "certificate-is-missing",
    ] {
        assert!(fresh.iter().any(|found| found == name), "{fresh:?}");
    }
    node.launch();
    assert!(node.stop().success());
    assert!(!has(&node, "certificate-is-missing"));

    let state = node.folder().join("state");
    chmod(&state, 0o755);
    assert!(has(&node, "folder-is-open"));
    chmod(&state, 0o700);
    chmod(&state.join("certs/ssl_key.pem"), 0o644);
    assert!(has(&node, "file-is-open"));
    chmod(&state.join("certs/ssl_key.pem"), 0o600);

    let foreign = std::net::TcpListener::bind(("127.0.0.1", node.port)).unwrap();
    assert!(has(&node, "port-is-taken"));
    drop(foreign);
    assert!(!has(&node, "port-is-taken"));

    std::fs::write(state.join("certs/ssl_cert.pem"), "nonsense").unwrap();
    assert!(has(&node, "certificate-is-unusable"));

    node.set("XRAY_EXECUTABLE_PATH", "/no/such/xray");
    assert!(has(&node, "xray-is-missing"));
    let script = node.folder().join("xray");
    tricky::write_script(&script, "#!/bin/sh\necho no\n");
    node.set("XRAY_EXECUTABLE_PATH", script.to_str().unwrap());
    assert!(has(&node, "xray-does-not-run"));
    tricky::write_script(&script, "#!/bin/sh\necho Xray 25.6.8\n");
    assert!(has(&node, "xray-lacks-a-feature"));
    node.set("XRAY_ASSETS_PATH", "/no/such/folder");
    assert!(has(&node, "assets-are-missing"));

    node.set("STOP_GRACE", "soon");
    let wrong = found(&node);
    assert_eq!(wrong[0], ("setting-is-wrong".to_owned(), "fail".to_owned()));
}
