//! What is being changed, and what changed last: for an operator who asks why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;

/// The change that is being made, and the last one that was. Cheap to read.
#[derive(Debug, Default)]
pub(super) struct History {
    under_way: ArcSwapOption<UnderWay>,
    last: ArcSwapOption<LastChange>,
    count: AtomicU64,
}

/// A change that is being made.
#[derive(Clone, Debug)]
pub struct UnderWay {
    /// What was asked for.
    pub what: &'static str,
    /// When it began.
    pub since: Instant,
}

/// A change that was made or refused.
#[derive(Clone, Debug)]
pub struct LastChange {
    /// What was asked for, or what made it necessary.
    pub what: &'static str,
    /// What it took, and why.
    pub how: String,
    /// Why it was refused.
    pub refused: Option<String>,
    /// When it ended.
    pub at: Instant,
}

impl History {
    /// A change begins; returns its number.
    pub(super) fn begin(&self, what: &'static str) -> u64 {
        let since = Instant::now();
        self.under_way
            .store(Some(Arc::new(UnderWay { what, since })));
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// It has ended, and nothing came of it: what was in its way, if that is what happened last, no longer is.
    pub(super) fn pass(&self, what: &'static str) {
        let stood_in_the_way = |last: Arc<LastChange>| last.what == what && last.refused.is_some();
        if self.last().is_some_and(stood_in_the_way) {
            self.end(what, "nothing differs".to_owned(), None);
        } else {
            self.under_way.store(None);
        }
    }

    /// It has ended.
    pub(super) fn end(&self, what: &'static str, how: String, refused: Option<String>) {
        self.under_way.store(None);
        let at = Instant::now();
        self.last.store(Some(Arc::new(LastChange {
            what,
            how,
            refused,
            at,
        })));
    }

    pub(super) fn under_way(&self) -> Option<Arc<UnderWay>> {
        self.under_way.load_full()
    }

    pub(super) fn last(&self) -> Option<Arc<LastChange>> {
        self.last.load_full()
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
