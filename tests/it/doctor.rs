//! `raynode doctor` finds what is wrong: each thing here is made wrong for real.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::NODE;
use crate::support::users::user;
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, eventually, ports, tricky};

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

/// Asks for some seconds.
fn in_the_end(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 10 s");
        std::thread::sleep(Duration::from_millis(50));
    }
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
fn what_is_written_and_not_in_force_is_found() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    let file = node.folder().join("raynode.env");
    std::fs::write(&file, "DRAIN_TIMEOUT=1h\nLOG_BUFFER_SIZE=100\n").unwrap();
    node.unset("DRAIN_TIMEOUT");
    node.unset("LOG_BUFFER_SIZE");
    node.set("RAYNODE_SETTINGS", file.to_str().unwrap());
    node.launch();
    let waiting = || {
        let output = node.command(&["doctor", "--quiet", "--json"]);
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let waiting = findings
            .iter()
            .filter(|one| one["name"] == "setting-is-not-in-force");
        let mends: Vec<String> = waiting
            .map(|one| one["mend"].as_str().unwrap().to_owned())
            .collect();
        mends
    };
    assert_eq!(waiting(), [""; 0]);
    assert!(!has(&node, "settings-are-another-nodes"));
    let elsewhere = node
        .prepared(&["doctor", "--quiet", "--json"])
        .env("RAYNODE_SETTINGS", "/dev/null")
        .output()
        .unwrap();
    let text = String::from_utf8(elsewhere.stdout).unwrap();
    assert!(text.contains("this command /dev/null"), "{text}");
    std::fs::write(&file, "DRAIN_TIMEOUT=2h\nLOG_BUFFER_SIZE=200\n").unwrap();
    let shown = String::from_utf8(node.command(&["config", "show"]).stdout).unwrap();
    assert!(shown.contains("DRAIN_TIMEOUT is 2h in the file"), "{shown}");
    assert_eq!(waiting().len(), 2);
    assert!(node.command(&["reload"]).status.success());
    in_the_end(|| waiting() == ["raynode restart"]);
}

#[test]
fn a_daemon_that_hangs_is_told_from_one_that_is_not_there() {
    let node = NodeProcess::start(NODE);
    node.signal(Signal::SIGSTOP);
    let status = node.prepared(&["status"]).output();
    assert!(has(&node, "daemon-hangs"));
    let failed = status.unwrap();
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let text = String::from_utf8(failed.stderr).unwrap();
    assert!(text.contains("does not answer in time"), "{text}");
    let quiet = node.command(&["status", "--quiet"]);
    assert_eq!((quiet.status.code(), quiet.stderr), (Some(1), Vec::new()));
    node.signal(Signal::SIGCONT);
    assert!(!has(&node, "daemon-hangs"));
}

#[test]
fn who_may_not_ask_the_daemon_is_told_so() {
    let mut node = NodeProcess::start(NODE);
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    // Somebody who may look at everything but the daemon's socket.
    let binary = node.folder().join("raynode");
    std::fs::copy(NODE, &binary).unwrap();
    node.be(&binary);
    chmod(node.folder(), 0o755);
    let as_another = |arguments: &[&str]| {
        let mut command = node.prepared(arguments);
        command.uid(12345).gid(12345).output().unwrap()
    };
    let output = as_another(&["status"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("as root or as the node's user"), "{text}");
    let output = as_another(&["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("may not be asked"), "{text}");
    // Nothing is said of what only the node may look at.
    for about in ["folders", "certificate"] {
        let lines = text.lines().filter(|line| line.contains(about));
        let found: Vec<_> = lines.filter(|line| !line.starts_with(' ')).collect();
        assert!(!found.is_empty(), "{about}: {text}");
        for line in found {
            assert!(line.starts_with("warn"), "{line}");
        }
    }
    assert!(text.contains("can't be looked at"), "{text}");
}

/// What the node's user has put in the place of its core may not run as root.
#[test]
fn root_runs_the_nodes_core_as_the_nodes_user() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can be somebody else");
        return;
    }
    let mut node = NodeProcess::prepare(NODE, &[]);
    node.unset("XRAY_EXECUTABLE_PATH");
    let state = node.folder().join("state");
    let core = state.join("cores/1.2.3");
    std::fs::create_dir_all(&core).unwrap();
    std::os::unix::fs::symlink("1.2.3", state.join("cores/current")).unwrap();
    let who = node.folder().join("who");
    std::fs::write(&who, "").unwrap();
    chmod(&who, 0o666);
    // Not the file's owner counts, who may be root, but the folder's.
    let script = format!("#!/bin/sh\nid -u > {}\necho Xray 26.3.27\n", who.display());
    tricky::write_script(&core.join("xray"), &script);
    chmod(node.folder(), 0o755);
    for path in [&state, &state.join("cores"), &core] {
        std::os::unix::fs::chown(path, Some(12345), Some(12345)).unwrap();
    }
    std::fs::write(state.join("config.json"), "{}").unwrap();
    for arguments in [
        &["doctor"][..],
        &["core", "list"],
        &["config", "check", "config.json"],
    ] {
        std::fs::write(&who, "").unwrap();
        let mut command = node.prepared(arguments);
        command.current_dir(&state).output().unwrap();
        let ran_as = std::fs::read_to_string(&who).unwrap();
        assert_eq!(ran_as.trim(), "12345", "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_is_silent_is_found() {
    let node = NodeProcess::start_with(NODE, &[("HARVEST_INTERVAL", "100ms")]);
    let panel = Panel::of(&node);
    let users = [user("anna", &["vless"])];
    let config = vless_config(ports::free());
    panel.start(&config, &users).await.unwrap();
    assert!(!has(&node, "core-is-silent"));
    let core = nix::unistd::Pid::from_raw(node.core());
    nix::sys::signal::kill(core, Signal::SIGSTOP).unwrap();
    let listed = node.command(&["users", "list"]);
    assert!(listed.status.success(), "{listed:?}");
    eventually("it is found", || async {
        has(&node, "core-is-silent").then_some(())
    })
    .await;
    nix::sys::signal::kill(core, Signal::SIGCONT).ok();
}

#[test]
fn metrics_that_another_program_keeps_out_are_found() {
    let foreign = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = foreign.local_addr().unwrap().to_string();
    let node = NodeProcess::start_with(NODE, &[("METRICS_LISTEN", &address)]);
    assert!(has(&node, "metrics-are-not-served"));

    let address = format!("127.0.0.1:{}", ports::free());
    let node = NodeProcess::start_with(NODE, &[("METRICS_LISTEN", &address)]);
    in_the_end(|| !has(&node, "metrics-are-not-served"));
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

    let foreign = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = foreign.local_addr().unwrap().to_string();
    node.set("METRICS_LISTEN", &address);
    assert!(has(&node, "metrics-are-not-served"));
    drop(foreign);
    assert!(!has(&node, "metrics-are-not-served"));

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

    let file = node.folder().join("raynode.env");
    std::fs::write(&file, "SERVCE_PORT=1\nSTATE_DIR=/elsewhere\n").unwrap();
    node.set("RAYNODE_SETTINGS", file.to_str().unwrap());
    let output = node.command(&["doctor", "--quiet", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("SERVCE_PORT in "), "{text}");
    assert!(!text.contains("STATE_DIR in "), "{text}");

    node.set("STOP_GRACE", "soon");
    let wrong = found(&node);
    assert_eq!(wrong[0], ("setting-is-wrong".to_owned(), "fail".to_owned()));
}
