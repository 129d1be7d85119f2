//! A core: one Xray process from its configuration to its end.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;

use super::child::{Child, Spawn};
use super::client::Client;
use super::config::{Accounts, Door, Skeleton};
use super::leftover;
use super::logs::Logs;
use super::version::Version;

mod output;

use self::output::{Output, Tail};

/// How long a core may take until its API answers. 100,000 users take about a second.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How often a starting core is asked.
const READY_INTERVAL: Duration = Duration::from_millis(3);
/// How long a core gets to stop by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How often a running core is asked whether it lives.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// After so many unanswered questions in a row a core counts as hung.
const HEALTH_FAILURES: u32 = 10;
/// The longest part of the log that one error repeats.
const ERROR_LOG_BYTES: usize = 4 << 10;

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

/// How cores of one node are started.
#[derive(Debug)]
pub struct Launcher {
    /// The Xray binary.
    pub binary: PathBuf,
    /// Where `geoip.dat` and `geosite.dat` are.
    pub assets: PathBuf,
    /// Where the cores' API sockets go; nobody else may enter it.
    pub runtime_dir: PathBuf,
    /// How many log lines an error repeats.
    pub tail_lines: usize,
    /// Where each configuration is written for people who debug it.
    pub debug_config: Option<PathBuf>,
    /// Where the cores' log lines go.
    pub logs: Arc<Logs>,
    sockets: AtomicU64,
    version: Mutex<Option<(SystemTime, u64, Version)>>,
}

/// A running core whose API has answered.
#[derive(Debug)]
pub struct Core {
    child: Child,
    client: Client,
    version: Version,
    ready: Instant,
    socket: PathBuf,
    tail: Tail,
    _health: JoinSet<()>,
}

impl Launcher {
    /// Cores of `binary`, with their sockets in `runtime_dir`.
    #[must_use]
    pub fn new(binary: PathBuf, assets: PathBuf, runtime_dir: PathBuf, logs: Arc<Logs>) -> Self {
        Self {
            binary,
            assets,
            runtime_dir,
            tail_lines: 200,
            debug_config: None,
            logs,
            sockets: AtomicU64::new(1),
            version: Mutex::new(None),
        }
    }

    /// The version of the binary, asked anew only when the file has changed.
    ///
    /// # Errors
    /// When there is no such binary or it is not Xray.
    pub async fn version(&self) -> Result<Version, Error> {
        let fail = |reason: String| Error::Binary {
            binary: self.binary.clone(),
            reason,
        };
        let file = std::fs::metadata(&self.binary).map_err(|error| fail(error.to_string()))?;
        let stamp = (
            file.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            file.len(),
        );
        let known = *self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((modified, length, version)) = known
            && (modified, length) == stamp
        {
            return Ok(version);
        }
        let output = tokio::process::Command::new(&self.binary)
            .arg("version")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(10), output)
            .await
            .map_err(|_| fail("`version` did not end within 10 s".to_owned()))?
            .map_err(|error| fail(error.to_string()))?;
        let version = Version::from_banner(&String::from_utf8_lossy(&output.stdout))
            .ok_or_else(|| fail("`version` does not print what xray prints".to_owned()))?;
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((stamp.0, stamp.1, version));
        Ok(version)
    }

    /// Asks Xray whether it would run this configuration. Binds nothing and touches no running core.
    ///
    /// # Errors
    /// [`Error::Refused`] with Xray's own words.
    pub async fn check(&self, skeleton: &Skeleton, accounts: &impl Accounts) -> Result<(), Error> {
        let version = self.version().await?;
        let socket = self.runtime_dir.join("check.sock");
        let config = self.render(skeleton, accounts, &socket, version)?;
        let tail = Tail::new(self.tail_lines);
        let output = Output::discarding(tail.clone());
        let child = self.spawn(&["run", "-test", "-c", "stdin:"], config, output)?;
        match tokio::time::timeout(READY_DEADLINE, child.ended()).await {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(status) => Err(ended(status, &tail)),
            Err(_) => Err(Error::NotReady {
                tail: tail.text(ERROR_LOG_BYTES),
            }),
        }
    }

    /// Starts a core and returns it once its API answers.
    ///
    /// # Errors
    /// When the configuration can't be run; the process is gone then.
    pub async fn start(
        &self,
        skeleton: &Skeleton,
        accounts: &impl Accounts,
    ) -> Result<Core, Error> {
        let version = self.version().await?;
        let socket = self.fresh_socket()?;
        let config = self.render(skeleton, accounts, &socket, version)?;
        self.write_debug_config(&config)?;
        let tail = Tail::new(self.tail_lines);
        let output = Output::new(
            Arc::clone(&self.logs),
            skeleton.log_files(),
            &socket,
            tail.clone(),
        );
        let child = self.spawn(&["run", "-c", "stdin:"], config, output)?;
        let client = Client::new(socket.clone());
        ready(&child, &client, &tail).await?;
        tracing::info!(pid = child.pid(), %version, "core started");
        Ok(Core {
            version,
            ready: Instant::now(),
            socket,
            tail,
            _health: watch_health(child.pid(), client.clone()),
            client,
            child,
        })
    }

    fn spawn(&self, arguments: &[&str], config: Vec<u8>, output: Output) -> Result<Child, Error> {
        let mark = leftover::mark(&self.runtime_dir);
        let spawn = Spawn {
            binary: &self.binary,
            arguments,
            environment: vec![
                ("XRAY_LOCATION_ASSET".as_ref(), self.assets.as_os_str()),
                (leftover::MARK.as_ref(), &mark),
            ],
        };
        spawn.start(config, output).map_err(|error| Error::Binary {
            binary: self.binary.clone(),
            reason: error.to_string(),
        })
    }

    fn render(
        &self,
        skeleton: &Skeleton,
        accounts: &impl Accounts,
        socket: &Path,
        version: Version,
    ) -> Result<Vec<u8>, Error> {
        let mut config = Vec::with_capacity(16 << 10);
        let door = Door {
            socket,
            version,
            placeholder_key: rand::random(),
        };
        skeleton
            .render(door, accounts, &mut config)
            .map_err(|source| Error::Io {
                path: PathBuf::from("the configuration"),
                source,
            })?;
        Ok(config)
    }

    /// A path that no core has had: Xray hangs without a word on the path of one that still lives.
    fn fresh_socket(&self) -> Result<PathBuf, Error> {
        loop {
            let number = self.sockets.fetch_add(1, Ordering::Relaxed);
            let socket = self
                .runtime_dir
                .join(format!("core-{}-{number}.sock", std::process::id()));
            match std::fs::symlink_metadata(&socket) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(socket),
                Err(source) => {
                    return Err(Error::Io {
                        path: socket,
                        source,
                    });
                }
                Ok(_) => {}
            }
        }
    }

    fn write_debug_config(&self, config: &[u8]) -> Result<(), Error> {
        let Some(folder) = &self.debug_config else {
            return Ok(());
        };
        let path = folder.join("xray.json");
        let fail = |source| Error::Io {
            path: path.clone(),
            source,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(fail)?;
        let config: serde_json::Value =
            serde_json::from_slice(config).map_err(|error| fail(error.into()))?;
        crate::disk::write_private(&path, format!("{config:#}\n").as_bytes()).map_err(fail)
    }
}

/// Looks every few milliseconds, and at the process at the same time: a core that ends early says
/// why, and nobody has to wait for a deadline.
async fn ready(child: &Child, client: &Client, tail: &Tail) -> Result<(), Error> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        let answers = tokio::select! {
            biased;
            status = child.ended() => return Err(ended(status, tail)),
            answer = client.sys_stats() => answer.is_ok(),
        };
        if answers {
            return Ok(());
        }
        if Instant::now() >= deadline {
            child.kill().await;
            return Err(Error::NotReady {
                tail: tail.text(ERROR_LOG_BYTES),
            });
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

fn ended(status: Option<ExitStatus>, tail: &Tail) -> Error {
    match tail.failure() {
        Some(reason) => Error::Refused(reason),
        None => Error::Ended {
            status: status.map_or_else(|| "unknown status".to_owned(), |status| status.to_string()),
            tail: tail.text(ERROR_LOG_BYTES),
        },
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
        let group = nix::unistd::Pid::from_raw(pid);
        if let Err(error) = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL) {
            tracing::debug!(pid, %error, "the core is gone already");
        }
    });
    task
}

impl Core {
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
        self.remove_socket();
        tracing::info!(pid = self.pid(), "core stopped");
    }

    /// Xray leaves its socket behind when it is killed.
    pub fn remove_socket(&self) {
        let mut lock = self.socket.clone().into_os_string();
        lock.push(".lock");
        for path in [self.socket.as_path(), lock.as_ref()] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(path = %path.display(), %error, "the socket stays behind");
                }
                _ => {}
            }
        }
    }
}
