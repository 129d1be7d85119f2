//! A core: one Xray process from its configuration to its end.

mod adopt;
mod coming;
mod files;
mod inbounds;
mod launcher;
mod output;
mod rules;
mod tell;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use uuid::Uuid;

pub use self::adopt::{NotAdopted, PATIENCE as ADOPTION_PATIENCE};
pub use self::coming::Coming;
pub use self::files::InboundSocket;
pub use self::launcher::Launcher;
pub use self::tell::Address;

use self::files::Files;
use self::output::Tail;
use super::client::Client;
use super::parts::Parts;
use super::process::{Ended, Killer, Process};
use super::record::Record;
use super::version::Version;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Death;

/// How long a core may take until its API answers. 100,000 users take about a second.
pub const READY_DEADLINE: Duration = Duration::from_secs(60);
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
    #[error("{}: {reason}; `raynode core install` brings one, or XRAY_EXECUTABLE_PATH names one", .binary.display())]
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
    #[error("xray did not become ready within {:.1} s; recent xray logs:\n{tail}", .patience.as_secs_f32())]
    NotReady {
        /// How long it was waited for.
        patience: Duration,
        /// Its last lines.
        tail: String,
    },
    /// The process lives, and an inbound has no port: somebody else has it.
    #[error("xray does not listen for inbound {inbounds}; recent xray logs:\n{tail}")]
    DoesNotListen {
        /// Which inbounds, and on which ports.
        inbounds: String,
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

/// A running core whose API has answered. Dropping it leaves it alone.
#[derive(Debug)]
pub struct Core {
    record: Record,
    process: Process,
    client: Client,
    version: Version,
    ready: Instant,
    files: Files,
    tail: Tail,
    metrics: Arc<Metrics>,
    /// It was killed for being silent.
    hung: Arc<AtomicBool>,
    _health: JoinSet<()>,
}

impl Core {
    fn new(
        record: Record,
        process: Process,
        version: Version,
        ready: Instant,
        files: Files,
        (tail, metrics): (Tail, Arc<Metrics>),
    ) -> Self {
        let client = Client::new(files.socket.clone());
        let hung = Arc::new(AtomicBool::new(false));
        let killer = (process.killer(), Arc::clone(&hung));
        let health = watch_health(process.pid(), killer, client.clone());
        Self {
            record,
            process,
            client,
            version,
            ready,
            files,
            tail,
            metrics,
            hung,
            _health: health,
        }
    }

    /// Its own number, which no other core ever has.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.record.id
    }

    /// How the next daemon finds it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What it was made of.
    #[must_use]
    pub fn parts(&self) -> Option<&Parts> {
        self.record.parts()
    }

    /// From now on whoever connects to a unix socket of the configuration gets this core.
    ///
    /// # Errors
    /// When a name can't be given.
    pub fn show_sockets(&self) -> Result<(), Error> {
        let mut sockets = self.files.inbound_sockets.iter();
        sockets.try_for_each(InboundSocket::show)
    }

    /// The unix sockets that its inbounds listen on.
    pub fn own_sockets(&self) -> impl Iterator<Item = &std::path::Path> {
        let sockets = self.files.inbound_sockets.iter();
        sockets.map(|socket| socket.own.as_path())
    }

    /// The process's pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.pid()
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
        self.process.has_ended()
    }

    /// Waits until the process has ended and says how, with its last lines. Cancel-safe.
    pub async fn ended(&self) -> String {
        let mut text = self.process.ended().await.to_string();
        if let Some(reason) = self.tail.failure() {
            text.push_str(": ");
            text.push_str(&reason);
        }
        text
    }

    /// Ends the process at once, and clears up behind it.
    pub async fn kill(self) {
        self.process.kill().await;
        self.files.clear_up();
    }

    /// Bytes of memory that it has, by the kernel's word.
    #[must_use]
    pub fn memory(&self) -> Option<u64> {
        memory_of(self.pid())
    }

    /// Stops the process, asked first and killed when it does not, and clears up behind it. One that
    /// has ended by itself is cleared up, too, and counted as dead.
    pub async fn stop(self) {
        if self.has_ended() {
            self.metrics.died(self.death().await);
        } else {
            self.process.stop(STOP_PATIENCE).await;
            tracing::info!(pid = self.pid(), "core stopped");
        }
        self.files.clear_up();
    }

    /// How it ended by itself.
    async fn death(&self) -> Death {
        if self.hung.load(Ordering::Relaxed) {
            return Death::Hung;
        }
        match self.process.ended().await {
            Ended::With(status) if status.code().is_some() => Death::Exit,
            Ended::With(_) => Death::Signal,
            Ended::Somehow => Death::Unknown,
        }
    }
}

/// Bytes of memory that a process has.
#[must_use]
pub fn memory_of(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Kills a core that lives and does not answer; its end is then seen like any other.
fn watch_health(
    pid: i32,
    (process, hung): (Killer, Arc<AtomicBool>),
    client: Client,
) -> JoinSet<()> {
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
        hung.store(true, Ordering::Relaxed);
        process.kill();
    });
    task
}
