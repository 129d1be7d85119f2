//! The socket: bound beside the core's, open to the node's own user and to root.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::{Installing, Operator};
use crate::panel::cores::Cores;
use crate::shutdown::Shutdown;
use crate::xray::leftover;
use crate::xray::process::Identity;

/// Its name in `RUNTIME_DIR`.
const NAME: &str = "control.sock";
/// How many calls one connection may make at a time.
const CALLS: usize = 32;
/// Accepting fails when there are no descriptors left; asking at once again would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The largest message: a configuration with many users, or a list of them.
pub const MAX_MESSAGE: usize = 64 << 20;

/// Where the daemon of this runtime folder listens.
#[must_use]
pub fn path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join(NAME)
}

/// The socket of a daemon that has its runtime folder for itself.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    runtime_dir: PathBuf,
}

impl ControlSocket {
    /// Takes the place of the socket of an earlier daemon.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub fn bind(runtime_dir: &Path) -> io::Result<Self> {
        let path = path(runtime_dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        // Nobody else can enter the folder; this is for the day on which somebody changes that.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            listener,
            runtime_dir: runtime_dir.to_owned(),
        })
    }

    /// Answers until `shutdown`. Calls that are under way then end with their connections.
    pub async fn serve(
        self,
        operator: Operator,
        installing: Installing,
        cores: Cores,
        shutdown: Shutdown,
    ) {
        let incoming = connections(self.listener, self.runtime_dir);
        let router: Router = Server::builder()
            .concurrency_limit_per_connection(CALLS)
            .add_service(operator.into_server(MAX_MESSAGE))
            .add_service(installing.into_server(MAX_MESSAGE))
            .add_service(cores.into_server(MAX_MESSAGE));
        let served = router.serve_with_incoming_shutdown(incoming, async move {
            shutdown.begun().await;
        });
        if let Err(error) = served.await {
            tracing::error!(%error, "the control socket is not served any more, `raynode` the command gets no answer");
        }
    }
}

fn connections(
    listener: UnixListener,
    runtime_dir: PathBuf,
) -> impl Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold((listener, runtime_dir), |(listener, runtime_dir)| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match caller(&stream, &runtime_dir) {
                    Caller::Operator => return Some((Ok(stream), (listener, runtime_dir))),
                    Caller::Core => tracing::warn!(
                        "a core came to the control socket and was turned away: its configuration leads there"
                    ),
                    Caller::Unknown => tracing::debug!(
                        "somebody who can't be looked at came to the control socket and was turned away: a command that gave up, mostly"
                    ),
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting an operator failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Who has come to the socket.
#[derive(Debug, PartialEq, Eq)]
enum Caller {
    Operator,
    Core,
    /// Its process is gone, so nobody can tell it from a core.
    Unknown,
}

/// Cores run as the node's user, and a panel's configuration may lead anybody's connection to a unix socket
/// (a fallback of VLESS or Trojan).
fn caller(stream: &UnixStream, runtime_dir: &Path) -> Caller {
    let Ok(peer) = stream.peer_cred() else {
        return Caller::Unknown;
    };
    // Root's processes can't be looked at, and need not be.
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Caller::Operator;
    }
    who(peer.pid(), runtime_dir)
}

fn who(pid: Option<i32>, runtime_dir: &Path) -> Caller {
    match pid.and_then(Identity::of) {
        None => Caller::Unknown,
        Some(process) if leftover::is_core_of(runtime_dir, process) => Caller::Core,
        Some(_) => Caller::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_gave_up_is_no_core() {
        let folder = tempfile::tempdir().unwrap();
        let sleep = || std::process::Command::new("sleep");
        let runtime_dir = folder.path().canonicalize().unwrap();
        let mut core = sleep();
        core.arg("60").env("RAYNODE_RUNTIME_DIR", runtime_dir);
        let mut core = core.spawn().unwrap();
        let mut command = sleep().arg("60").spawn().unwrap();
        let pids = [core.id(), command.id()].map(|pid| i32::try_from(pid).ok());
        let alive = pids.map(|pid| who(pid, folder.path()));
        for child in [&mut core, &mut command] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(alive, [Caller::Core, Caller::Operator]);
        assert_eq!(
            pids.map(|pid| who(pid, folder.path())),
            [Caller::Unknown, Caller::Unknown]
        );
    }
}
