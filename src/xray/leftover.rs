//! Cores that a node which died left behind.
//!
//! Xray shares its ports: a forgotten core would go on serving its old users to half of the
//! clients, without an error anywhere. Every core carries a mark in its environment that names the
//! node's runtime folder; before the first core is started, those that carry ours are ended.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::handover::journal::Journal;
use super::process::Identity;
use super::record::Record;

/// The environment variable that marks a core as ours.
pub(super) const MARK: &str = "RAYNODE_RUNTIME_DIR";

/// The value of the mark for a runtime folder.
pub(super) fn mark(runtime_dir: &Path) -> OsString {
    runtime_dir
        .canonicalize()
        .unwrap_or_else(|_| runtime_dir.to_owned())
        .into_os_string()
}

/// How long a leftover core gets to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends every core that an earlier node with this runtime folder left behind, but those that were
/// `adopted`; returns how many.
///
/// Only a node that is sure to be alone on its runtime folder may call this.
pub async fn end(runtime_dir: &Path, adopted: &[i32]) -> usize {
    let mut leftover = cores_of(runtime_dir);
    leftover.retain(|pid| !adopted.contains(&pid.as_raw()));
    for pid in &leftover {
        tracing::warn!(%pid, "ending a core that an earlier node left behind");
        send(*pid, Signal::SIGTERM);
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let identities: Vec<Identity> = leftover
        .iter()
        .filter_map(|pid| Identity::of(pid.as_raw()))
        .collect();
    let lives = |identity: &Identity| Identity::of(identity.pid) == Some(*identity);
    while identities.iter().any(lives) {
        if tokio::time::Instant::now() >= deadline {
            identities
                .iter()
                .filter(|identity| lives(identity))
                .for_each(|identity| send(Pid::from_raw(identity.pid), Signal::SIGKILL));
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if adopted.is_empty() {
        remove_files(runtime_dir);
    }
    leftover.len()
}

/// Ends every core of the node with this runtime folder at once, without asking.
pub fn kill_all(runtime_dir: &Path) {
    for pid in cores_of(runtime_dir) {
        send(pid, Signal::SIGKILL);
    }
}

/// Ends one core at once, without asking, if it is one of the node with this runtime folder.
pub fn kill(runtime_dir: &Path, process: Identity) {
    if is_core_of(runtime_dir, process) {
        send(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// Those with the mark, and those that the records name.
fn cores_of(runtime_dir: &Path) -> Vec<Pid> {
    let mut cores = marked(&mark(runtime_dir));
    let journal = Journal::read(runtime_dir);
    let named = Record::read(runtime_dir)
        .into_iter()
        .chain(journal.records());
    cores.extend(
        named
            .filter(|record| is_core_of(runtime_dir, record.process))
            .map(|record| Pid::from_raw(record.process.pid)),
    );
    cores.sort();
    cores.dedup();
    cores
}

/// Whether a process that a record names is a core of the node with this runtime folder.
///
/// A core whose binary has capabilities of its own shows its environment to nobody but root: then its
/// number and the moment of its start have to do.
pub(crate) fn is_core_of(runtime_dir: &Path, process: Identity) -> bool {
    if Identity::of(process.pid) != Some(process) {
        return false;
    }
    match std::fs::read(format!("/proc/{}/environ", process.pid)) {
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
        Ok(environment) => has_mark(&environment, &mark(runtime_dir)),
    }
}

/// What cores that are gone had in the folder.
fn remove_files(runtime_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(runtime_dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = [".sock", ".sock.lock", ".log"];
        if name.starts_with("core-") && ours.iter().any(|end| name.ends_with(end)) {
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

fn marked(mark: &OsString) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| *pid != Pid::this())
        .filter(|pid| is_marked(*pid, mark))
        .collect()
}

fn is_marked(pid: Pid, mark: &OsString) -> bool {
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    has_mark(&environment, mark)
}

fn has_mark(environment: &[u8], mark: &OsString) -> bool {
    let wanted = [MARK.as_bytes(), b"=", mark.as_bytes()].concat();
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == wanted)
}

fn send(pid: Pid, signal: Signal) {
    if let Err(error) = signal::kill(pid, signal) {
        tracing::debug!(%pid, %error, "the leftover core is gone already");
    }
}
