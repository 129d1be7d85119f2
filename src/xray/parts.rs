//! What a core is made of, besides its configuration.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// The binary and the environment of a core. Where they have changed, only another core has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The Xray binary.
    pub binary: PathBuf,
    /// By what the file is known to be the one of before: when it was changed, in nanoseconds since 1970,
    /// and its length.
    stamp: Option<(u64, u64)>,
    /// Bytes of memory that Go's collector tries to stay below (`GOMEMLIMIT`).
    pub memory_limit: Option<u64>,
    /// How long hysteria inbounds keep a session from which nothing comes, where their configuration
    /// says nothing of it.
    pub quic_idle_timeout: Option<Duration>,
}

impl Parts {
    /// Nothing but a binary.
    #[must_use]
    pub fn new(binary: PathBuf) -> Self {
        Self {
            binary,
            stamp: None,
            memory_limit: None,
            quic_idle_timeout: None,
        }
    }

    /// The same with the binary that has its name now.
    #[must_use]
    pub(super) fn now_on_disk(mut self) -> Self {
        self.stamp = std::fs::metadata(&self.binary).ok().map(|file| {
            let changed = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let since = changed.duration_since(SystemTime::UNIX_EPOCH);
            let nanos = since.unwrap_or_default().as_nanos();
            (u64::try_from(nanos).unwrap_or(u64::MAX), file.len())
        });
        self
    }

    pub(super) fn has_the_binary_of(&self, other: &Self) -> bool {
        self.stamp.is_some() && self.binary == other.binary && self.stamp == other.stamp
    }

    /// Whether the file is the same, by its name.
    #[must_use]
    pub fn is_same_binary(&self, other: &Self) -> bool {
        self.binary == other.binary
    }

    /// What differs, for the log line that says why another core is started.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let differs = [
            (
                "the xray binary",
                self.binary != other.binary || self.stamp != other.stamp,
            ),
            ("the memory limit", self.memory_limit != other.memory_limit),
            (
                "the idle timeout of hysteria",
                self.quic_idle_timeout != other.quic_idle_timeout,
            ),
        ];
        let differs = differs.into_iter().filter(|(_, differs)| *differs);
        differs.map(|(what, _)| what.to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_was_exchanged_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("xray");
        std::fs::write(&binary, "1").unwrap();
        let before = Parts::new(binary.clone()).now_on_disk();
        assert_eq!(before.differences(&before.clone().now_on_disk()), [""; 0]);
        std::fs::write(&binary, "22").unwrap();
        let after = before.clone().now_on_disk();
        assert_eq!(before.differences(&after), ["the xray binary"]);
        assert!(!before.has_the_binary_of(&after));
        let limited = Parts {
            memory_limit: Some(1 << 30),
            ..after.clone()
        };
        assert_eq!(after.differences(&limited), ["the memory limit"]);
        assert!(after.has_the_binary_of(&limited));
        let nowhere = Parts::new(folder.path().join("nothing")).now_on_disk();
        assert!(!nowhere.has_the_binary_of(&nowhere), "nobody knows");
    }
}
