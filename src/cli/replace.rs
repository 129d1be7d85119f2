//! The daemon makes way for the binary on disk: the same process, the same open ports, other code.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};

/// The first descriptor that systemd's protocol hands over (`sd_listen_fds(3)`).
const FIRST_FD: i32 = 3;

/// Where the binary was when this process was started; what is there now may be another one.
pub(super) fn own_binary() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Whether that file is a raynode that runs at all: there is no way back from one that does not.
pub(super) fn runs(binary: &Path) -> Result<(), String> {
    let output = Command::new(binary)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.starts_with("raynode ") {
        tracing::info!(version = said.trim_end(), "the binary on disk takes over");
        Ok(())
    } else {
        Err(format!("it does not say its version ({})", output.status))
    }
}

/// Becomes that binary, with these ports open. Returns only when it can't.
pub(super) fn exec(binary: &Path, ports: Vec<TcpListener>) -> io::Error {
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
    match command.fd_mappings(mappings) {
        Ok(command) => command.exec(),
        Err(error) => io::Error::other(error),
    }
}
