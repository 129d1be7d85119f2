//! What the ledger says to those who only look.

use std::time::{Duration, Instant};

use super::Judgement;
use crate::usage::counter::{ByKind, Bytes, Kind};

/// How often deliveries were judged in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// The panel has it.
    pub arrived: u64,
    /// The panel does not have it, so it is pending again.
    pub lost: u64,
    /// Nobody can know; the operator's policy has decided.
    pub unsure: u64,
}

impl Verdicts {
    pub(super) fn note(&mut self, judgement: Judgement) {
        match judgement {
            Judgement::Arrived => self.arrived += 1,
            Judgement::Lost => self.lost += 1,
            Judgement::Unsure => self.unsure += 1,
        }
    }
}

/// The ledger as it was when its thread did something last.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Bytes that were counted since this daemon opened it.
    pub counted: ByKind<Bytes>,
    /// Bytes that are in no delivery.
    pub pending: ByKind<Bytes>,
    /// How long the oldest of each kind had been pending; `None` where nothing is.
    pub(super) oldest: ByKind<Option<Duration>>,
    /// When that was.
    pub(super) at: Instant,
    /// Deliveries that are not judged yet.
    pub deliveries: usize,
    /// And those that are, since this daemon opened it.
    pub verdicts: Verdicts,
    /// Bytes that nobody collected in time.
    pub expired: u64,
    /// How often it could not be opened or written.
    pub errors: u64,
    /// Whether the disk takes it.
    pub writable: bool,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            counted: ByKind::default(),
            pending: ByKind::default(),
            oldest: ByKind::default(),
            at: Instant::now(),
            deliveries: 0,
            verdicts: Verdicts::default(),
            expired: 0,
            errors: 0,
            // Nobody has tried yet.
            writable: true,
        }
    }
}

impl Figures {
    /// How long the oldest of what is pending has been so by now.
    #[must_use]
    pub fn pending_for(&self, kind: Kind) -> Option<Duration> {
        let age = (*self.oldest.of(kind))?;
        Some(age + self.at.elapsed())
    }
}
