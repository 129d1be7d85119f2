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
