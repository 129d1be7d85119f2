//! What a core is made of, besides its configuration.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// The binary and the environment of a core. Where they have changed, only another core has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The Xray binary.
    pub binary: PathBuf,
    /// By what the file is known to be the one of before.
    stamp: Option<Stamp>,
    /// Bytes of memory that Go's collector tries to stay below (`GOMEMLIMIT`).
    pub memory_limit: Option<u64>,
    /// Where `geoip.dat` and `geosite.dat` are.
    #[serde(default)]
    pub assets: PathBuf,
    /// By what those are known to be the ones of before; `None` where nobody has looked.
    #[serde(default)]
    assets_stamps: Option<[Option<Stamp>; 2]>,
    /// How long hysteria inbounds keep a session from which nothing comes, where their configuration
    /// says nothing of it.
    pub quic_idle_timeout: Option<Duration>,
}

impl Parts {
    /// A binary and its geo files.
    #[must_use]
    pub fn new(binary: PathBuf, assets: PathBuf) -> Self {
        Self {
            binary,
            stamp: None,
            assets,
            assets_stamps: None,
            memory_limit: None,
            quic_idle_timeout: None,
        }
    }

    /// The same with another binary.
    #[must_use]
    pub fn with_binary(self, binary: PathBuf) -> Self {
        Self { binary, ..self }
    }

    /// The same with other geo files.
    #[must_use]
    pub fn with_assets(self, assets: PathBuf) -> Self {
        Self { assets, ..self }
    }

    /// The same with the binary and the geo files of another one.
    #[must_use]
    pub fn with_files_of(self, other: &Self) -> Self {
        self.with_binary(other.binary.clone())
            .with_assets(other.assets.clone())
    }

    /// The same with the files that have these names now.
    #[must_use]
    pub(super) fn now_on_disk(mut self) -> Self {
        self.stamp = stamp(&self.binary);
        let files = ["geoip.dat", "geosite.dat"];
        self.assets_stamps = Some(files.map(|name| stamp(&self.assets.join(name))));
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

    /// A core that an older daemon started is not known to have any.
    fn has_other_assets_than(&self, other: &Self) -> bool {
        match (self.assets_stamps, other.assets_stamps) {
            (Some(ours), Some(theirs)) => ours != theirs,
            _ => false,
        }
    }

    /// What differs, for the log line that says why another core is started.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let differs = [
            (
                "the xray binary",
                self.binary != other.binary || self.stamp != other.stamp,
            ),
            ("the geo files", self.has_other_assets_than(other)),
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

/// When a file was changed, in nanoseconds since 1970, and its length.
type Stamp = (u64, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    let changed = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let since = changed.duration_since(SystemTime::UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    Some((u64::try_from(nanos).unwrap_or(u64::MAX), file.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_that_was_exchanged_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("xray");
        std::fs::write(&binary, "1").unwrap();
        let parts = Parts::new(binary.clone(), folder.path().to_owned());
        let before = parts.now_on_disk();
        assert_eq!(before.differences(&before.clone().now_on_disk()), [""; 0]);
        std::fs::write(&binary, "22").unwrap();
        let after = before.clone().now_on_disk();
        assert_eq!(before.differences(&after), ["the xray binary"]);
        assert!(!before.has_the_binary_of(&after));
        std::fs::write(folder.path().join("geoip.dat"), "1").unwrap();
        let fresh = after.clone().now_on_disk();
        assert_eq!(after.differences(&fresh), ["the geo files"]);
        let unknown = Parts {
            assets_stamps: None,
            ..after.clone()
        };
        assert_eq!(unknown.differences(&fresh), [""; 0]);
        let limited = Parts {
            memory_limit: Some(1 << 30),
            ..after.clone()
        };
        assert_eq!(after.differences(&limited), ["the memory limit"]);
        assert!(after.has_the_binary_of(&limited));
        let nowhere = Parts::new(folder.path().join("nothing"), PathBuf::new()).now_on_disk();
        assert!(!nowhere.has_the_binary_of(&nowhere), "nobody knows");
    }
}
