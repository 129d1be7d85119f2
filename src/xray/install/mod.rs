//! Brings versions of Xray and its geo files to this machine, and switches between them.
//!
//! ```text
//! release ─▶ download ─┐
//!                      ├─▶ digest ─▶ archive ─▶ probe ─▶ Staged ─keep─▶ cores/26.3.27/xray
//! file ────▶ local ────┘                                   │                  ▲
//!                                                       dropped:           switch
//!                                                         gone                │
//!                                                                       cores/current
//! ```
//!
//! What is staged has the digest that it should have, is a program for this machine and has said its
//! version. The caller may try it further before it is kept, and what is kept is used only after a
//! [switch](Turn::switch_to). Geo files go the same way, both in one step. Knows no node and no panel.
//!
//! Whoever writes to a shelf holds its lock; a second one is told so. Functions that are not async touch
//! the disk, for some milliseconds; [`Staged::keep`] may read a core that is there already.

mod address;
mod architecture;
mod archive;
mod cores;
mod digest;
mod download;
mod entries;
mod error;
mod geo;
mod links;
mod local;
mod probe;
mod progress;
mod receive;
mod record;
mod release;
mod roots;
mod shelf;
mod staging;
mod turn;

#[cfg(test)]
mod testing;

use std::time::Duration;

pub use self::address::shown_text as shown_url;
pub use self::architecture::Architecture;
pub use self::cores::{Cores, Proof, Source, Staged, digest_beside};
pub use self::digest::{Digest, NotADigest};
pub use self::error::Error;
pub use self::geo::{GeoFiles, GeoSource, Region, StagedGeo};
pub use self::progress::{Progress, Reporter, Step};
pub use self::release::{RELEASES, Wanted};
pub use self::shelf::{Installed, Shelf};
pub use self::staging::Kept;
pub use self::turn::{Switched, Turn};

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until a server is connected.
    pub connect: Duration,
    /// Until a server says something, at its beginning and between two pieces.
    pub stall: Duration,
    /// For one file as a whole.
    pub whole: Duration,
    /// Until a core has said its version.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            // 75 MB of geo files at 50 kB/s, as they come from afar at bad times.
            whole: Duration::from_secs(30 * 60),
            answer: Duration::from_secs(10),
        }
    }
}
