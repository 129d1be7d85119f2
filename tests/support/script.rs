//! A program that plays a panel: told on its standard input what it needs, ended when it takes
//! too long, shown with all that it said.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs it; fails when it fails. What it is told goes through a pipe, because it holds keys.
pub async fn run(
    program: &Path,
    arguments: &[&str],
    setup: &Value,
    log_path: &Path,
    patience: Duration,
    what: &str,
) {
    let log = std::fs::File::create(log_path).unwrap();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(setup.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let ended = tokio::time::timeout(patience, child.wait()).await;
    let said = std::fs::read_to_string(log_path).unwrap();
    eprintln!("--- {what}:\n{said}---");
    let status = ended
        .unwrap_or_else(|error| panic!("{what} does not end in time: {error}"))
        .unwrap();
    assert!(status.success(), "{what} failed");
}
