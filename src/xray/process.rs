//! One Xray process that needs nobody: in a session of its own, writing to a FIFO that it holds open
//! itself, so that it lives on when its daemon does not.
//!
//! A daemon starts one, or attaches to one that an earlier daemon started. Both hold it by a pidfd, so
//! that no signal ever reaches another process that got its number.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;
use process_wrap::tokio::{CommandWrap, ProcessSession};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lines::{Sink, read_lines};

/// What a FIFO keeps while no daemon reads it; the kernel's usual limit.
const FIFO_BYTES: i32 = 1 << 20;
/// How long the output of a process that has ended is waited for; a grandchild could hold it open.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed process is waited for.
const REAP: Duration = Duration::from_secs(5);

/// The state of a process that has ended and was not waited for: proc(5).
const ZOMBIE: &str = "Z";

/// How to start a process.
#[derive(Debug)]
pub(super) struct Spawn<'a> {
    pub(super) binary: &'a Path,
    pub(super) arguments: &'a [&'a str],
    pub(super) environment: Vec<(&'a OsStr, &'a OsStr)>,
    /// Variables of ours that the process must not inherit.
    pub(super) hidden: &'a [&'a str],
    /// Where its output goes: a FIFO that is made here.
    pub(super) fifo: &'a Path,
}

/// Which process it is: numbers are given again, the moment of its start is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: i32,
    /// When it was started, in ticks since the machine was.
    pub started: u64,
}

impl Identity {
    /// That of a living process.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let (identity, state) = Self::with_state(pid)?;
        // A zombie is a process that has ended.
        (state != ZOMBIE).then_some(identity)
    }

    /// That of a child of ours that nobody waited for yet, whether it still runs or not.
    fn of_child(pid: i32) -> Option<Self> {
        Self::with_state(pid).map(|(identity, _)| identity)
    }

    fn with_state(pid: i32) -> Option<(Self, String)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may have blanks and brackets; what counts stands behind it.
        let (_, behind) = stat.rsplit_once(") ")?;
        let mut fields = behind.split(' ');
        let state = fields.next()?.to_owned();
        let started = fields.nth(18)?.parse().ok()?;
        Some((Self { pid, started }, state))
    }
}

/// A process. Dropping it leaves it alone.
#[derive(Debug)]
pub(super) struct Process {
    identity: Identity,
    pidfd: Arc<OwnedFd>,
    ended: watch::Receiver<Option<Ended>>,
    _keeper: JoinSet<()>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its parent knows.
    With(ExitStatus),
    /// It was somebody else's child.
    Somehow,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::With(status) => status.fmt(f),
            Self::Somehow => f.write_str("status unknown"),
        }
    }
}

impl Spawn<'_> {
    /// Starts the process, hands `input` to its standard input and its output to `sink`.
    ///
    /// # Errors
    /// When the binary can't be run or the FIFO can't be made.
    pub(super) fn start(self, input: Vec<u8>, sink: impl Sink) -> io::Result<Process> {
        let (writer, reader) = fifo(self.fifo)?;
        let mut command = Command::new(self.binary);
        for variable in self.hidden {
            command.env_remove(variable);
        }
        command
            .args(self.arguments)
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut command = CommandWrap::from(command);
        // What is around it holds the FIFO open, too.
        let spawned = command.wrap(ProcessSession).spawn();
        drop(command);
        let mut child = spawned?.into_inner();
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let identity = pid.and_then(Identity::of_child);
        let pidfd = pid.and_then(Pid::from_raw).map(open).transpose()?;
        let (Some(identity), Some(pidfd)) = (identity, pidfd) else {
            return Err(io::Error::other("/proc does not show the process"));
        };
        let mut stdin = child.stdin().take();
        let feed = async move {
            if let Some(stdin) = &mut stdin
                && let Err(error) = stdin.write_all(&input).await
            {
                // The process says itself why it stopped reading.
                tracing::debug!(%error, "xray did not read its whole configuration");
            }
        };
        let wait = async move {
            let (status, ()) = tokio::join!(child.wait(), feed);
            match status {
                Ok(status) => Ended::With(status),
                Err(error) => {
                    tracing::error!(%error, "waiting for the process failed");
                    Ended::Somehow
                }
            }
        };
        Ok(Process::keep(identity, pidfd, reader, sink, wait))
    }
}

impl Process {
    /// Attaches to a process that an earlier daemon started; `None` when it has ended.
    ///
    /// # Errors
    /// When its output can't be read.
    pub(super) fn attach(
        identity: Identity,
        fifo: &Path,
        sink: impl Sink,
    ) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(identity.pid) else {
            return Ok(None);
        };
        let Ok(pidfd) = open(pid) else {
            return Ok(None);
        };
        // Held by now, so the number can't change hands between the look and the signal.
        if Identity::of(identity.pid) != Some(identity) {
            return Ok(None);
        }
        // Where its name is gone, it is still what the process writes to.
        let reader = pipe::OpenOptions::new().open_receiver(fifo).or_else(|_| {
            pipe::OpenOptions::new().open_receiver(format!("/proc/{}/fd/1", identity.pid))
        })?;
        let watched = Arc::clone(&pidfd);
        let buried = Arc::clone(&pidfd);
        let wait = async move {
            #[expect(
                deprecated,
                reason = "for types that lose their descriptor; this one keeps it, and the other way is unsafe"
            )]
            let watch = AsyncFd::with_interest(watched, Interest::READABLE);
            // A pidfd becomes readable when its process ends.
            let ended = async { watch?.readable().await.map(drop) };
            if let Err(error) = ended.await {
                tracing::error!(%error, "watching the process failed");
            }
            bury(&buried)
        };
        Ok(Some(Self::keep(identity, pidfd, reader, sink, wait)))
    }

    fn keep(
        identity: Identity,
        pidfd: Arc<OwnedFd>,
        reader: pipe::Receiver,
        sink: impl Sink,
        wait: impl Future<Output = Ended> + Send + 'static,
    ) -> Self {
        let (report, ended) = watch::channel(None);
        let mut keeper = JoinSet::new();
        keeper.spawn(async move {
            let mut output = JoinSet::new();
            output.spawn(read_lines(reader, sink));
            let ended = wait.await;
            let drained = tokio::time::timeout(DRAIN, output.join_next());
            if drained.await.is_err() {
                tracing::debug!("the output of a process that has ended is still open");
            }
            report.send_replace(Some(ended));
        });
        Self {
            identity,
            pidfd,
            ended,
            _keeper: keeper,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    pub(super) fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Whether the process has ended, without waiting.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }

    /// Waits for the end. Cancel-safe.
    pub(super) async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        let seen = ended.wait_for(Option::is_some).await;
        seen.ok().and_then(|ended| *ended).unwrap_or(Ended::Somehow)
    }

    /// SIGTERM, and SIGKILL when `patience` is over.
    pub(super) async fn stop(&self, patience: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(patience, self.ended()).await.is_err() {
            tracing::warn!(pid = self.pid(), "xray did not stop when asked, killing it");
            self.kill().await;
        }
    }

    pub(super) async fn kill(&self) {
        self.signal(Signal::KILL);
        if tokio::time::timeout(REAP, self.ended()).await.is_err() {
            tracing::error!(pid = self.pid(), "xray is still there after SIGKILL");
        }
    }

    /// Something to kill it by, wherever the process itself is.
    pub(super) fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.pidfd))
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal) {
            tracing::debug!(pid = self.pid(), %error, "the process is gone already");
        }
    }
}

/// Kills one process, and never another.
#[derive(Debug)]
pub(super) struct Killer(Arc<OwnedFd>);

impl Killer {
    pub(super) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.0, Signal::KILL) {
            tracing::debug!(%error, "the process is gone already");
        }
    }
}

/// A daemon that took the place of another in the same process has its children, and has to bury them.
fn bury(pidfd: &OwnedFd) -> Ended {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let Ok(Some(status)) = waitid(WaitId::PidFd(pidfd.as_fd()), options) else {
        return Ended::Somehow;
    };
    // As wait(2) encodes it: the code in the upper byte, a signal in the lower one.
    let code = status.exit_status().map(|code| code << 8);
    match code.or(status.terminating_signal()) {
        Some(raw) => Ended::With(ExitStatus::from_raw(raw)),
        None => Ended::Somehow,
    }
}

fn open(pid: Pid) -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(pidfd_open(pid, PidfdFlags::NONBLOCK)?))
}

/// A fresh FIFO: what the process writes to, and our end. The process's end is open for reading, too:
/// a writer without any reader would be killed.
fn fifo(path: &Path) -> io::Result<(File, pipe::Receiver)> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let writer = File::options().read(true).write(true).open(path)?;
    if let Err(error) = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(FIFO_BYTES)) {
        tracing::debug!(%error, "the FIFO keeps its usual size");
    }
    let reader = pipe::OpenOptions::new().open_receiver(path)?;
    Ok((writer, reader))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Sink for Lines {
        fn lines(&mut self, lines: &[String]) {
            self.0.lock().unwrap().extend(lines.iter().cloned());
        }
    }

    fn shell<'a>(script: &'a [&'a str], fifo: &'a Path) -> Spawn<'a> {
        Spawn {
            binary: Path::new("/bin/sh"),
            arguments: script,
            environment: Vec::new(),
            hidden: &[],
            fifo,
        }
    }

    #[tokio::test]
    async fn a_process_reads_its_input_and_is_heard_to_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let (lines, fifo) = (Lines::default(), folder.path().join("log"));
        let script = ["-c", "cat; echo last >&2; exit 7"];
        let spawn = shell(&script, &fifo);
        let process = spawn.start(b"first\n".to_vec(), lines.clone()).unwrap();
        let Ended::With(status) = process.ended().await else {
            panic!("our own child ends with a status");
        };
        assert_eq!(status.code(), Some(7));
        assert!(process.has_ended());
        assert_eq!(*lines.0.lock().unwrap(), ["first", "last"]);
    }

    #[test]
    fn a_child_that_ended_at_once_is_still_known() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id().cast_signed();
        let waiting = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_raw(pid).unwrap()), waiting).unwrap();
        assert_eq!(Identity::of(pid), None);
        let identity = Identity::of_child(pid).unwrap();
        assert_eq!(identity.pid, pid);
        assert!(identity.started > 0);
        child.wait().unwrap();
        assert_eq!(Identity::of_child(pid), None);
    }

    #[tokio::test]
    async fn it_lives_on_without_us_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let (lines, fifo) = (Lines::default(), folder.path().join("log"));
        let script = [
            "-c",
            "read line; echo $line; read other; echo $other; sleep 60",
        ];
        let first = shell(&script, &fifo)
            .start(b"one\n".to_vec(), lines.clone())
            .unwrap();
        let identity = first.identity();
        drop(first);
        assert_eq!(Identity::of(identity.pid), Some(identity));

        let other = Identity {
            started: identity.started + 1,
            ..identity
        };
        assert!(
            Process::attach(other, &fifo, lines.clone())
                .unwrap()
                .is_none()
        );
        let again = Process::attach(identity, &fifo, lines.clone())
            .unwrap()
            .unwrap();
        assert!(!again.has_ended());
        again.stop(Duration::from_secs(5)).await;
        assert!(again.has_ended());
        assert_eq!(Identity::of(identity.pid), None);
        assert!(Process::attach(identity, &fifo, lines).unwrap().is_none());
    }

    #[tokio::test]
    async fn one_that_does_not_stop_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("log");
        let lines = Lines::default();
        let script = ["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"];
        let process = shell(&script, &fifo)
            .start(Vec::new(), lines.clone())
            .unwrap();
        while lines.0.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        process.stop(Duration::from_millis(100)).await;
        assert!(process.has_ended());
    }
}
