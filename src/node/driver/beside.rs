//! The cores beside the one that serves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use crate::node::applied::Former;
use crate::node::handover::{Drain, Event, SharedPorts};
use crate::xray::handover::groups::Groups;
use crate::xray::handover::journal::Journal;
use crate::xray::handover::{Policy, Tally};

/// How many words of cores that drain wait for the driver.
pub(super) const EVENTS: usize = 16;

/// The cores beside the one that serves.
pub(super) struct Beside {
    pub(super) policy: Policy,
    pub(super) journal: Journal,
    pub(super) drains: Vec<Drain>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) ports: Arc<Mutex<SharedPorts>>,
    /// What served before, as long as its core could serve again.
    pub(super) before: Option<Before>,
    pub(super) tally: Tally,
}

impl Beside {
    pub(super) fn new(
        policy: Policy,
        journal: Journal,
        groups: Groups,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            policy,
            journal,
            drains: Vec::new(),
            events,
            ports: Arc::new(Mutex::new(SharedPorts::new(groups))),
            before: None,
            tally: Tally::default(),
        }
    }
}

/// What served before, and for how long it had.
pub(super) struct Before {
    pub(super) core: Uuid,
    pub(super) former: Former,
    pub(super) ran: Duration,
}
