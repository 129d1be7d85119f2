//! How far a hand-over is, on disk: a daemon that dies in the middle is followed by one that ends it.
//!
//! It stands beside the record of the core that serves, and is there only while there is more than that
//! one core. An older daemon does not know it, takes the one core over and ends the others.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::groups::Groups;
use super::inbounds::Leaving;
use crate::disk;
use crate::xray::record::Record;

/// The file's form; another one is not read.
const FORMAT: u32 = 1;

/// The cores beside the one that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    /// The core that serves. Where its own record names another one, that one drains by now.
    pub serving: Option<Record>,
    /// A core that comes up, to serve in its place.
    pub next: Option<Record>,
    /// That one is ready, and new connections are about to go to it.
    pub flipping: bool,
    /// Inbounds of the one that serves that it had to close for that.
    #[serde(default)]
    pub given_up: Vec<String>,
    /// The cores that keep what connections they have.
    pub draining: Vec<Drained>,
    /// Which of them share a port, in the kernel's order.
    #[serde(default)]
    pub groups: Groups,
}

/// A core that drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Which.
    pub record: Record,
    /// How it leaves its inbounds.
    pub leaving: Leaving,
    /// Since when, Unix milliseconds.
    began: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            format: FORMAT,
            serving: None,
            next: None,
            flipping: false,
            given_up: Vec::new(),
            draining: Vec::new(),
            groups: Groups::default(),
        }
    }
}

impl Drained {
    /// From now on.
    #[must_use]
    pub fn new(record: Record, leaving: Leaving) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            record,
            leaving,
            began: u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Instant {
        let began = SystemTime::UNIX_EPOCH + Duration::from_millis(self.began);
        let age = SystemTime::now().duration_since(began).unwrap_or_default();
        Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
    }
}

impl Journal {
    /// The one in this folder; an empty one where there is none. What can't be read is moved aside and said
    /// loudly: cores that nothing else names are ended then.
    #[must_use]
    pub fn read(runtime_dir: &Path) -> Self {
        let path = path(runtime_dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the journal of hand-overs can't be read");
                return Self::default();
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(journal) if journal.format == FORMAT => journal,
            Ok(_) => {
                tracing::error!(path = %path.display(), "the journal of hand-overs has a form that this version does not know");
                disk::move_aside(&path);
                Self::default()
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the journal of hand-overs is damaged");
                disk::move_aside(&path);
                Self::default()
            }
        }
    }

    /// Every core that it names.
    pub fn records(self) -> impl Iterator<Item = Record> {
        let draining = self.draining.into_iter().map(|drained| drained.record);
        self.serving.into_iter().chain(self.next).chain(draining)
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// When the folder refuses.
    pub fn write(&self, runtime_dir: &Path) -> io::Result<()> {
        if self.next.is_none() && self.draining.is_empty() && self.given_up.is_empty() {
            return match std::fs::remove_file(path(runtime_dir)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        disk::write_private(&path(runtime_dir), &serde_json::to_vec_pretty(self)?)
    }
}

fn path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("handover.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_while_there_is_more_than_one_core() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Journal::read(folder.path()), Journal::default());
        let mut journal = Journal {
            next: Some(Record::of_a_test()),
            flipping: true,
            ..Journal::default()
        };
        journal.write(folder.path()).unwrap();
        assert_eq!(Journal::read(folder.path()), journal);
        let drained = Drained::new(Record::of_a_test(), Leaving::default());
        assert!(drained.since().elapsed() < Duration::from_secs(5));
        journal.draining.push(drained);
        journal.next = None;
        journal.write(folder.path()).unwrap();
        assert_eq!(Journal::read(folder.path()), journal);
        journal.draining.clear();
        journal.given_up.push("abstract".to_owned());
        journal.write(folder.path()).unwrap();
        assert_eq!(Journal::read(folder.path()), journal);
        journal.given_up.clear();
        for _ in 0..2 {
            journal.write(folder.path()).unwrap();
            assert!(!path(folder.path()).exists());
        }
    }

    #[test]
    fn what_is_damaged_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{",
            "{\"format\":99,\"flipping\":false,\"draining\":[]}",
        ] {
            std::fs::write(path(folder.path()), text).unwrap();
            assert_eq!(Journal::read(folder.path()), Journal::default(), "{text}");
            assert!(folder.path().join("handover.json.damaged").exists());
        }
    }
}
