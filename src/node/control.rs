//! Who has control, on disk: a panel whose node's daemon was replaced finds its session as it was.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::session::Session;
use crate::disk;

/// The file's form; another one is not read.
const FORMAT: u32 = 1;

/// The session that is in force, or until when the core serves on without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) session: Option<(Uuid, Option<Duration>)>,
    pub(super) linger_until: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    session: Option<Uuid>,
    keep_alive_ms: Option<u64>,
    /// Unix milliseconds.
    linger_until: Option<u64>,
}

impl Control {
    pub(super) fn of(session: Option<&Session>, linger_until: Option<Instant>) -> Self {
        Self {
            session: session.map(|session| (session.id(), session.keep_alive())),
            linger_until,
        }
    }

    /// What the last daemon left in this folder.
    pub(super) fn read(runtime_dir: &Path) -> Self {
        let path = path(runtime_dir);
        let stored = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Stored>(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => Err(serde_json::Error::io(error)),
        };
        match stored {
            Ok(stored) if stored.format == FORMAT => Self {
                session: stored
                    .session
                    .map(|id| (id, stored.keep_alive_ms.map(Duration::from_millis))),
                linger_until: stored.linger_until.map(on_our_clock),
            },
            Ok(_) => Self::default(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the session of before can't be read, the panel has to start the node again");
                Self::default()
            }
        }
    }

    /// Puts it down for the next daemon.
    pub(super) fn write(self, runtime_dir: &Path) {
        let stored = Stored {
            format: FORMAT,
            session: self.session.map(|(id, _)| id),
            keep_alive_ms: self
                .session
                .and_then(|(_, keep_alive)| u64::try_from(keep_alive?.as_millis()).ok()),
            linger_until: self.linger_until.map(on_the_wall),
        };
        let path = path(runtime_dir);
        let written = serde_json::to_vec(&stored)
            .map_err(io::Error::from)
            .and_then(|text| disk::write_private(&path, &text));
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "the next daemon will not know who has control");
        }
    }
}

fn path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("session.json")
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn on_the_wall(at: Instant) -> u64 {
    let left = at.saturating_duration_since(Instant::now());
    unix_millis().saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
}

fn on_our_clock(at: u64) -> Instant {
    // A clock that was set back must not make a core linger for years.
    let left = Duration::from_millis(at.saturating_sub(unix_millis())).min(LONGEST);
    Instant::now() + left
}

/// The longest grace that can be set.
const LONGEST: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_daemon_knows_who_has_control() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Control::read(folder.path()), Control::default());
        let id = Uuid::new_v4();
        for keep_alive in [None, Some(Duration::from_millis(1500))] {
            let control = Control {
                session: Some((id, keep_alive)),
                linger_until: None,
            };
            control.write(folder.path());
            assert_eq!(Control::read(folder.path()), control);
        }
        let until = Instant::now() + Duration::from_secs(20);
        let lingering = Control {
            session: None,
            linger_until: Some(until),
        };
        lingering.write(folder.path());
        let read = Control::read(folder.path()).linger_until.unwrap();
        assert!(read <= until + Duration::from_millis(5));
        assert!(read + Duration::from_secs(1) > until);
        std::fs::write(path(folder.path()), "{").unwrap();
        assert_eq!(Control::read(folder.path()), Control::default());
    }
}
