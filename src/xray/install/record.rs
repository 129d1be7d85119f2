//! What is known of something that is installed, beside it on disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Digest, Error};
use crate::disk;

/// The form of the file; others are not read.
const FORMAT: u32 = 1;

/// Where something came from and what it is, so that nobody has to run it to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// The version of a core, the region of geo files.
    pub(super) version: String,
    /// The URL or the path.
    pub(super) source: String,
    /// In seconds since 1970.
    installed: u64,
    /// Of the archive that it was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    archive_sha256: Option<Digest>,
    /// Of each file.
    pub(super) sha256: BTreeMap<String, Digest>,
}

impl Record {
    pub(super) fn new(
        version: String,
        source: String,
        archive_sha256: Option<Digest>,
        files: impl IntoIterator<Item = (&'static str, Digest)>,
    ) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let files = files.into_iter();
        Self {
            format: FORMAT,
            version,
            source,
            installed: since.unwrap_or_default().as_secs(),
            archive_sha256,
            sha256: files
                .map(|(name, digest)| (name.to_owned(), digest))
                .collect(),
        }
    }

    pub(super) fn installed(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.installed)
    }

    /// Whether the files of `folder` are what they were when they came.
    pub(super) fn describes(&self, folder: &Path) -> bool {
        self.sha256.iter().all(|(name, digest)| {
            Digest::of_file(&folder.join(name)).is_ok_and(|found| found == *digest)
        })
    }

    /// # Errors
    /// When the disk refuses.
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::other);
        text.and_then(|text| disk::write_private(path, format!("{text}\n").as_bytes()))
            .map_err(Error::disk(path))
    }

    /// `None` where there is none that could be read.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (record.format == FORMAT).then_some(record)
    }
}
