//! How a core is started: from a configuration to a process whose API has answered.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::output::{Output, Tail};
use super::tool::{Tool, hidden_variables};
use super::{Core, Error, Files, READY_DEADLINE};
use crate::disk;
use crate::xray::client::Client;
use crate::xray::config::{Accounts, Door, Skeleton};
use crate::xray::leftover;
use crate::xray::logs::Logs;
use crate::xray::process::{Process, Spawn};
use crate::xray::record::Record;
use crate::xray::version::Version;

/// How often a starting core is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(3);
/// How long a binary may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// The longest part of the log that one error repeats.
const ERROR_LOG_BYTES: usize = 4 << 10;

/// By what a file is known to be the one of before: its time of change and its length.
type Stamp = (SystemTime, u64);

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
    /// Where each configuration is written for people who debug it; they see every line of the
    /// cores in the node's own log, too.
    pub debug_config: Option<PathBuf>,
    /// Where the cores' log lines go.
    pub logs: Arc<Logs>,
    sockets: AtomicU64,
    version: Mutex<Option<(Stamp, Version)>>,
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
        if let Some(known) = self.known_version() {
            return Ok(known);
        }
        // Taken before it is asked: a file that is exchanged meanwhile is asked again.
        let stamp = self.stamp().map_err(|error| fail(error.to_string()))?;
        let output = Tool::new(&self.binary).arg("version").run(&[]);
        let output = tokio::time::timeout(VERSION_DEADLINE, output)
            .await
            .map_err(|_| fail("`version` did not end within 10 s".to_owned()))?
            .map_err(|error| fail(error.to_string()))?;
        let version = Version::from_banner(&String::from_utf8_lossy(&output.stdout))
            .ok_or_else(|| fail("`version` does not print what xray prints".to_owned()))?;
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some((stamp, version));
        Ok(version)
    }

    /// The version as it was last told, if that was of this very file. Never waits.
    #[must_use]
    pub fn known_version(&self) -> Option<Version> {
        let known = *self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let (stamp, version) = known?;
        (self.stamp().ok()? == stamp).then_some(version)
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let file = std::fs::metadata(&self.binary)?;
        Ok((
            file.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            file.len(),
        ))
    }

    /// Asks Xray whether it would run this configuration, and says how long that took. Binds nothing and
    /// touches no running core.
    ///
    /// # Errors
    /// [`Error::Refused`] with Xray's own words.
    pub async fn check(
        &self,
        skeleton: &Skeleton,
        accounts: &impl Accounts,
    ) -> Result<Duration, Error> {
        let began = Instant::now();
        let version = self.version().await?;
        let socket = self.runtime_dir.join("check.sock");
        let config = Self::render(skeleton, accounts, &socket, version)?;
        let run = Tool::new(&self.binary)
            .args(["run", "-test", "-c", "stdin:"])
            .env("XRAY_LOCATION_ASSET", &self.assets)
            .env(leftover::MARK, leftover::mark(&self.runtime_dir))
            .run(&config);
        let tail = Tail::new(self.tail_lines);
        match tokio::time::timeout(READY_DEADLINE, run).await {
            Ok(Ok(output)) if output.status.success() => Ok(began.elapsed()),
            Ok(Ok(output)) => {
                for text in [&output.stdout, &output.stderr] {
                    tail.extend(&String::from_utf8_lossy(text));
                }
                Err(ended(&output.status.to_string(), &tail))
            }
            Ok(Err(error)) => Err(Error::Binary {
                binary: self.binary.clone(),
                reason: error.to_string(),
            }),
            Err(_) => Err(Error::NotReady {
                patience: READY_DEADLINE,
                tail: tail.text(ERROR_LOG_BYTES),
            }),
        }
    }

    /// Starts a core and returns it once its API answers, which has to be within `patience`.
    ///
    /// # Errors
    /// When the configuration can't be run; the process is gone then.
    pub async fn start(
        &self,
        skeleton: &Skeleton,
        accounts: &impl Accounts,
        patience: Duration,
    ) -> Result<Core, Error> {
        let version = self.version().await?;
        let files = self.fresh_files()?;
        let config = Self::render(skeleton, accounts, &files.socket, version)?;
        if skeleton.gives_up_inbound_counters(version) {
            tracing::warn!(%version, "inbounds are not counted: with a hysteria inbound this xray could not count users then");
        }
        for path in skeleton.unix_sockets() {
            remove_stale_socket(path).await;
        }
        self.write_debug_config(&config)?;
        let (tail, output) = self.output(skeleton, &files);
        let mut attempt = Attempt {
            process: Some(self.spawn(&files, config, output)?),
            files: files.clone(),
        };
        let process = attempt.process.as_ref().ok_or_else(gone)?;
        // Before it serves anybody: a core that no record names is ended by the next daemon.
        let record = Record::new(
            Uuid::new_v4(),
            process.identity(),
            &self.binary,
            version,
            (&files.socket, &files.fifo),
        );
        if let Err(error) = self.write_record(&record) {
            // Better not taken over later than not serving now.
            tracing::error!(%error, "the next daemon will not take this core over");
        }
        ready(process, &Client::new(files.socket.clone()), &tail, patience).await?;
        let record = record.now_ready();
        if let Err(error) = self.write_record(&record) {
            tracing::error!(%error, "the next daemon will not take this core over");
        }
        let process = attempt.process.take().ok_or_else(gone)?;
        tracing::info!(pid = process.pid(), %version, "core started");
        Ok(Core::new(
            record.id,
            process,
            version,
            Instant::now(),
            files,
            tail,
        ))
    }

    /// Whether a core could be recorded: better known before another one is stopped for it.
    ///
    /// # Errors
    /// When the runtime folder can't be written.
    pub fn can_record(&self) -> Result<(), Error> {
        let path = self.runtime_dir.join("probe");
        // As long as a record, a FIFO's and a socket's names beside it.
        disk::write_private(&path, &[b' '; 16 << 10])
            .and_then(|()| std::fs::remove_file(&path))
            .map_err(|source| Error::Io { path, source })
    }

    fn write_record(&self, record: &Record) -> Result<(), Error> {
        record.write(&self.runtime_dir).map_err(|source| Error::Io {
            path: self.runtime_dir.join("core.json"),
            source,
        })
    }

    /// Where the lines of a core go, and its last ones.
    pub(super) fn output(&self, skeleton: &Skeleton, files: &Files) -> (Tail, Output) {
        let tail = Tail::new(self.tail_lines);
        let output = Output::new(
            Arc::clone(&self.logs),
            skeleton.log_files(),
            &files.socket,
            tail.clone(),
            self.debug_config.is_some(),
        );
        (tail, output)
    }

    fn spawn(&self, files: &Files, config: Vec<u8>, output: Output) -> Result<Process, Error> {
        let mark = leftover::mark(&self.runtime_dir);
        let spawn = Spawn {
            binary: &self.binary,
            arguments: &["run", "-c", "stdin:"],
            environment: vec![
                ("XRAY_LOCATION_ASSET".as_ref(), self.assets.as_os_str()),
                (leftover::MARK.as_ref(), &mark),
            ],
            hidden: hidden_variables(),
            fifo: &files.fifo,
        };
        spawn.start(config, output).map_err(|error| Error::Binary {
            binary: self.binary.clone(),
            reason: error.to_string(),
        })
    }

    fn render(
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

    /// Paths that no core has had: Xray hangs without a word on the socket of one that still lives.
    fn fresh_files(&self) -> Result<Files, Error> {
        loop {
            let number = self.sockets.fetch_add(1, Ordering::Relaxed);
            let name = format!("core-{}-{number}", std::process::id());
            let socket = self.runtime_dir.join(format!("{name}.sock"));
            match std::fs::symlink_metadata(&socket) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Files {
                        runtime_dir: self.runtime_dir.clone(),
                        socket,
                        fifo: self.runtime_dir.join(format!("{name}.log")),
                    });
                }
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
        disk::write_private(&path, format!("{config:#}\n").as_bytes()).map_err(fail)
    }
}

/// Xray leaves a socket behind when it is killed, and the next one could not listen on it.
async fn remove_stale_socket(path: &Path) {
    use std::os::unix::fs::FileTypeExt;

    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if !is_socket {
        return;
    }
    // Somebody who listens there is somebody else, and Xray will say so. One who does not accept makes
    // this fail at once, in another way.
    let is_stale = tokio::net::UnixStream::connect(path)
        .await
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_stale && let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a socket that the config listens on is in the way");
    }
}

/// A core that is not ready yet: whatever keeps it from becoming so, it does not stay.
struct Attempt {
    process: Option<Process>,
    files: Files,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.killer().kill();
            self.files.clear_up();
        }
    }
}

fn gone() -> Error {
    Error::Ended {
        status: "gone".to_owned(),
        tail: String::new(),
    }
}

/// Looks every few milliseconds, and at the process at the same time: a core that ends early says
/// why, and nobody has to wait for a deadline.
async fn ready(
    process: &Process,
    client: &Client,
    tail: &Tail,
    patience: Duration,
) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    loop {
        let answers = tokio::select! {
            biased;
            how = process.ended() => return Err(ended(&how.to_string(), tail)),
            answer = client.sys_stats() => answer.is_ok(),
            () = tokio::time::sleep_until(deadline.into()) => false,
        };
        if answers {
            return Ok(());
        }
        if Instant::now() >= deadline {
            process.kill().await;
            return Err(Error::NotReady {
                patience,
                tail: tail.text(ERROR_LOG_BYTES),
            });
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

fn ended(status: &str, tail: &Tail) -> Error {
    match tail.failure() {
        Some(reason) => Error::Refused(reason),
        None => Error::Ended {
            status: status.to_owned(),
            tail: tail.text(ERROR_LOG_BYTES),
        },
    }
}
