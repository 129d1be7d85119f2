//! What each signal asks of the daemon.

use std::io;
use std::path::{Path, PathBuf};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::replace;
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

    /// Begins the shutdown with the first signal. Who wants a core stopped that was to serve on gets it;
    /// who asks once more for what is under way is in a hurry, and this returns.
    pub(super) async fn watch(mut self, shutdown: &Shutdown) {
        let how = self.first().await;
        shutdown.begin(how);
        if how != How::Stop {
            self.asked_to_stop().await;
            tracing::info!("stopping the core, too");
            shutdown.begin(How::Stop);
        }
        self.asked_to_stop().await;
    }

    async fn asked_to_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn first(&mut self) -> How {
        loop {
            tokio::select! {
                _ = self.replace.recv() => {
                    let binary = self.binary.clone();
                    tokio::select! {
                        can = can_replace_us(&binary) => if can {
                            tracing::info!("SIGUSR2: making way for the binary on disk, the core serves on");
                            return How::Exec;
                        },
                        () = self.asked_to_stop() => {
                            tracing::info!("asked to stop: stopping");
                            return How::Stop;
                        }
                    }
                }
                _ = self.interrupt.recv() => {
                    tracing::info!("SIGINT: stopping");
                    return How::Stop;
                }
                _ = self.terminate.recv() => {
                    if systemd::is_restarting_us().await {
                        tracing::info!("SIGTERM: systemd starts this node again, the core serves on");
                        return How::Detach;
                    }
                    tracing::info!("SIGTERM: stopping");
                    return How::Stop;
                }
            }
        }
    }
}

async fn can_replace_us(binary: &Path) -> bool {
    match replace::check(binary).await {
        Ok(version) => {
            tracing::info!(version, "the binary on disk can take over");
            true
        }
        Err(reason) => {
            tracing::error!(binary = %binary.display(), reason, "SIGUSR2: the binary on disk can't take over, so nothing changes");
            false
        }
    }
}
