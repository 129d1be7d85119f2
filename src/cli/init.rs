//! `raynode init`: process 1 of a container. It starts the daemon, starts it again when it dies, hands
//! signals on and reaps. The core outlives the daemon here, too: it becomes a child of this process.

#![expect(clippy::print_stderr, reason = "a command speaks to its operator")]

use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal as listen};

use super::{EXIT_FAILED, EXIT_USAGE};
use crate::replace;

/// The longest wait before a daemon is started again.
const LONGEST: Duration = Duration::from_secs(5);
/// One that ran so long has served.
const SERVES: Duration = Duration::from_secs(2);
/// A daemon that ran so long has nothing to do with its predecessor's troubles.
const STABLE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What `raynode run` gets.
    #[arg(last = true)]
    run: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = runtime.and_then(|runtime| runtime.block_on(look_after(arguments)));
    ended.unwrap_or_else(|error| {
        eprintln!("raynode init: {error}");
        ExitCode::from(EXIT_FAILED)
    })
}

async fn look_after(arguments: &Arguments) -> io::Result<ExitCode> {
    // Where this is not process 1, orphans of the daemon come here all the same.
    prctl::set_child_subreaper(true)?;
    let mut children = listen(SignalKind::child())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut replace = listen(SignalKind::user_defined2())?;

    // The path of now: what is there later is another version, and that is as it should be.
    let binary = replace::own_binary()?;
    let mut daemon = Daemon::start(&binary, arguments)?;
    let mut wait = Duration::ZERO;
    let mut stopping = false;
    let mut has_served = false;
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                stopping = true;
                daemon.send(Signal::SIGTERM);
            }
            _ = interrupt.recv() => {
                stopping = true;
                daemon.send(Signal::SIGINT);
            }
            _ = hangup.recv() => daemon.send(Signal::SIGHUP),
            _ = replace.recv() => daemon.send(Signal::SIGUSR2),
            _ = children.recv() => {}
        }
        let Some(ended) = reap(daemon.pid) else {
            continue;
        };
        // What the operator has to mend does not get better by trying again; but where a core serves, it
        // must not go down with this process.
        has_served |= daemon.since.elapsed() >= SERVES;
        let is_over = match ended {
            Ended::With(0) => true,
            Ended::With(EXIT_USAGE) => !has_served,
            _ => false,
        };
        if stopping || is_over {
            return Ok(ended.exit_code());
        }
        wait = if daemon.since.elapsed() >= STABLE {
            Duration::ZERO
        } else {
            (wait * 2).clamp(Duration::from_millis(100), LONGEST)
        };
        if matches!(ended, Ended::With(EXIT_USAGE)) {
            wait = LONGEST;
        }
        eprintln!(
            "raynode init: the daemon ended ({ended}), starting it again in {} ms; the core serves on",
            wait.as_millis()
        );
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = terminate.recv() => return Ok(ended.exit_code()),
            _ = interrupt.recv() => return Ok(ended.exit_code()),
        }
        daemon = loop {
            match Daemon::start(&binary, arguments) {
                Ok(daemon) => break daemon,
                Err(error) => eprintln!("raynode init: {}: {error}", binary.display()),
            }
            tokio::time::sleep(LONGEST).await;
        };
    }
}

struct Daemon {
    pid: Pid,
    since: Instant,
}

impl Daemon {
    fn start(binary: &Path, arguments: &Arguments) -> io::Result<Self> {
        let child = Command::new(binary)
            .arg("run")
            .args(&arguments.run)
            .spawn()?;
        // It is reaped with all others.
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self {
            pid: Pid::from_raw(pid),
            since: Instant::now(),
        })
    }

    fn send(&self, signal: Signal) {
        if let Err(error) = signal::kill(self.pid, signal) {
            eprintln!("raynode init: {signal} did not reach the daemon: {error}");
        }
    }
}

/// How the daemon ended.
enum Ended {
    With(u8),
    By(Signal),
}

impl Ended {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::With(code) => ExitCode::from(*code),
            // As shells say it.
            Self::By(signal) => {
                ExitCode::from(u8::try_from(128 + *signal as i32).unwrap_or(EXIT_FAILED))
            }
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::With(code) => write!(f, "exit code {code}"),
            Self::By(signal) => write!(f, "{signal}"),
        }
    }
}

/// Buries every child that has ended; says how the daemon did, if it is among them.
fn reap(daemon: Pid) -> Option<Ended> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == daemon => {
                found = Some(Ended::With(u8::try_from(code).unwrap_or(EXIT_FAILED)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == daemon => {
                found = Some(Ended::By(signal));
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return found,
            Ok(_) => {}
        }
    }
}
