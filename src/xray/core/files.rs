//! What one core has in the file system, besides its record.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Error;
use crate::xray::record::Record;

/// What one core has in the runtime folder, and where its inbounds listen below a name.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) core: Uuid,
    pub(super) runtime_dir: PathBuf,
    /// Its API.
    pub(super) socket: PathBuf,
    /// Its output.
    pub(super) fifo: PathBuf,
    pub(super) inbound_sockets: Vec<InboundSocket>,
}

impl Files {
    /// Those of the core of a record.
    pub(super) fn of(record: &Record, runtime_dir: &Path) -> Self {
        Self {
            core: record.id,
            runtime_dir: runtime_dir.to_owned(),
            socket: record.socket.clone(),
            fifo: record.fifo.clone(),
            inbound_sockets: InboundSocket::of(record.id, record.inbound_sockets()),
        }
    }

    /// Xray leaves its sockets behind when it is killed, and some versions when they can't start.
    pub(super) fn clear_up(&self) {
        Record::remove(&self.runtime_dir, self.core);
        let mut paths = vec![
            self.socket.clone(),
            lock_of(&self.socket),
            self.fifo.clone(),
        ];
        for socket in &self.inbound_sockets {
            paths.extend([socket.own.clone(), lock_of(&socket.own)]);
        }
        for path in paths {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(path = %path.display(), %error, "a file of a core stays behind");
                }
                _ => {}
            }
        }
    }
}

/// Xray locks a file beside each socket.
fn lock_of(socket: &Path) -> PathBuf {
    let mut lock = socket.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// A unix socket that an inbound listens on. A core never opens the one that clients know: two cores
/// could not share it. Each has one of its own beside it, which gets the known name when it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundSocket {
    /// The one in the configuration.
    pub(in crate::xray) known: PathBuf,
    /// The one that the core opens, in the same folder.
    pub(in crate::xray) own: PathBuf,
}

impl InboundSocket {
    /// Those of one core.
    pub(super) fn of<'a>(core: Uuid, known: impl Iterator<Item = &'a Path>) -> Vec<Self> {
        known
            .enumerate()
            .map(|(number, known)| {
                let short: String = core.simple().to_string().chars().take(8).collect();
                // Short: the whole path has to fit the kernel's limit of 107 bytes.
                let own = known.with_file_name(OsString::from(format!(".{short}-{number}")));
                Self {
                    known: known.to_owned(),
                    own,
                }
            })
            .collect()
    }

    /// Gives it the name that clients know; whoever had that name keeps only the connections he has. It can
    /// be had under its own name, too, so that this can be done again.
    pub(super) fn show(&self) -> Result<(), Error> {
        let mut fresh = self.own.clone().into_os_string();
        fresh.push("~");
        let fresh = PathBuf::from(fresh);
        let fail = |source| Error::Io {
            path: self.known.clone(),
            source,
        };
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        std::fs::hard_link(&self.own, &fresh).map_err(fail)?;
        std::fs::rename(&fresh, &self.known).map_err(fail)?;
        // Where it had that name already, both are the same file and nothing was renamed.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
            _ => Ok(()),
        }
    }

    /// Makes sure that nobody else has the name that clients know. A socket that a killed core left is
    /// nobody's.
    ///
    /// # Errors
    /// When somebody has it.
    pub async fn is_free(known: &Path) -> Result<(), Error> {
        let taken = |by: &str| {
            Err(Error::Refused(format!(
                "an inbound is to listen on {}, but {by}",
                known.display()
            )))
        };
        let Ok(file) = std::fs::symlink_metadata(known) else {
            return Ok(());
        };
        if !file.file_type().is_socket() {
            return taken("there is a file that is no socket");
        }
        match tokio::net::UnixStream::connect(known).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            // One who does not accept makes this fail in another way; he is there all the same.
            _ => taken("another program listens there: address already in use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[tokio::test]
    async fn the_known_name_goes_from_one_core_to_the_other_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let known = folder.path().join("in.sock");
        let paths = [known.as_path()];
        let core = || InboundSocket::of(Uuid::new_v4(), paths.into_iter()).remove(0);
        let (old, new) = (core(), core());
        InboundSocket::is_free(&known).await.unwrap();
        let old_listener = UnixListener::bind(&old.own).unwrap();
        let new_listener = UnixListener::bind(&new.own).unwrap();
        for listener in [&old_listener, &new_listener] {
            listener.set_nonblocking(true).unwrap();
        }
        let reaches = |listener: &UnixListener| {
            let _client = UnixStream::connect(&known).unwrap();
            listener.accept().is_ok()
        };
        old.show().unwrap();
        assert!(reaches(&old_listener));
        assert!(
            InboundSocket::is_free(&known).await.is_err(),
            "it is in use"
        );
        for _ in 0..2 {
            new.show().unwrap();
        }
        assert!(reaches(&new_listener));
        for _ in 0..2 {
            old.show().unwrap();
        }
        assert!(reaches(&old_listener));
        drop(old_listener);
        InboundSocket::is_free(&known).await.unwrap();
        std::fs::remove_file(&known).unwrap();
        std::fs::write(&known, "").unwrap();
        assert!(
            InboundSocket::is_free(&known).await.is_err(),
            "a file of somebody's"
        );
    }
}
