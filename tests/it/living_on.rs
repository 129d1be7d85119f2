//! The core outlives its daemon: crashes, replacements and restarts cut nobody.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::NODE;
use crate::held::{Held, control_answers, emails};
use crate::support::users::{id, numbered, user};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{Echo, NodeProcess, Panel, Streams, XrayClient, eventually, ports, times};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_cuts_nobody() {
    let users = 200;
    let mut held = Held::new(&[], users, 1000).await;
    let rounds = times(5, 50);
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let panel = held.panel.clone();
        let (config, all) = (held.config.clone(), numbered(0..users, &["vless"]));
        // Nothing, a list of users, or a Start is under way; each wants the same users in the end.
        let under_way = tokio::spawn(async move {
            let other = numbered(users - 50..users + 50, &["vless"]);
            match round % 3 {
                0 => {}
                1 => {
                    let others: Vec<_> = std::iter::once(user("0", &["vless"]))
                        .chain(other)
                        .collect();
                    panel.sync_all(&others).await.ok();
                    panel.sync_all(&all).await.ok();
                }
                _ => {
                    panel.start(&config, &all).await.ok();
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(rand_ms(5))).await;
        held.node.kill();
        under_way.await.unwrap();
        tokio::time::sleep(Duration::from_millis(rand_ms(300))).await;
        assert_eq!(
            held.streams.broken(),
            0,
            "in round {round} before the next daemon"
        );
        let began = Instant::now();
        held.node.launch();
        held.panel = Panel::of(&held.node);
        control_answers(&held.panel).await;
        slowest = slowest.max(began.elapsed());
        assert_eq!(held.node.core(), held.core, "in round {round}");
        held.panel
            .sync_all(&numbered(0..users, &["vless"]))
            .await
            .unwrap();
        assert_eq!(held.node.served_on("vless").await, emails(0..users));
    }
    assert!(
        slowest < Duration::from_secs(5),
        "control came back after {slowest:?}"
    );
    let table = held.nobody_was_cut().await;
    println!("{rounds} kills, control back within {slowest:?}: {table:?}");
}

fn rand_ms(most: u64) -> u64 {
    u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * most / 255
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_had_promised_is_kept_by_the_next_one() {
    let mut held = Held::new(&[], 10, 3).await;
    let session = held
        .panel
        .start(&held.config, &numbered(0..10, &["vless"]))
        .await
        .unwrap()
        .session_id;
    held.panel
        .sync_each(vec![user("10", &["vless"]), user("3", &[])])
        .await
        .unwrap();
    held.node.kill();
    held.node.launch();
    // The session and the users are those of before, by whatever way one asks.
    let panel = Panel::with(
        &held.node,
        &[("authorization", format!("Bearer {session}"))],
    );
    assert!(panel.info().await.started);
    let mut wanted = emails(0..11);
    wanted.remove("3");
    assert_eq!(held.node.served_on("vless").await, wanted);
    // A panel that sends the same again finds nothing to do.
    let users: Vec<_> = wanted.iter().map(|email| user(email, &["vless"])).collect();
    held.panel = Panel::of(&held.node);
    held.panel.start(&held.config, &users).await.unwrap();
    assert!(
        held.node
            .log()
            .contains("the node runs exactly this already"),
        "{}",
        held.node.log()
    );
    held.nobody_was_cut().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_makes_way_for_the_binary_on_disk() {
    // A copy, so that it can be replaced.
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("raynode");
    std::fs::copy(NODE, &binary).unwrap();
    let node = NodeProcess::start(&binary);
    let panel = Panel::of(&node);
    let (echo, port) = (Echo::start().await, ports::free());
    let (config, users) = (vless_config(port), numbered(0..20, &["vless"]));
    let session = panel.start(&config, &users).await.unwrap().session_id;
    let client = XrayClient::start(&vless_outbound(port, id("0")));
    let streams = Streams::hold(&client, &echo, 1000).await;
    let (core, daemon) = (node.core(), node.pid());

    for round in 1..=times(3, 20) {
        // Another file in its place, as a package manager puts it there.
        let fresh = folder.path().join("fresh");
        std::fs::copy(NODE, &fresh).unwrap();
        std::fs::rename(&fresh, &binary).unwrap();
        node.signal(Signal::SIGUSR2);
        // The port never closes: whoever connects meanwhile waits for the next program.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(1500) {
            std::net::TcpStream::connect(("127.0.0.1", node.port)).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let bearer = Panel::with(&node, &[("authorization", format!("Bearer {session}"))]);
        control_answers(&bearer).await;
        assert_eq!(node.pid(), daemon);
        let log = node.log();
        assert_eq!(
            log.matches("took over the core that was running").count(),
            round,
            "{log}"
        );
        assert_eq!(node.core(), core);
    }
    assert_eq!(streams.end().await.broken, 0);

    // What does not run takes nothing over.
    std::fs::write(folder.path().join("broken"), "#!/bin/false\n").unwrap();
    std::fs::set_permissions(
        folder.path().join("broken"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    std::fs::rename(folder.path().join("broken"), &binary).unwrap();
    node.signal(Signal::SIGUSR2);
    eventually("it is said", || async {
        node.log().contains("can't take over").then_some(())
    })
    .await;
    assert!(Panel::of(&node).info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_again_with_the_panel_gone() {
    let mut node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (echo, port) = (Echo::start().await, ports::free());
    let (config, users) = (vless_config(port), numbered(0..50, &["vless"]));
    panel.start(&config, &users).await.unwrap();
    panel
        .sync_each(vec![user("50", &["vless"]), user("7", &[])])
        .await
        .unwrap();
    assert!(node.stop().success());
    assert_eq!(
        node.cores(),
        Vec::<i32>::new(),
        "a stop takes the core with it"
    );

    // The machine was started anew.
    std::fs::remove_dir_all(node.folder().join("run")).unwrap();
    let began = Instant::now();
    node.launch();
    let client = XrayClient::start(&vless_outbound(port, id("50")));
    eventually("users are served", || async {
        let mut stream = client.connect(echo.address).await.ok()?;
        stream.write_u8(1).await.ok()?;
        tokio::time::timeout(Duration::from_secs(1), stream.read_u8())
            .await
            .ok()?
            .ok()
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    let mut wanted = emails(0..51);
    wanted.remove("7");
    assert_eq!(node.served_on("vless").await, wanted);

    // The panel is told that it has to start the node, and finds that nothing is to be done.
    let panel = Panel::of(&node);
    assert!(!panel.info().await.started);
    let error = panel.sync_all(&users).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unavailable, "backend not initialized")
    );
    let core = node.core();
    let users: Vec<_> = wanted.iter().map(|email| user(email, &["vless"])).collect();
    panel.start(&config, &users).await.unwrap();
    assert_eq!(node.core(), core);
    assert!(
        node.log().contains("the node runs exactly this already"),
        "{}",
        node.log()
    );

    // Not where the operator does not want it, and not what a panel has stopped.
    assert!(node.stop().success());
    node.set("RESTORE_ON_BOOT", "false");
    node.launch();
    assert!(Panel::of(&node).info().await.core_version.starts_with('2'));
    assert_eq!(node.cores(), Vec::<i32>::new());
    node.set("RESTORE_ON_BOOT", "true");
    assert!(node.stop().success());
    node.launch();
    let panel = Panel::of(&node);
    control_answers(&panel).await;
    panel.stop().await.unwrap();
    assert!(node.stop().success());
    node.launch();
    assert!(!Panel::of(&node).info().await.started);
    assert_eq!(node.cores(), Vec::<i32>::new());
}

fn children(parent: i32) -> Vec<i32> {
    let stat = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let stat = stat(*pid).unwrap_or_default();
            let behind = stat.rsplit_once(") ").map_or("", |(_, behind)| behind);
            behind.split(' ').nth(1) == Some(&parent.to_string())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn process_1_starts_the_daemon_again_and_the_core_stays() {
    // A copy, so that it can be replaced, as an upgrade does it.
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("raynode");
    std::fs::copy(NODE, &binary).unwrap();
    let mut node = NodeProcess::prepare(&binary, &[]);
    node.as_process_1();
    node.launch();
    let panel = Panel::of(&node);
    let (echo, port) = (Echo::start().await, ports::free());
    panel
        .start(&vless_config(port), &numbered(0..5, &["vless"]))
        .await
        .unwrap();
    let client = XrayClient::start(&vless_outbound(port, id("0")));
    let streams = Streams::hold(&client, &echo, 50).await;
    let core = node.core();
    for round in 0..3 {
        let daemons: Vec<i32> = children(node.pid())
            .into_iter()
            .filter(|pid| *pid != core)
            .collect();
        let [daemon] = daemons.as_slice() else {
            panic!("not one daemon but {daemons:?}");
        };
        let fresh = folder.path().join("fresh");
        std::fs::copy(NODE, &fresh).unwrap();
        std::fs::rename(&fresh, &binary).unwrap();
        kill(Pid::from_raw(*daemon), Signal::SIGKILL).unwrap();
        eventually("another daemon", || async {
            let now = children(node.pid());
            (!now.contains(daemon) && now.len() == 2).then_some(())
        })
        .await;
        control_answers(&Panel::of(&node)).await;
        assert_eq!(node.core(), core, "in round {round}");
    }
    // The core is ours by now; its end is seen, and it is buried.
    assert_eq!(streams.end().await.broken, 0);
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
    eventually("another core", || async {
        let cores = node.cores();
        (cores.len() == 1 && cores[0] != core).then_some(())
    })
    .await;
    assert!(!Path::new(&format!("/proc/{core}")).exists(), "no zombie");
    control_answers(&Panel::of(&node)).await;
    assert!(node.stop().success());
    assert_eq!(node.cores(), Vec::<i32>::new());

    // What only the operator can mend is not tried again and again.
    node.set("SERVICE_PORT", "no port");
    let output = std::process::Command::new(NODE)
        .arg("init")
        .env_clear()
        .env("SERVICE_PORT", "no port")
        .current_dir(node.folder())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// The daemon is nobody in particular, and somebody gave the core's binary a capability of its own,
/// so that its environment and its binary are shown to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_core_with_capabilities_is_taken_over_by_a_daemon_that_is_not_root() {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let xray = folder.path().join("xray");
    std::fs::copy(crate::support::node::xray_binary(), &xray).unwrap();
    let set = std::process::Command::new("setcap")
        .args(["cap_net_bind_service+ep", xray.to_str().unwrap()])
        .status();
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || !set.is_ok_and(|status| status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root and setcap (libcap2-bin)"
        );
        println!("SKIPPED: needs root and setcap");
        return;
    }
    let binary = folder.path().join("raynode");
    std::fs::copy(NODE, &binary).unwrap();
    let mut node =
        NodeProcess::prepare(&binary, &[("XRAY_EXECUTABLE_PATH", xray.to_str().unwrap())]);
    chown(node.folder(), Some(NOBODY), Some(NOBODY)).unwrap();
    node.as_user(NOBODY);
    node.launch();
    let panel = Panel::of(&node);
    let (echo, port) = (Echo::start().await, ports::free());
    let config = vless_config(port);
    panel
        .start(&config, &numbered(0..5, &["vless"]))
        .await
        .unwrap();
    let client = XrayClient::start(&vless_outbound(port, id("0")));
    let streams = Streams::hold(&client, &echo, 20).await;
    let core = node.core();
    let environment = std::process::Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--clear-groups",
            "cat",
            &format!("/proc/{core}/environ"),
        ])
        .output()
        .unwrap();
    assert!(
        !environment.status.success(),
        "this is what the test is about"
    );
    node.kill();
    node.launch();
    control_answers(&Panel::of(&node)).await;
    assert_eq!(node.core(), core, "{}", node.log());
    assert_eq!(streams.end().await.broken, 0);
    // One that can't be taken over is ended all the same.
    node.kill();
    std::fs::remove_file(node.folder().join("state/last-good")).unwrap();
    node.launch();
    assert!(!Panel::of(&node).info().await.started);
    assert_eq!(node.cores(), Vec::<i32>::new());
    assert!(node.stop().success());
}
