//! What everybody may know of the node without asking its driver.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::session::Session;
use super::standing::Because;
use crate::usage::harvest::Source;
use crate::xray::config::Skeleton;
use crate::xray::handover::Tally;

/// A snapshot of the node; the driver publishes a new one with every step.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// How often the core had failed in a row when something failed last.
    pub(super) failures: u32,
    pub(super) session: Option<Arc<Session>>,
    pub(super) serving: Option<Arc<Serving>>,
    /// The cores that keep what connections they have.
    pub(super) draining: Vec<Draining>,
    pub(super) tally: Tally,
    /// Why a core comes by itself, and when, where none serves and one does.
    pub(super) comes: Option<(Because, Instant)>,
    /// Why the core stays down, when it does.
    pub(super) gave_up: Option<Arc<str>>,
    /// Until when the core serves on though no panel has control.
    pub(super) linger_until: Option<Instant>,
}

/// The core that serves, for those who read.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) source: Source,
    pub(super) pid: i32,
    /// What it was started from; `None` where an older daemon did.
    pub(super) binary: Option<PathBuf>,
    pub(super) ready: Instant,
    pub(super) skeleton: Arc<Skeleton>,
    /// The unix sockets that its inbounds listen on.
    pub(super) sockets: Vec<PathBuf>,
}

/// A core that drains, for those who read.
#[derive(Clone, Debug)]
pub(super) struct Draining {
    pub(super) source: Source,
    pub(super) pid: i32,
    pub(super) since: Instant,
    /// How many connections it had at the last look.
    pub(super) connections: Arc<AtomicUsize>,
}
