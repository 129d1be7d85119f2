//! Ports that were open before this program was: those of the daemon that it follows.

use std::net::{SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use listenfd::ListenFd;

static INHERITED: LazyLock<Mutex<Vec<TcpListener>>> = LazyLock::new(|| {
    let mut handed = ListenFd::from_env();
    let ports = (0..handed.len()).filter_map(|index| match handed.take_tcp_listener(index) {
        Ok(port) => port,
        Err(error) => {
            tracing::warn!(%error, "a port that was handed over can't be used");
            None
        }
    });
    Mutex::new(ports.collect())
});

/// Closes those that were handed over and that nobody will listen on: a setting has changed. Callers
/// would be taken in and never answered, and a new address of the same port would be in use.
pub fn close_all_but(wanted: &[SocketAddr]) {
    let mut ports = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    ports.retain(|port| port.local_addr().is_ok_and(|found| wanted.contains(&found)));
}

/// Whether the process that started this one listens on that port, on whichever address.
#[must_use]
pub fn of_our_parent(address: SocketAddr) -> bool {
    let parent = std::os::unix::process::parent_id();
    let Ok(files) = std::fs::read_dir(format!("/proc/{parent}/fd")) else {
        return false;
    };
    let sockets: Vec<String> = files
        .filter_map(|file| {
            let target = std::fs::read_link(file.ok()?.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    tables
        .iter()
        .flatten()
        .flat_map(|table| table.lines())
        .any(|line| {
            // Number, local address and port in hexadecimal, remote, state; the inode is the tenth field.
            let mut fields = line.split_whitespace();
            let local = fields.nth(1).and_then(|local| local.rsplit_once(':'));
            let port = local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            let inode = fields.nth(7);
            port == Some(address.port())
                && inode.is_some_and(|inode| sockets.iter().any(|socket| socket == inode))
        })
}

/// The port of this address, once, when it was handed over.
pub(super) fn inherited(address: SocketAddr) -> Option<TcpListener> {
    let mut ports = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let place = ports
        .iter()
        .position(|port| port.local_addr().is_ok_and(|found| found == address))?;
    let port = ports.swap_remove(place);
    port.set_nonblocking(true).ok()?;
    Some(port)
}
