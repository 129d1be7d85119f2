//! What a node goes back to when something new does not work, and what it does not bring back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tonic::Code;

use crate::NODE;
use crate::held::{Held, control_answers, emails};
use crate::support::users::{id, numbered, user};
use crate::support::xray::{vless_config, vless_inbound, vless_outbound};
use crate::support::{Echo, NodeProcess, Panel, Streams, XrayClient, eventually, ports, tricky};

fn unix_inbound(path: &std::path::Path) -> serde_json::Value {
    let mut inbound = vless_inbound("unix", 1);
    inbound["listen"] = json!(path);
    inbound.as_object_mut().unwrap().remove("port");
    inbound
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_hangs_at_its_start_costs_three_seconds_at_most() {
    let mut node = NodeProcess::prepare(NODE, &[("HANDOVER", "off")]);
    // The first one hangs for good, the next one does not.
    tricky::prepare(&mut node, "rm $(dirname $0)/trick\nexec sleep 1000");
    node.launch();
    let panel = Panel::of(&node);
    let (config, users) = (vless_config(ports::free()), numbered(0..3, &["vless"]));
    panel.start(&config, &users).await.unwrap();
    tricky::set(&node, true);
    let mut hangs = config.clone();
    hangs["log"]["loglevel"] = json!("error");
    let began = Instant::now();
    let error = panel.start(&hangs, &users).await.unwrap_err();
    assert!(error.message().contains("did not become ready"), "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert!(panel.info().await.started);
    node.core();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_somebody_listens_on_is_left_alone() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel.start(&config, &[]).await.unwrap();
    let path = node.folder().join("somebody.sock");
    let _somebody = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut taken = config.clone();
    taken["inbounds"]
        .as_array_mut()
        .unwrap()
        .push(unix_inbound(&path));
    panel.start(&taken, &[]).await.unwrap_err();
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(panel.info().await.started);
}

async fn die(node: &NodeProcess, panel: &Panel, times: usize) {
    for _ in 0..times {
        let core = eventually("a core", || async {
            match node.cores().as_slice() {
                [core] if panel.info().await.started => Some(*core),
                _ => None,
            }
        })
        .await;
        kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
        eventually("its end", || async {
            (!node.cores().contains(&core)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_was_removed_is_not_brought_back_by_the_configuration_before() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let base = vless_config(ports::free());
    let mut both = base.clone();
    both["inbounds"]
        .as_array_mut()
        .unwrap()
        .push(vless_inbound("more", ports::free()));
    panel
        .start(&both, &numbered(0..3, &["vless", "more"]))
        .await
        .unwrap();
    panel
        .start(&base, &numbered(0..3, &["vless"]))
        .await
        .unwrap();
    panel.sync_user(user("1", &[])).await.unwrap();
    die(&node, &panel, 3).await;
    // The panel sends the same again while it is down: that is no new beginning.
    eventually("it is tried again", || async {
        panel
            .start(&base, &[user("0", &["vless"]), user("2", &["vless"])])
            .await
            .ok()
    })
    .await;
    die(&node, &panel, 2).await;
    eventually("the configuration before", || async {
        node.log()
            .contains("going back to the one before")
            .then_some(())
    })
    .await;
    eventually("a core", || async {
        panel.info().await.started.then_some(())
    })
    .await;
    for tag in ["vless", "more"] {
        let served = node.served_on(tag).await;
        assert_eq!(
            served,
            BTreeSet::from(["0".to_owned(), "2".to_owned()]),
            "{tag}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_core_that_died_in_the_middle_of_a_list_are_all_there() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let count = 2000;
    let users = numbered(0..count, &["vless"]);
    panel
        .start(&vless_config(ports::free()), &users)
        .await
        .unwrap();
    let core = node.core();
    // Everybody gets another secret, and the core dies over it.
    let changed: Vec<_> = (0..count)
        .map(|number| {
            let mut changed = user(&number.to_string(), &["vless"]);
            let vless = changed.proxies.as_mut().unwrap().vless.as_mut().unwrap();
            vless.id = id(&format!("other {number}")).to_string();
            changed
        })
        .collect();
    let list = panel.clone();
    let sync = tokio::spawn(async move { list.sync_all(&changed).await });
    tokio::time::sleep(Duration::from_millis(60)).await;
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
    drop(sync.await.unwrap());
    eventually("another core", || async {
        (panel.info().await.started && !node.cores().contains(&core)).then_some(())
    })
    .await;
    assert_eq!(node.served_on("vless").await.len(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_serves_without_a_session_can_be_stopped() {
    let mut node = NodeProcess::start_with(NODE, &[("STOP_GRACE", "1s")]);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    assert!(node.stop().success());
    std::fs::remove_dir_all(node.folder().join("run")).unwrap();
    node.launch();
    let panel = Panel::of(&node);
    eventually("it serves again", || async {
        (node.cores().len() == 1).then_some(())
    })
    .await;
    let error = panel.stop().await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unavailable, "backend not initialized")
    );
    eventually("the core ends", || async {
        node.cores().is_empty().then_some(())
    })
    .await;
    node.kill();
    node.launch();
    assert!(!panel.info().await.started || node.cores().is_empty());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.cores(), Vec::<i32>::new(), "also not after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_runtime_folder_leaves_no_second_core() {
    let mut node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (echo, port) = (Echo::start().await, ports::free());
    panel
        .start(&vless_config(port), &numbered(0..1, &["vless"]))
        .await
        .unwrap();
    let before = node.core();
    node.kill();
    let other = node.folder().join("elsewhere").display().to_string();
    node.set("RUNTIME_DIR", &other);
    node.launch();
    eventually("the old core ends", || async {
        (!std::path::Path::new(&format!("/proc/{before}")).exists()).then_some(())
    })
    .await;
    let client = XrayClient::start(&vless_outbound(port, id("0")));
    eventually("it serves", || async {
        let mut stream = client.connect(echo.address).await.ok()?;
        tokio::io::AsyncWriteExt::write_u8(&mut stream, 1)
            .await
            .ok()?;
        let read = tokio::io::AsyncReadExt::read_u8(&mut stream);
        tokio::time::timeout(Duration::from_secs(1), read)
            .await
            .ok()?
            .ok()
    })
    .await;
    let streams = Streams::hold(&client, &echo, 3).await;
    assert_eq!(streams.end().await.broken, 0);
    assert!(node.stop().success());
    node.set(
        "RUNTIME_DIR",
        &node.folder().join("run").display().to_string(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn information_does_not_wait_for_a_binary_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("xray");
    std::fs::write(&binary, "#!/bin/sh\nexec sleep 30\n").unwrap();
    std::fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut node =
        NodeProcess::prepare(NODE, &[("XRAY_EXECUTABLE_PATH", binary.to_str().unwrap())]);
    node.launch();
    // The node itself asks once, when it begins.
    let panel = Panel::of(&node);
    panel.info().await;
    for _ in 0..3 {
        let asked = Instant::now();
        assert!(!panel.info().await.started);
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "{:?}",
            asked.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_that_is_repeated_cuts_everybody_once() {
    let node = NodeProcess::start_with(NODE, &[("HANDOVER", "off")]);
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel.start(&config, &[]).await.unwrap();
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut taken = config.clone();
    let port = foreign.local_addr().unwrap().port();
    taken["inbounds"]
        .as_array_mut()
        .unwrap()
        .push(vless_inbound("more", port));
    panel.start(&taken, &[]).await.unwrap_err();
    let core = node.core();
    for _ in 0..5 {
        let error = panel.start(&taken, &[]).await.unwrap_err();
        assert!(
            error.message().starts_with("failed to start xray: "),
            "{error}"
        );
        assert!(
            error.message().contains("address already in use"),
            "{error}"
        );
        assert!(error.message().contains("is tried again in"), "{error}");
        assert_eq!(node.core(), core);
    }
    // Whatever else is wanted is not held up.
    let mut other = config.clone();
    other["log"]["loglevel"] = json!("error");
    panel.start(&other, &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_copy_of_the_state_of_another_leaves_that_one_alone() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    let core = node.core();
    let mut other = NodeProcess::prepare(NODE, &[("RESTORE_ON_BOOT", "false")]);
    let copied = std::process::Command::new("cp")
        .args([
            "-a",
            node.folder().join("state").to_str().unwrap(),
            other.folder().to_str().unwrap(),
        ])
        .status()
        .unwrap();
    assert!(copied.success());
    other.launch();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.core(), core);
    assert!(panel.info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_configuration_that_fails_gives_way_to_the_one_before() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    let users = numbered(0..5, &["vless"]);
    panel.start(&config, &users).await.unwrap();
    let mut other = config.clone();
    other["inbounds"]
        .as_array_mut()
        .unwrap()
        .push(vless_inbound("more", ports::free()));
    panel.start(&other, &users).await.unwrap();
    panel.sync_each(vec![user("5", &["vless"])]).await.unwrap();
    // It comes up, and dies.
    let mut last = 0;
    for _ in 0..5 {
        last = eventually("a core", || async {
            match node.cores().as_slice() {
                [core] if *core != last && panel.info().await.started => Some(*core),
                _ => None,
            }
        })
        .await;
        kill(Pid::from_raw(last), Signal::SIGKILL).unwrap();
        // Control answers throughout, and says that waiting is right.
        let stats = panel
            .client
            .clone()
            .get_backend_stats(raynode::proto::service::Empty {})
            .await;
        if let Err(status) = stats {
            let text = status.message();
            assert!(
                text.contains("core is not started yet")
                    || text.contains("failed to get sys stats"),
                "{status}"
            );
        }
    }
    eventually("the configuration before", || async {
        node.log()
            .contains("going back to the one before")
            .then_some(())
    })
    .await;
    control_answers(&panel).await;
    assert_eq!(
        node.served_on("vless").await,
        emails(0..6),
        "with the users of now"
    );
    assert!(
        node.core_api().users("more").await.is_err(),
        "without the new inbound"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes; make soak runs it"]
async fn a_core_that_dies_at_once_is_left_alone_in_the_end() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel.start(&config, &[]).await.unwrap();
    let mut seen = 0;
    let mut deaths = Vec::new();
    while !node.log().contains("the core stays down") {
        if let [core] = node.cores().as_slice()
            && *core != seen
        {
            seen = *core;
            deaths.push(Instant::now());
            kill(Pid::from_raw(seen), Signal::SIGKILL).ok();
        }
        let mut client = panel.client.clone();
        let stats = client.get_backend_stats(raynode::proto::service::Empty {});
        if let Err(status) = stats.await {
            let text = status.message();
            assert!(
                text.contains("core is not started yet")
                    || text.contains("failed to get sys stats"),
                "{status}"
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waits: Vec<Duration> = deaths.windows(2).map(|pair| pair[1] - pair[0]).collect();
    println!("a core that died at once was started after {waits:?}");
    assert_eq!(deaths.len(), 10);
    assert!(waits[8] > Duration::from_secs(8) && waits[8] < Duration::from_secs(35));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(node.cores(), Vec::<i32>::new());
    let error = panel.sync_all(&[]).await.unwrap_err();
    assert!(
        error
            .message()
            .starts_with("core is not started yet: the core failed 10 times"),
        "{error}"
    );
    // A panel that starts the node starts the core.
    panel.start(&config, &[]).await.unwrap();
    control_answers(&panel).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes; make soak runs it"]
async fn a_core_that_hangs_is_replaced_and_one_that_pauses_is_not() {
    let held = Held::new(&[], 5, 20).await;
    kill(Pid::from_raw(held.core), Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    kill(Pid::from_raw(held.core), Signal::SIGCONT).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(held.streams.broken(), 0);
    assert_eq!(held.node.core(), held.core);
    kill(Pid::from_raw(held.core), Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    while held.node.cores() == [held.core] {
        assert!(
            began.elapsed() < Duration::from_secs(90),
            "it is never replaced"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    control_answers(&held.panel).await;
    println!("a hung core was replaced after {:?}", began.elapsed());
    assert_eq!(held.node.served_on("vless").await, emails(0..5));
}
