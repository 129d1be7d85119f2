//! What cores are made of, besides what a panel gives them.

use std::path::PathBuf;
use std::time::Duration;

use super::parse::{self, Reader};
use super::source::Source;
use crate::host;
use crate::xray::parts::Parts;

const SECOND: Duration = Duration::from_secs(1);

/// The binary and the environment of cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreSettings {
    /// The Xray binary (`XRAY_EXECUTABLE_PATH`).
    pub binary: PathBuf,
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
    pub(super) fn read(reader: &mut Reader<'_, impl Source>) -> Self {
        let timeout = "from 4s to 120s, such as 8s; nothing to leave it to Xray (30s)";
        Self {
            binary: reader.path("XRAY_EXECUTABLE_PATH", "/usr/local/bin/xray"),
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
        let mut parts = Parts::new(self.binary.clone());
        parts.memory_limit = self.memory_limit.bytes();
        parts.quic_idle_timeout = self.hysteria_idle_timeout;
        parts
    }
}
