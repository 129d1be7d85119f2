//! SIGUSR2 at bad moments: with a binary or settings that can't be used, with other ports, with a stop on
//! its heels.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::NODE;
use crate::support::users::numbered;
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, eventually, ports};

async fn started(node: &NodeProcess) -> Panel {
    let panel = Panel::of(node);
    panel
        .start(&vless_config(ports::free()), &numbered(0..3, &["vless"]))
        .await
        .unwrap();
    panel
}

async fn said(node: &NodeProcess, text: &str, times: usize) {
    eventually(text, || async {
        (node.log().matches(text).count() >= times).then_some(())
    })
    .await;
}

fn put(script: &str, at: &Path) {
    let fresh = at.with_extension("fresh");
    std::fs::write(&fresh, script).unwrap();
    std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&fresh, at).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_take_over_changes_nothing_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("raynode");
    std::fs::copy(NODE, &binary).unwrap();
    let mut node = NodeProcess::start(&binary);
    let panel = started(&node).await;
    let core = node.core();
    // One that hangs: the node answers meanwhile.
    put("#!/bin/sh\nexec sleep 60\n", &binary);
    node.signal(Signal::SIGUSR2);
    for _ in 0..20 {
        let asked = Instant::now();
        assert!(panel.info().await.started);
        assert!(asked.elapsed() < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    said(&node, "can't take over", 1).await;
    put("#!/bin/sh\necho not me\n", &binary);
    node.signal(Signal::SIGUSR2);
    said(&node, "can't take over", 2).await;
    // A mistake in the settings.
    let fresh = folder.path().join("fresh");
    std::fs::copy(NODE, &fresh).unwrap();
    std::fs::rename(&fresh, &binary).unwrap();
    std::fs::write(node.folder().join(".env"), "BODY_TIMEOUT=banana\n").unwrap();
    node.signal(Signal::SIGUSR2);
    said(&node, "can't take over", 3).await;
    assert!(node.log().contains("BODY_TIMEOUT is"), "{}", node.log());
    assert!(panel.info().await.started);
    assert_eq!(node.core(), core);
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_somebody_else_has_is_found_before_it_is_too_late() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    node.unset("API_PORT");
    let settings = node.folder().join(".env");
    std::fs::write(&settings, "API_PORT=0\n").unwrap();
    node.launch();
    let panel = started(&node).await;
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap().port();
    std::fs::write(&settings, format!("API_PORT={taken}\n")).unwrap();
    node.signal(Signal::SIGUSR2);
    said(&node, "can't take over", 1).await;
    assert!(
        node.log().contains("Address already in use"),
        "{}",
        node.log()
    );
    assert!(panel.info().await.started);
    // Its own port is no obstacle.
    std::fs::write(&settings, "API_PORT=0\n").unwrap();
    node.signal(Signal::SIGUSR2);
    said(&node, "took over the core that was running", 1).await;
    assert!(Panel::of(&node).info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_ports_are_taken_and_the_old_ones_are_closed() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    let (old, new, buttons) = (node.port, ports::free(), ports::free());
    let settings = node.folder().join(".env");
    for name in ["SERVICE_PORT", "API_PORT", "NODE_HOST"] {
        node.unset(name);
    }
    std::fs::write(
        &settings,
        format!("NODE_HOST=127.0.0.1\nSERVICE_PORT={old}\nAPI_PORT={buttons}\n"),
    )
    .unwrap();
    node.launch();
    started(&node).await;
    let core = node.core();
    std::fs::write(
        &settings,
        format!("NODE_HOST=127.0.0.1\nSERVICE_PORT={new}\nAPI_PORT=0\n"),
    )
    .unwrap();
    node.signal(Signal::SIGUSR2);
    eventually("the new port", || async {
        std::net::TcpStream::connect(("127.0.0.1", new)).ok()
    })
    .await;
    node.port = new;
    assert!(Panel::of(&node).info().await.started);
    for closed in [old, buttons] {
        std::net::TcpStream::connect(("127.0.0.1", closed)).unwrap_err();
    }
    // The same port on every address.
    std::fs::write(
        &settings,
        format!("NODE_HOST=0.0.0.0\nSERVICE_PORT={new}\nAPI_PORT=0\n"),
    )
    .unwrap();
    node.signal(Signal::SIGUSR2);
    said(&node, "serving panels address=0.0.0.0", 1).await;
    assert!(Panel::of(&node).info().await.started);
    assert_eq!(node.core(), core);
    assert!(node.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_on_the_heels_of_a_replacement_stops_the_core() {
    for wait in [0, 30, 60, 100, 300] {
        let mut node = NodeProcess::start(NODE);
        let panel = started(&node).await;
        node.signal(Signal::SIGUSR2);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        drop(panel);
        node.signal(Signal::SIGTERM);
        // Between one program and the next nobody listens to signals, and the default is to end.
        let ended = node.stop_asked();
        if ended.success() {
            assert_eq!(
                node.cores(),
                Vec::<i32>::new(),
                "after {wait} ms: {}",
                node.log()
            );
        } else {
            assert_eq!(
                std::os::unix::process::ExitStatusExt::signal(&ended),
                Some(15),
                "after {wait} ms"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_replaced_another_buries_its_core() {
    let node = NodeProcess::start(NODE);
    let panel = started(&node).await;
    let core = node.core();
    node.signal(Signal::SIGUSR2);
    said(&node, "took over the core that was running", 1).await;
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
    eventually("another core", || async {
        (panel.info().await.started && !node.cores().contains(&core)).then_some(())
    })
    .await;
    assert!(!Path::new(&format!("/proc/{core}")).exists(), "no zombie");
    assert!(
        node.log().contains("signal: 9"),
        "and it is known how it ended: {}",
        node.log()
    );
}
