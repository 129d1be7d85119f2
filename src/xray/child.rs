//! One Xray process: spawned in its own process group, its output read to the last line, its end
//! reported, its stop bounded.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A longer line is cut here.
const MAX_LINE: usize = 64 << 10;
/// How long the output of a process that has ended is waited for; a grandchild could hold it open.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed process is waited for.
const REAP: Duration = Duration::from_secs(5);

/// What reads a process's output, one line at a time.
pub(super) trait Sink: Clone + Send + 'static {
    /// Takes the lines that arrived together, without their ends.
    fn lines(&mut self, lines: &[String]);
}

/// A running process.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    ended: watch::Receiver<Option<ExitStatus>>,
    /// Holds the process's keeper; dropping it kills the process.
    _keeper: JoinSet<()>,
}

/// How to start a process.
#[derive(Debug)]
pub(super) struct Spawn<'a> {
    pub(super) binary: &'a Path,
    pub(super) arguments: &'a [&'a str],
    pub(super) environment: Vec<(&'a OsStr, &'a OsStr)>,
    /// Variables of ours that the process must not inherit.
    pub(super) hidden: &'a [&'a str],
}

impl Spawn<'_> {
    /// Starts the process, hands `input` to its standard input and its output to `sink`.
    ///
    /// # Errors
    /// When the binary can't be run.
    pub(super) fn start(self, input: Vec<u8>, sink: impl Sink) -> io::Result<Child> {
        let mut command = Command::new(self.binary);
        for variable in self.hidden {
            command.env_remove(variable);
        }
        let mut process = command
            .args(self.arguments)
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = process
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(io::Error::other("the process has no pid"));
        };
        let (mut stdin, stdout, stderr) = (
            process.stdin.take(),
            process.stdout.take(),
            process.stderr.take(),
        );

        let (report, ended) = watch::channel(None);
        let mut keeper = JoinSet::new();
        keeper.spawn(async move {
            let mut output = JoinSet::new();
            if let Some(stdout) = stdout {
                output.spawn(read_lines(stdout, sink.clone()));
            }
            if let Some(stderr) = stderr {
                output.spawn(read_lines(stderr, sink));
            }
            let feed = async move {
                if let Some(stdin) = &mut stdin
                    && let Err(error) = stdin.write_all(&input).await
                {
                    // The process says itself why it stopped reading.
                    tracing::debug!(%error, "xray did not read its whole configuration");
                }
            };
            let (status, ()) = tokio::join!(process.wait(), feed);
            let drained =
                tokio::time::timeout(DRAIN, async { while output.join_next().await.is_some() {} });
            if drained.await.is_err() {
                tracing::debug!("the output of a process that has ended is still open");
            }
            match status {
                Ok(status) => drop(report.send_replace(Some(status))),
                Err(error) => tracing::error!(%error, "waiting for the process failed"),
            }
        });
        Ok(Child {
            pid,
            ended,
            _keeper: keeper,
        })
    }
}

impl Child {
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Whether the process has ended, without waiting.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }

    /// Waits for the end; `None` when nobody can tell how it ended. Cancel-safe.
    pub(super) async fn ended(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|status| *status)
    }

    /// SIGTERM, and SIGKILL when `patience` is over.
    pub(super) async fn stop(&self, patience: Duration) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(patience, self.ended()).await.is_err() {
            tracing::warn!(pid = self.pid(), "xray did not stop when asked, killing it");
            self.kill().await;
        }
    }

    pub(super) async fn kill(&self) {
        self.signal(Signal::SIGKILL);
        if tokio::time::timeout(REAP, self.ended()).await.is_err() {
            tracing::error!(pid = self.pid(), "xray is still there after SIGKILL");
        }
    }

    fn signal(&self, signal: Signal) {
        if !self.has_ended()
            && let Err(error) = killpg(self.pid, signal)
        {
            tracing::debug!(pid = self.pid(), %error, "the process is gone already");
        }
    }
}

async fn read_lines(mut from: impl AsyncRead + Unpin, mut sink: impl Sink) {
    let mut chunk = vec![0; 16 << 10];
    let mut splitter = Splitter::default();
    loop {
        match from.read(&mut chunk).await {
            Ok(0) => break,
            Ok(count) => {
                let lines = splitter.split(chunk.get(..count).unwrap_or_default());
                if !lines.is_empty() {
                    sink.lines(&lines);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "reading the output of xray failed");
                break;
            }
        }
    }
    if let Some(rest) = splitter.rest() {
        sink.lines(&[rest]);
    }
}

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Default)]
struct Splitter {
    line: Vec<u8>,
    cut: bool,
}

impl Splitter {
    fn split(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = MAX_LINE - self.line.len();
            self.cut |= text.len() > room;
            self.line.extend(text.iter().take(room));
            if whole {
                lines.extend(self.rest());
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.line);
        let cut = std::mem::take(&mut self.cut);
        let mut line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if cut {
            line.push_str(" [cut]");
        }
        (!line.is_empty()).then_some(line)
    }
}

/// The operator's log files, written by us because Xray's lines come to us first.
#[derive(Clone, Debug, Default)]
pub(super) struct Appender {
    path: Option<PathBuf>,
    failed: bool,
}

impl Appender {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            failed: false,
        }
    }

    /// Appends lines. The file is opened each time, so it may be moved away at any moment.
    pub(super) fn append<'a>(&mut self, lines: impl Iterator<Item = &'a String>) {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;

        let Some(path) = &self.path else { return };
        let text: String = lines.flat_map(|line| [line.as_str(), "\n"]).collect();
        if text.is_empty() {
            return;
        }
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            // A FIFO without a reader must not stop the node.
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => self.failed = false,
            Err(error) => {
                // Once is enough: the next line would fail the same way.
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(path = %path.display(), %error, "the log file that the config names can't be written");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_the_bytes_arrive() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.split(b"one\ntw"), ["one"]);
        assert_eq!(splitter.split(b"o\r\n\nthree"), ["two"]);
        assert_eq!(splitter.rest().as_deref(), Some("three"));
        assert_eq!(splitter.rest(), None);
    }

    #[test]
    fn an_endless_line_is_cut_and_says_so() {
        let mut splitter = Splitter::default();
        for _ in 0..10 {
            assert_eq!(splitter.split(&[b'x'; MAX_LINE / 4]), Vec::<String>::new());
        }
        let lines = splitter.split(b"end\nnext\n");
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("x [cut]") && lines[0].len() == MAX_LINE + " [cut]".len());
        assert_eq!(lines[1], "next");
    }
}
