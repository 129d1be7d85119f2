//! From one core to the next on the same ports, without a connection lost.
//!
//! Xray opens its listeners with `SO_REUSEPORT`, so a second core can be started beside the first one.
//! Until it is ready it gets nothing (*pinned*); then whatever comes in goes to it, from one moment to the
//! next (*flipped*), and the first one keeps its connections until they end (*drains*). `docs/handover.md`
//! tells an operator what that means, [`procedure`] is the order of the steps.

pub mod destroy;
pub mod groups;
pub mod inbounds;
pub mod journal;
pub mod procedure;
pub mod sockets;
pub mod steering;

use std::time::Duration;

/// How a core makes way for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// New connections are steered to the new core where the kernel lets us; elsewhere as `Plain`.
    Auto,
    /// The old core closes its listeners as soon as the new one is ready. Connections that are being opened
    /// at that moment fail, the more the longer the way to their clients is.
    Plain,
    /// Not at all: the old core is stopped before the new one is started, and every connection ends.
    Off,
}

/// How new connections were led from one core to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In one step, on every port.
    Steered,
    /// In one step where that was possible; elsewhere the old core closed its listeners.
    Partly,
    /// The old core closed its listeners.
    Plain,
}

impl Form {
    /// Its name in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Steered => "steered",
            Self::Partly => "partly steered",
            Self::Plain => "plain",
        }
    }
}

/// How often a core made way for another one, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// On every port in one step.
    pub steered: u64,
    /// On some of them.
    pub partly: u64,
    /// By closing listeners.
    pub plain: u64,
    /// The new core did not take over, and the old one served on.
    pub refused: u64,
    /// The old core was stopped before the new one was started.
    pub restarts: u64,
}

impl Tally {
    /// One more.
    pub fn note(&mut self, form: Form) {
        match form {
            Form::Steered => self.steered += 1,
            Form::Partly => self.partly += 1,
            Form::Plain => self.plain += 1,
        }
    }
}

/// What the operator decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How.
    pub mode: Mode,
    /// How long a core keeps its connections at most when it has made way.
    pub drain_timeout: Duration,
}
