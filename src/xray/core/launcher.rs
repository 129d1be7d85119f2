//! How a core is started: from a configuration to a process whose API has answered.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use uuid::Uuid;

use super::coming::{Coming, ended};
use super::files::{Files, InboundSocket};
use super::output::{Output, Tail};
use super::{Core, Error, READY_DEADLINE};
use crate::disk;
use crate::telemetry::Metrics;
use crate::xray::config::{Accounts, Door, LogFiles, Skeleton};
use crate::xray::leftover;
use crate::xray::logs::Logs;
use crate::xray::parts::Parts;
use crate::xray::process::{Process, Spawn};
use crate::xray::record::Record;
use crate::xray::tool::{Tool, hidden_variables};
use crate::xray::version::Version;

/// How long a binary may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// How cores of one node are started.
#[derive(Debug)]
pub struct Launcher {
    /// Where the cores' API sockets go; nobody else may enter it.
    pub runtime_dir: PathBuf,
    /// How many log lines an error repeats.
    pub tail_lines: usize,
    /// Where each configuration is written for people who debug it; they see every line of the
    /// cores in the node's own log, too.
    pub debug_config: Option<PathBuf>,
    /// Where the cores' log lines go.
    pub logs: Arc<Logs>,
    /// Where it is counted what becomes of cores.
    pub metrics: Arc<Metrics>,
    guise: Option<(u32, u32)>,
    parts: Mutex<Parts>,
    sockets: AtomicU64,
    version: Mutex<Option<(Parts, Version)>>,
}

impl Launcher {
    /// Cores of these parts, with their sockets in `runtime_dir`.
    #[must_use]
    pub fn new(parts: Parts, runtime_dir: PathBuf, logs: Arc<Logs>) -> Self {
        Self {
            guise: None,
            parts: Mutex::new(parts),
            runtime_dir,
            tail_lines: 200,
            debug_config: None,
            logs,
            metrics: Arc::default(),
            sockets: AtomicU64::new(1),
            version: Mutex::new(None),
        }
    }

    /// What the next core is made of, as it is on disk now.
    #[must_use]
    pub fn parts(&self) -> Parts {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.clone().now_on_disk()
    }

    /// Later cores are made of these.
    pub fn set_parts(&self, parts: Parts) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = parts;
    }

    /// Later cores are made of these, where that is something else; whether it is.
    pub fn set_parts_if_others(&self, parts: &Parts) -> bool {
        let others = !parts.differences(&self.parts()).is_empty();
        if others {
            self.set_parts(parts.clone());
        }
        others
    }

    /// For root: asks a binary as the user to whom the node's folder belongs, who chooses what it is. That user
    /// is to run it anyway, and must not do so as root.
    #[must_use]
    pub fn as_the_owner_of(mut self, state_dir: &Path) -> Self {
        let owner = std::fs::metadata(state_dir).map(|folder| (folder.uid(), folder.gid()));
        self.guise = owner.ok().filter(|_| geteuid().is_root());
        self
    }

    fn tool(&self, binary: &Path) -> Tool {
        match self.guise {
            Some((uid, gid)) => Tool::new(binary).run_by(uid, gid),
            None => Tool::new(binary),
        }
    }

    /// The version of the binary, asked anew only when the file has changed.
    ///
    /// # Errors
    /// When there is no such binary or it is not Xray.
    pub async fn version(&self) -> Result<Version, Error> {
        if let Some(known) = self.known_version() {
            return Ok(known);
        }
        // Looked at before it is asked: a file that is exchanged meanwhile is asked again.
        let parts = self.parts();
        let version = ask_version(self.tool(&parts.binary), &parts.binary).await?;
        *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some((parts, version));
        Ok(version)
    }

    /// The version as it was last told, if that was of this very file. Never waits.
    #[must_use]
    pub fn known_version(&self) -> Option<Version> {
        let known = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, version) = known.as_ref()?;
        of.has_the_binary_of(&self.parts()).then_some(*version)
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
        let version = self.version().await?;
        self.check_with((&self.parts(), version), skeleton, accounts)
            .await
    }

    /// The same for a core of other parts.
    ///
    /// # Errors
    /// As for one of those that later cores are made of.
    pub async fn check_parts(
        &self,
        parts: &Parts,
        skeleton: &Skeleton,
        accounts: &impl Accounts,
    ) -> Result<Duration, Error> {
        let version = ask_version(self.tool(&parts.binary), &parts.binary).await?;
        self.check_with((parts, version), skeleton, accounts).await
    }

    async fn check_with(
        &self,
        (parts, version): (&Parts, Version),
        skeleton: &Skeleton,
        accounts: &impl Accounts,
    ) -> Result<Duration, Error> {
        let began = Instant::now();
        let door = Door {
            socket: &self.runtime_dir.join("check.sock"),
            version,
            placeholder_key: rand::random(),
            inbound_sockets: &[],
            quic_idle_timeout: parts.quic_idle_timeout,
        };
        let config = render(skeleton, accounts, door)?;
        let run = self
            .tool(&parts.binary)
            .args(["run", "-test", "-c", "stdin:"])
            .env("XRAY_LOCATION_ASSET", &parts.assets)
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
                binary: parts.binary.clone(),
                reason: error.to_string(),
            }),
            Err(_) => Err(Error::NotReady {
                patience: READY_DEADLINE,
                tail: tail.text(),
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
        for path in skeleton.unix_sockets() {
            InboundSocket::is_free(path).await?;
        }
        let coming = self.bring_up(skeleton, accounts).await?;
        // Before it serves anybody: a core that no record names is ended by the next daemon.
        self.write_record(coming.record());
        coming.ready(patience).await?;
        let core = coming.into_core()?;
        core.show_sockets()?;
        self.write_record(core.record());
        Ok(core)
    }

    /// A core that comes up. It is gone when what is returned here is dropped.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn bring_up(
        &self,
        skeleton: &Skeleton,
        accounts: &impl Accounts,
    ) -> Result<Coming, Error> {
        let version = self.version().await?;
        let parts = self.parts();
        let id = Uuid::new_v4();
        let files = self.fresh_files(id, skeleton)?;
        let door = Door {
            socket: &files.socket,
            version,
            placeholder_key: rand::random(),
            inbound_sockets: &files.inbound_sockets,
            quic_idle_timeout: parts.quic_idle_timeout,
        };
        let config = render(skeleton, accounts, door)?;
        if skeleton.gives_up_inbound_counters(version) {
            tracing::warn!(%version, "inbounds are not counted: with a hysteria inbound this xray could not count users then");
        }
        self.write_debug_config(&config)?;
        let (tail, output) = self.output(skeleton.log_files(), &files);
        let process = self.spawn(&parts, &files, config, output)?;
        let known = files.inbound_sockets.iter();
        let record = Record::new(
            (id, process.identity()),
            &parts,
            version,
            (&files.socket, &files.fifo),
            known.map(|socket| socket.known.clone()).collect(),
        );
        let told = (tail, Arc::clone(&self.metrics));
        Ok(Coming::new(process, record, version, files, told))
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

    /// Puts down which core serves. Better not taken over later than not serving now.
    pub fn write_record(&self, record: &Record) {
        if let Err(error) = record.write(&self.runtime_dir) {
            tracing::error!(folder = %self.runtime_dir.display(), %error, "the next daemon will not take this core over");
        }
    }

    /// Where the lines of a core go, and its last ones.
    pub(super) fn output(&self, log_files: &LogFiles, files: &Files) -> (Tail, Output) {
        let tail = Tail::new(self.tail_lines);
        let output = Output::new(
            Arc::clone(&self.logs),
            log_files,
            &files.socket,
            tail.clone(),
            self.debug_config.is_some(),
        );
        (tail, output)
    }

    fn spawn(
        &self,
        parts: &Parts,
        files: &Files,
        config: Vec<u8>,
        output: Output,
    ) -> Result<Process, Error> {
        let mark = leftover::mark(&self.runtime_dir);
        let debug = go_debug();
        let memory_limit = parts.memory_limit.map(|bytes| bytes.to_string());
        // Not by the name that stands for whichever are used: one core never sees two of them.
        let assets = parts.assets.canonicalize();
        let assets = assets.unwrap_or_else(|_| parts.assets.clone());
        let mut environment = vec![
            ("XRAY_LOCATION_ASSET".as_ref(), assets.as_os_str()),
            (leftover::MARK.as_ref(), mark.as_os_str()),
            ("GODEBUG".as_ref(), debug.as_os_str()),
        ];
        if let Some(limit) = &memory_limit {
            environment.push(("GOMEMLIMIT".as_ref(), limit.as_ref()));
        }
        let spawn = Spawn {
            binary: &parts.binary,
            arguments: &["run", "-c", "stdin:"],
            environment,
            hidden: hidden_variables(),
            fifo: &files.fifo,
        };
        spawn.start(config, output).map_err(|error| Error::Binary {
            binary: parts.binary.clone(),
            reason: error.to_string(),
        })
    }

    /// Paths that no core has had: Xray hangs without a word on the socket of one that still lives.
    fn fresh_files(&self, core: Uuid, skeleton: &Skeleton) -> Result<Files, Error> {
        loop {
            let number = self.sockets.fetch_add(1, Ordering::Relaxed);
            let name = format!("core-{}-{number}", std::process::id());
            let socket = self.runtime_dir.join(format!("{name}.sock"));
            match std::fs::symlink_metadata(&socket) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Files {
                        core,
                        runtime_dir: self.runtime_dir.clone(),
                        socket,
                        fifo: self.runtime_dir.join(format!("{name}.log")),
                        inbound_sockets: InboundSocket::of(core, skeleton.unix_sockets()),
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

async fn ask_version(tool: Tool, binary: &Path) -> Result<Version, Error> {
    let fail = |reason: String| Error::Binary {
        binary: binary.to_owned(),
        reason,
    };
    let output = tool.arg("version").run(&[]);
    let output = tokio::time::timeout(VERSION_DEADLINE, output)
        .await
        .map_err(|_| fail("`version` did not end within 10 s".to_owned()))?
        .map_err(|error| fail(error.to_string()))?;
    Version::from_banner(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| fail("`version` does not print what xray prints".to_owned()))
}

pub(super) fn render(
    skeleton: &Skeleton,
    accounts: &impl Accounts,
    door: Door<'_>,
) -> Result<Vec<u8>, Error> {
    let mut config = Vec::with_capacity(16 << 10);
    skeleton
        .render(door, accounts, &mut config)
        .map_err(|source| Error::Io {
            path: PathBuf::from("the configuration"),
            source,
        })?;
    Ok(config)
}

/// Go opens listeners as MPTCP sockets, and the kernel steers none of those.
fn go_debug() -> OsString {
    const STEERABLE: &str = "multipathtcp=0";
    match std::env::var_os("GODEBUG") {
        Some(debug) if !debug.is_empty() => {
            let mut debug = debug;
            debug.push(",");
            debug.push(STEERABLE);
            debug
        }
        _ => STEERABLE.into(),
    }
}
