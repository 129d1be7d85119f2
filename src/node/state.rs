//! What everybody may know of the node without asking its driver.

use std::sync::Arc;
use std::time::Instant;

use super::session::Session;
use crate::usage::harvest::Source;
use crate::xray::config::Skeleton;

/// A snapshot of the node; the driver publishes a new one with every step.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) session: Option<Arc<Session>>,
    pub(super) serving: Option<Arc<Serving>>,
    /// Why the core stays down, when it does.
    pub(super) gave_up: Option<Arc<str>>,
}

/// The core that serves, for those who read.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) source: Source,
    pub(super) ready: Instant,
    pub(super) skeleton: Arc<Skeleton>,
}
