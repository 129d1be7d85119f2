//! A core: one Xray process from its configuration to its end.

mod launcher;
mod output;
mod rules;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::task::JoinSet;

pub use self::launcher::Launcher;

use self::output::Tail;
use super::child::Child;
use super::client::Client;
use super::version::Version;

/// How long a core may take until its API answers. 100,000 users take about a second.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long a core gets to stop by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How often a running core is asked whether it lives.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// After so many unanswered questions in a row a core counts as hung.
const HEALTH_FAILURES: u32 = 10;

/// Why there is no core.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary is missing, is not executable, or is not Xray.
    #[error("{}: {reason}; install xray there or set XRAY_EXECUTABLE_PATH", .binary.display())]
    Binary {
        /// Where it was looked for.
        binary: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Xray will not run this configuration.
    #[error("failed to start xray: {0}")]
    Refused(String),
    /// The process ended before it was ready.
    #[error("xray process stopped before API became ready ({status}); recent xray logs:\n{tail}")]
    Ended {
        /// How it ended.
        status: String,
        /// Its last lines.
        tail: String,
    },
    /// The process lives and does not answer.
    #[error("xray did not become ready within {} s; recent xray logs:\n{tail}", READY_DEADLINE.as_secs())]
    NotReady {
        /// Its last lines.
        tail: String,
    },
    /// A file or folder of ours is in the way.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A running core whose API has answered.
#[derive(Debug)]
pub struct Core {
    child: Child,
    client: Client,
    version: Version,
    ready: Instant,
    socket: Socket,
    tail: Tail,
    _health: JoinSet<()>,
}

impl Core {
    fn new(child: Child, client: Client, version: Version, socket: Socket, tail: Tail) -> Self {
        let health = watch_health(child.pid(), client.clone());
        Self {
            child,
            client,
            version,
            ready: Instant::now(),
            socket,
            tail,
            _health: health,
        }
    }

    /// The process's pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Its API.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// When its API first answered.
    #[must_use]
    pub fn ready_since(&self) -> Instant {
        self.ready
    }

    /// Whether the process has ended, without waiting.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.child.has_ended()
    }

    /// Waits until the process has ended and says how, with its last lines. Cancel-safe.
    pub async fn ended(&self) -> String {
        let status = self.child.ended().await;
        let mut text =
            status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
        if let Some(reason) = self.tail.failure() {
            text.push_str(": ");
            text.push_str(&reason);
        }
        text
    }

    /// Stops the process: asked first, killed when it does not.
    pub async fn stop(self) {
        self.child.stop(STOP_PATIENCE).await;
        tracing::info!(pid = self.pid(), "core stopped");
    }
}

/// The path of one core's API. Xray leaves the file behind when it is killed, and some versions leave
/// it when they can't start.
#[derive(Debug)]
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let mut lock = self.0.clone().into_os_string();
        lock.push(".lock");
        for path in [self.0.as_path(), lock.as_ref()] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(path = %path.display(), %error, "the socket stays behind");
                }
                _ => {}
            }
        }
    }
}

/// Kills a core that lives and does not answer; its end is then seen like any other.
fn watch_health(pid: i32, client: Client) -> JoinSet<()> {
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut failures = 0;
        while failures < HEALTH_FAILURES {
            tokio::time::sleep(HEALTH_INTERVAL).await;
            failures = match client.sys_stats().await {
                Ok(_) => 0,
                Err(error) => {
                    tracing::warn!(pid, %error, "the core does not answer");
                    failures + 1
                }
            };
        }
        tracing::error!(pid, "the core hangs, killing it");
        let group = Pid::from_raw(pid);
        if let Err(error) = killpg(group, Signal::SIGKILL) {
            tracing::debug!(pid, %error, "the core is gone already");
        }
    });
    task
}
