//! What is pending in all rows of the book together, known without looking at each of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Row, table};
use crate::usage::counter::{ByKind, Bytes, Direction, Kind};

/// The sums, kept with every change of a row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    bytes: ByKind<Bytes>,
    /// In how many rows something has been pending since when, by the book's own time.
    since: ByKind<BTreeMap<u64, usize>>,
}

impl Pending {
    /// By looking at all rows.
    pub(super) fn of(rows: &[HashMap<Arc<str>, Row>; 3]) -> Self {
        let mut pending = Self::default();
        for kind in Kind::ALL {
            for row in table(rows, kind).values() {
                if !row.pending.is_zero() {
                    pending.begin(kind, row.since);
                    pending.add(kind, row.pending);
                }
            }
        }
        pending
    }

    pub(super) fn bytes(&self) -> ByKind<Bytes> {
        self.bytes
    }

    /// Since when the oldest of it is pending.
    pub(super) fn oldest(&self, kind: Kind) -> Option<u64> {
        self.since.of(kind).keys().next().copied()
    }

    /// In one more row something is pending.
    pub(super) fn begin(&mut self, kind: Kind, since: u64) {
        *self.since.of_mut(kind).entry(since).or_default() += 1;
    }

    /// In one row less.
    pub(super) fn end(&mut self, kind: Kind, since: u64) {
        let table = self.since.of_mut(kind);
        if let Some(rows) = table.get_mut(&since) {
            *rows -= 1;
            if *rows == 0 {
                table.remove(&since);
            }
        }
    }

    pub(super) fn add_one_way(&mut self, kind: Kind, direction: Direction, count: u64) {
        self.bytes.add_one_way(kind, direction, count);
    }

    pub(super) fn add(&mut self, kind: Kind, bytes: Bytes) {
        self.bytes.of_mut(kind).add(bytes);
    }

    pub(super) fn take(&mut self, kind: Kind, bytes: Bytes) {
        self.bytes.of_mut(kind).take(bytes);
    }
}
