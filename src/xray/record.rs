//! Which core runs, on disk for the daemon that comes after this one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::parts::Parts;
use super::process::Identity;
use super::version::Version;
use crate::disk;

/// The record's form; another one is not read.
const FORMAT: u32 = 1;

/// A core as the next daemon finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// The core's own number, which nothing else has.
    pub id: Uuid,
    /// Its process.
    pub process: Identity,
    /// The file that it was started from.
    pub binary: PathBuf,
    version: String,
    /// Its API.
    pub socket: PathBuf,
    /// Its output.
    pub fifo: PathBuf,
    /// When its API first answered, Unix milliseconds; absent while it comes up.
    ready: Option<u64>,
    /// What it was made of.
    #[serde(default)]
    parts: Option<Parts>,
    /// The unix sockets that clients know and that its inbounds listen behind.
    #[serde(default)]
    inbound_sockets: Vec<PathBuf>,
}

impl Record {
    pub(super) fn new(
        (id, process): (Uuid, Identity),
        parts: &Parts,
        version: Version,
        (socket, fifo): (&Path, &Path),
        inbound_sockets: Vec<PathBuf>,
    ) -> Self {
        Self {
            format: FORMAT,
            id,
            process,
            binary: parts.binary.clone(),
            version: version.to_string(),
            socket: socket.to_owned(),
            fifo: fifo.to_owned(),
            ready: None,
            parts: Some(parts.clone()),
            inbound_sockets,
        }
    }

    /// What the core was made of; `None` where an older daemon started it.
    #[must_use]
    pub fn parts(&self) -> Option<&Parts> {
        self.parts.as_ref()
    }

    /// The unix sockets that clients know and that its inbounds listen behind.
    pub(super) fn inbound_sockets(&self) -> impl Iterator<Item = &Path> {
        self.inbound_sockets.iter().map(PathBuf::as_path)
    }

    pub(super) fn now_ready(mut self) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.ready = now.ok().and_then(|now| u64::try_from(now.as_millis()).ok());
        self
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version.parse().ok()
    }

    /// Since when it serves; `None` when it never did.
    #[must_use]
    pub fn ready_since(&self) -> Option<Instant> {
        let ready = SystemTime::UNIX_EPOCH + Duration::from_millis(self.ready?);
        // A clock that was set back makes it young, not impossible.
        let age = SystemTime::now().duration_since(ready).unwrap_or_default();
        Some(Instant::now().checked_sub(age).unwrap_or_else(Instant::now))
    }

    /// The one in this folder. What can't be read is moved aside and said loudly.
    #[must_use]
    pub fn read(runtime_dir: &Path) -> Option<Self> {
        let path = path(runtime_dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the record of the running core can't be read");
                return None;
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(record) if record.format == FORMAT => Some(record),
            Ok(record) => {
                tracing::error!(path = %path.display(), format = record.format, "the record of the running core has a form that this version does not know");
                disk::move_aside(&path);
                None
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the record of the running core is damaged");
                disk::move_aside(&path);
                None
            }
        }
    }

    /// Puts it in its place.
    pub(super) fn write(&self, runtime_dir: &Path) -> io::Result<()> {
        disk::write_private(&path(runtime_dir), &serde_json::to_vec_pretty(self)?)
    }

    /// Takes it away, if it is that of this core.
    pub(super) fn remove(runtime_dir: &Path, core: Uuid) {
        if Self::read(runtime_dir).is_some_and(|record| record.id == core) {
            drop(std::fs::remove_file(path(runtime_dir)));
        }
    }
}

fn path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("core.json")
}

#[cfg(test)]
impl Record {
    /// Of a core that never was.
    pub(super) fn of_a_test() -> Self {
        let process = Identity { pid: 7, started: 8 };
        Self::new(
            (Uuid::new_v4(), process),
            &Parts::new(PathBuf::from("/xray"), PathBuf::new()),
            Version::new(26, 3, 27),
            (Path::new("/run/r/a.sock"), Path::new("/run/r/a.log")),
            vec![PathBuf::from("/run/in.sock")],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_an_older_daemon_wrote_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = serde_json::to_value(Record::of_a_test()).unwrap();
        for key in ["parts", "inbound_sockets"] {
            text.as_object_mut().unwrap().remove(key);
        }
        std::fs::write(path(folder.path()), text.to_string()).unwrap();
        assert_eq!(Record::read(folder.path()).unwrap().parts(), None);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(folder.path()), None);
        let record = Record::of_a_test();
        assert_eq!(record.ready_since(), None);
        let record = record.now_ready();
        record.write(folder.path()).unwrap();
        assert_eq!(Record::read(folder.path()), Some(record.clone()));
        assert!(record.ready_since().unwrap().elapsed() < Duration::from_secs(5));
        assert_eq!(record.version(), Some(Version::new(26, 3, 27)));
        Record::remove(folder.path(), Uuid::new_v4());
        assert!(
            Record::read(folder.path()).is_some(),
            "it is another core's"
        );
        Record::remove(folder.path(), record.id);
        assert_eq!(Record::read(folder.path()), None);
    }

    #[test]
    fn what_is_damaged_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut other = Record::of_a_test();
        other.format = 99;
        for text in ["", "{", "null", &serde_json::to_string(&other).unwrap()] {
            std::fs::write(path(folder.path()), text).unwrap();
            assert_eq!(Record::read(folder.path()), None, "{text}");
            assert!(!path(folder.path()).exists());
            assert!(folder.path().join("core.json.damaged").exists());
        }
    }
}
