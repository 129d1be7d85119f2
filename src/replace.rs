//! The daemon makes way for the binary on disk: the same process, the same open ports, other code.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};

/// The first descriptor that systemd's protocol hands over (`sd_listen_fds(3)`).
const FIRST_FD: i32 = 3;
/// How long the binary may take to say that it would run.
const DEADLINE: Duration = Duration::from_secs(10);

/// The path by which this program was started, now that it still is what it was: what is there later
/// may be another version. A link stays a link, so that it may be pointed elsewhere.
pub(crate) fn own_binary() -> io::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let named = std::env::args_os().next().and_then(|name| named(&name));
    Ok(named
        .filter(|named| is_same_file(named, &running))
        .unwrap_or(running))
}

fn named(name: &OsStr) -> Option<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return std::path::absolute(path).ok();
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .map(|folder| folder.join(path))
        .find(|candidate| candidate.is_file())
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// Whether that file is a raynode that would run with the settings of now, and which: there is no way
/// back from one that does not.
pub(crate) async fn check(binary: &Path) -> Result<String, String> {
    let output = tokio::process::Command::new(binary)
        .args(std::env::args_os().skip(1))
        .arg("--check")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, output)
        .await
        .map_err(|_| "it does not end when it is asked to check the settings".to_owned())?
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().strip_prefix("raynode ") {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {}", output.status, complaint.trim()))
        }
    }
}

/// What this program started and did not wait for would be nobody's dead afterwards.
fn bury_the_dead() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while !matches!(
        waitpid(None, Some(WaitPidFlag::WNOHANG)),
        Ok(WaitStatus::StillAlive) | Err(_)
    ) {}
}

/// Becomes that binary, with these ports open. Returns only when it can't.
pub(crate) fn exec(binary: &Path, ports: Vec<TcpListener>) -> io::Error {
    bury_the_dead();
    let count = ports.len().to_string();
    let mappings = ports
        .into_iter()
        .zip(FIRST_FD..)
        .map(|(port, child_fd)| FdMapping {
            parent_fd: OwnedFd::from(port),
            child_fd,
        })
        .collect();
    let mut command = Command::new(binary);
    command
        .args(std::env::args_os().skip(1))
        .env("LISTEN_FDS", count)
        .env("LISTEN_PID", std::process::id().to_string());
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    match command.fd_mappings(mappings) {
        Ok(command) => command.exec(),
        Err(error) => io::Error::other(error),
    }
}
