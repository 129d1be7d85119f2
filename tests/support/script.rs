//! A program that plays a panel: told on its standard input what it needs, ended when it takes
//! too long, shown with all that it said.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
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

/// One that is told something again and again, and says something each time; a line of JSON each.
pub struct Conversation {
    stdin: tokio::process::ChildStdin,
    stdout: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
    _child: tokio::process::Child,
}

impl Conversation {
    pub async fn start(program: &Path, arguments: &[&str], setup: &Value) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
        let mut conversation = Self {
            stdin: child.stdin.take().unwrap(),
            stdout: stdout.lines(),
            _child: child,
        };
        conversation.tell(setup).await;
        conversation
    }

    pub async fn tell(&mut self, what: &Value) {
        let line = format!("{what}\n");
        self.stdin.write_all(line.as_bytes()).await.unwrap();
    }

    /// What it says next.
    pub async fn hear(&mut self, patience: Duration) -> Value {
        let line = tokio::time::timeout(patience, self.stdout.next_line()).await;
        let line = line.expect("it says nothing").unwrap();
        serde_json::from_str(&line.expect("it has ended")).unwrap()
    }
}

/// A Python that has the panel's client.
pub fn python() -> Option<PathBuf> {
    named("RAYNODE_TEST_PYTHON")
}

/// What a variable names that `make test` sets; `None` where it is not set, which is said.
pub fn named(variable: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable);
    if named.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "{variable} is not set: run `make test`, which sets it"
        );
        eprintln!("SKIPPED: {variable} is not set");
    }
    named.map(PathBuf::from)
}
