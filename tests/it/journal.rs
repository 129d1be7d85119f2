//! The node's log in the journal of systemd.

#![allow(clippy::print_stdout, reason = "says what is skipped")]

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::NODE;
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, eventually, ports, tricky};

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// The journal's daemon, which ends with this.
struct Journald(PathBuf);

impl Drop for Journald {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.0).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// A node that has a `/run` of its own, with a journal in it.
fn with_a_journal() -> Option<(NodeProcess, Journald)> {
    if !nix::unistd::geteuid().is_root() || !Path::new(JOURNALD).exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root and systemd-journald (systemd)"
        );
        println!("SKIPPED: needs root and systemd-journald");
        return None;
    }
    let mut node = NodeProcess::prepare(NODE, &[("LOG_FORMAT", "journald")]);
    let pid = node.folder().join("journald");
    let script = format!(
        "#!/bin/sh
exec unshare -m sh -c '
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/log/journal
PATH=/usr/bin:/bin {JOURNALD} </dev/null >/dev/null 2>&1 &
echo $! >{}
i=0
while [ ! -S /run/systemd/journal/socket ] && [ $i -lt 200 ]; do sleep 0.05; i=$((i + 1)); done
exec {NODE} \"$@\"' sh \"$@\"
",
        pid.display()
    );
    let wrapper = node.folder().join("raynode");
    tricky::write_script(&wrapper, &script);
    node.be(&wrapper);
    let journald = Journald(pid);
    node.set("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    node.launch();
    Some((node, journald))
}

/// What the journal has of the node.
fn entries(node: &NodeProcess) -> Vec<Value> {
    let output = Command::new("nsenter")
        .args(["-t", &node.pid().to_string(), "-m", "journalctl"])
        .args(["--no-pager", "-o", "json", "SYSLOG_IDENTIFIER=raynode"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn find<'a>(entries: &'a [Value], message: &str) -> Option<&'a Value> {
    let mut entries = entries.iter();
    entries.find(|entry| {
        entry["MESSAGE"]
            .as_str()
            .is_some_and(|text| text.contains(message))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_have_their_level_and_their_fields_there() {
    let Some((node, _journald)) = with_a_journal() else {
        return;
    };
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel.start(&config, &[]).await.unwrap();
    let core = node.core();
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
    let all = eventually("the journal has it", || async {
        let all = entries(&node);
        find(&all, "the core ended unexpectedly")?;
        Some(all)
    })
    .await;
    // As `journalctl -p` names them: err is 3, warning 4, info 6, debug 7.
    let died = find(&all, "the core ended unexpectedly").unwrap();
    assert_eq!(died["PRIORITY"], "3", "{died}");
    assert!(
        died["RAYNODE_HOW"].as_str().unwrap().contains("signal: 9"),
        "{died}"
    );
    let started = find(&all, "core started").unwrap();
    assert_eq!(started["PRIORITY"], "6", "{started}");
    assert_eq!(started["RAYNODE_PID"], core.to_string(), "{started}");
    assert_eq!(started["_PID"], node.pid().to_string(), "{started}");
    let change = find(&all, "a change").unwrap();
    assert_eq!(change["PRIORITY"], "7", "{change}");
    assert_eq!(change["RAYNODE_WHAT"], "start", "{change}");
    // A setting that can't be read when it is read anew: something is wrong, nothing is lost.
    std::fs::write(node.folder().join("state/certs/ssl_key.pem"), "nonsense").unwrap();
    node.signal(Signal::SIGHUP);
    eventually("an error", || async {
        let all = entries(&node);
        let refused = find(&all, "the certificate was not reloaded")?;
        assert_eq!(refused["PRIORITY"], "3", "{refused}");
        Some(())
    })
    .await;
    assert_eq!(node.log(), "", "nothing goes to the standard error, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_the_log_is_text_and_says_why() {
    if Path::new("/run/systemd/journal/socket").exists() {
        println!("SKIPPED: this machine has a journal");
        return;
    }
    let node = NodeProcess::start_with(NODE, &[("LOG_FORMAT", "journald")]);
    let log = node.log();
    let mut lines = log.lines();
    let warned = lines.any(|line| line.contains("WARN there is no journal to write to"));
    assert!(warned && log.contains("INFO"), "{log}");
}
