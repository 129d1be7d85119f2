//! What each signal asks of the daemon.

use std::io;
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::replace;
use crate::shutdown::{How, Shutdown};
use crate::systemd;

/// The signals that end the daemon, listened to from now on.
pub(super) struct Ending {
    terminate: Signal,
    interrupt: Signal,
    replace: Signal,
    binary: PathBuf,
}

impl Ending {
    /// For a daemon that makes way for `binary` when it is asked to.
    pub(super) fn listen(binary: PathBuf) -> io::Result<Self> {
        Ok(Self {
            binary,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            replace: signal(SignalKind::user_defined2())?,
        })
    }

    /// Begins the shutdown with the first signal, and returns with the second: somebody is in a
    /// hurry.
    pub(super) async fn watch(mut self, shutdown: &Shutdown) {
        shutdown.begin(self.first().await);
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn first(&mut self) -> How {
        loop {
            if let Some(how) = self.next().await {
                return how;
            }
        }
    }

    async fn next(&mut self) -> Option<How> {
        Some(tokio::select! {
            _ = self.replace.recv() => {
                if let Err(reason) = tokio::task::block_in_place(|| replace::runs(&self.binary)) {
                    tracing::error!(binary = %self.binary.display(), reason, "SIGUSR2: the binary on disk can't take over, so nothing changes");
                    return None;
                }
                tracing::info!("SIGUSR2: making way for the binary on disk, the core serves on");
                How::Exec
            }
            _ = self.interrupt.recv() => {
                tracing::info!("SIGINT: stopping");
                How::Stop
            }
            _ = self.terminate.recv() => {
                if systemd::is_restarting_us().await {
                    tracing::info!("SIGTERM: systemd starts this node again, the core serves on");
                    How::Detach
                } else {
                    tracing::info!("SIGTERM: stopping");
                    How::Stop
                }
            }
        })
    }
}
