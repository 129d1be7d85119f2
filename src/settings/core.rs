//! What cores are made of, besides what a panel gives them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse::{self, Reader};
use super::source::Source;
use crate::host;
use crate::xray::install::{self, Cores, GeoFiles};
use crate::xray::parts::Parts;

/// Where an operator puts an Xray of his own.
const USUAL_BINARY: &str = "/usr/local/bin/xray";
const USUAL_ASSETS: &str = "/usr/local/share/xray";
const SECOND: Duration = Duration::from_secs(1);

/// The binary and the environment of cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreSettings {
    /// The Xray binary (`XRAY_EXECUTABLE_PATH`); `None` for the one that the node has installed, or else the
    /// usual one.
    pub binary: Option<PathBuf>,
    /// Where `geoip.dat` and `geosite.dat` are (`XRAY_ASSETS_PATH`); `None` likewise.
    pub assets: Option<PathBuf>,
    /// Where the node keeps those that it has installed.
    pub state_dir: PathBuf,
    /// How much memory a core should have at most (`CORE_MEMORY_LIMIT`).
    pub memory_limit: MemoryLimit,
    /// How long a hysteria inbound keeps a session from which nothing comes (`HYSTERIA_IDLE_TIMEOUT`).
    pub hysteria_idle_timeout: Option<Duration>,
}

/// A limit of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// None.
    Off,
    /// So many bytes.
    Bytes(u64),
    /// So much of what this machine, or this container, has.
    Percent(u64),
}

impl MemoryLimit {
    /// In bytes; `None` without one, or where nobody knows how much memory there is.
    fn bytes(self) -> Option<u64> {
        match self {
            Self::Off => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Percent(percent) => Some(host::memory()? / 100 * percent),
        }
    }
}

impl CoreSettings {
    pub(super) fn read(reader: &mut Reader<'_, impl Source>, state_dir: &Path) -> Self {
        let timeout = "from 4s to 120s, such as 8s; nothing to leave it to Xray (30s)";
        Self {
            binary: reader.optional_path("XRAY_EXECUTABLE_PATH"),
            assets: reader.optional_path("XRAY_ASSETS_PATH"),
            state_dir: state_dir.to_owned(),
            memory_limit: reader
                .parsed(
                    "CORE_MEMORY_LIMIT",
                    "off, at least 64MiB, or 1% to 100% of the memory",
                    parse::memory_limit,
                )
                .unwrap_or(MemoryLimit::Off),
            hysteria_idle_timeout: reader.parsed("HYSTERIA_IDLE_TIMEOUT", timeout, |text| {
                // What Xray takes for QUIC.
                parse::duration(text).filter(|span| (4 * SECOND..=120 * SECOND).contains(span))
            }),
        }
    }

    /// What the next core is made of.
    #[must_use]
    pub fn parts(&self) -> Parts {
        let binary = self.binary.clone();
        let binary = binary.or_else(|| real(&Cores::new(&self.state_dir).binary()?));
        let binary = binary.unwrap_or_else(|| USUAL_BINARY.into());
        let assets = self.assets.clone();
        let assets = assets.or_else(|| real(&GeoFiles::new(&self.state_dir).shelf().current()?));
        let assets = assets.unwrap_or_else(|| USUAL_ASSETS.into());
        let mut parts = Parts::new(binary, assets);
        parts.memory_limit = self.memory_limit.bytes();
        parts.quic_idle_timeout = self.hysteria_idle_timeout;
        parts
    }
}

/// Not the name that stands for whichever is used: what parts were made of once they stay made of.
fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}

/// Where cores and geo files are installed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallSettings {
    /// The releases of Xray, or a mirror of them (`XRAY_RELEASE_URL`).
    pub releases: String,
    /// A mirror of geo files (`GEO_FILES_URL`); `None` for those who are known for each region.
    pub geo_files: Option<String>,
}

impl InstallSettings {
    pub(super) fn read(reader: &mut Reader<'_, impl Source>) -> Self {
        const ALLOWED: &str = "a URL that begins with https:// or http://";
        let url = |text: &str| {
            let known = text.starts_with("https://") || text.starts_with("http://");
            known.then(|| text.to_owned())
        };
        // They may carry a password.
        let releases = reader.secret("XRAY_RELEASE_URL", ALLOWED, url);
        Self {
            releases: releases.unwrap_or_else(|| install::RELEASES.to_owned()),
            geo_files: reader.secret("GEO_FILES_URL", ALLOWED, url),
        }
    }
}
