//! What a new daemon finds, and what it can't write: there is one core with the right users each time.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::NODE;
use crate::held::{Held, control_answers, emails};
use crate::support::users::{numbered, user};
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, Streams, ports};

/// What was found, with the daemon down; whether streams must live through it.
type Damage = fn(&Path, i32);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_found_there_is_one_core_with_the_right_users() {
    fn record(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) {
        let path = folder.join("run/core.json");
        let mut record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        std::fs::write(&path, record.to_string()).unwrap();
    }
    fn last_good(folder: &Path) -> std::path::PathBuf {
        folder.join("state/last-good")
    }
    let damages: [(&str, Damage, bool); 9] = [
        ("nothing", |_, _| {}, true),
        (
            "a torn record",
            |folder, _| {
                let path = folder.join("run/core.json");
                let text = std::fs::read(&path).unwrap();
                std::fs::write(&path, &text[..text.len() / 2]).unwrap();
            },
            false,
        ),
        (
            "no record",
            |folder, _| std::fs::remove_file(folder.join("run/core.json")).unwrap(),
            false,
        ),
        (
            "a pid that was given again",
            |folder, _| {
                record(folder, |record| {
                    let started = record["process"]["started"].as_u64().unwrap();
                    record["process"] = json!({ "pid": std::process::id(), "started": started });
                });
            },
            false,
        ),
        (
            "a core that died meanwhile and left its socket",
            |_, core| {
                kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
            },
            false,
        ),
        (
            "a core that hangs",
            |_, core| kill(Pid::from_raw(core), Signal::SIGSTOP).unwrap(),
            false,
        ),
        (
            "a socket that is somebody else's",
            |folder, _| {
                let path = folder.join("run/other.sock");
                let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
                // It goes on listening, and never answers.
                std::mem::forget(listener);
                record(folder, |record| record["socket"] = json!(path));
            },
            false,
        ),
        (
            "a torn journal",
            |folder, _| {
                use std::io::Write;
                let path = folder.join("state/last-good.journal");
                let mut file = std::fs::File::options().append(true).open(path).unwrap();
                file.write_all(b"{\"put\":[\"vless\",\"half").unwrap();
            },
            true,
        ),
        (
            "a session that can't be read",
            |folder, _| {
                std::fs::write(folder.join("run/session.json"), "{").unwrap();
            },
            true,
        ),
    ];
    for (name, damage, lives) in damages {
        let mut held = Held::new(&[], 20, 5).await;
        held.panel
            .sync_each(vec![user("20", &["vless"]), user("7", &[])])
            .await
            .unwrap();
        held.node.kill();
        damage(held.node.folder(), held.core);
        held.node.launch();
        let panel = Panel::of(&held.node);
        let mut wanted = emails(0..21);
        wanted.remove("7");
        let users: Vec<_> = wanted.iter().map(|email| user(email, &["vless"])).collect();
        if name.starts_with("a session") {
            assert!(!panel.info().await.started);
            panel.start(&held.config, &users).await.unwrap();
        } else {
            control_answers(&panel).await;
        }
        assert_eq!(held.node.served_on("vless").await, wanted, "{name}");
        let core = held.node.core();
        assert_eq!(core == held.core, lives, "{name}");
        let late = Streams::hold(&held.client, &held.echo, 3).await;
        assert_eq!(late.end().await.broken, 0, "{name}");
        let broken = held.streams.end().await.broken;
        assert_eq!(broken == 0, lives, "{name}: {broken}");
        // And it stays so.
        panel.start(&held.config, &users).await.unwrap();
        assert_eq!(held.node.core(), core, "{name}");
    }
    // A configuration that can't be read: nobody knows what to serve until the panel says it.
    let mut held = Held::new(&[], 5, 2).await;
    held.node.kill();
    std::fs::write(last_good(held.node.folder()), "torn").unwrap();
    held.node.launch();
    assert!(!Panel::of(&held.node).info().await.started);
    assert_eq!(held.node.cores(), Vec::<i32>::new());
    assert!(held.node.folder().join("state/last-good.damaged").exists());
    Panel::of(&held.node)
        .start(&held.config, &numbered(0..5, &["vless"]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_stops_nothing() {
    for full in [true, false] {
        let mut node = NodeProcess::prepare(NODE, &[]);
        let state = node.folder().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        if full {
            std::os::unix::fs::symlink("/dev/full", state.join("last-good.journal")).unwrap();
        } else {
            // As little to be written as on a folder that is read-only, also for root.
            std::fs::create_dir_all(state.join("last-good.new/in the way")).unwrap();
        }
        node.launch();
        let panel = Panel::of(&node);
        let config = vless_config(ports::free());
        panel
            .start(&config, &numbered(0..5, &["vless"]))
            .await
            .unwrap();
        panel
            .sync_each(vec![user("5", &["vless"]), user("2", &[])])
            .await
            .unwrap();
        assert!(
            node.log()
                .contains("the disk does not take what the node serves"),
            "{}",
            node.log()
        );
        let mut wanted = emails(0..6);
        wanted.remove("2");
        assert_eq!(node.served_on("vless").await, wanted);
        // The next daemon finds it elsewhere.
        let core = node.core();
        node.kill();
        node.launch();
        let panel = Panel::of(&node);
        control_answers(&panel).await;
        assert_eq!(node.core(), core);
        assert_eq!(node.served_on("vless").await, wanted);
        let users: Vec<_> = wanted.iter().map(|email| user(email, &["vless"])).collect();
        panel.start(&config, &users).await.unwrap();
        assert_eq!(node.core(), core);
        // What the panel stops then is not served again by anybody.
        panel.stop().await.unwrap();
        node.kill();
        node.launch();
        assert!(!Panel::of(&node).info().await.started);
        assert_eq!(node.cores(), Vec::<i32>::new());
    }
}
