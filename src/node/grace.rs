//! How long a core serves on after a panel's Stop; may change while the node runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The span.
#[derive(Debug)]
pub(super) struct Grace(AtomicU64);

impl Grace {
    pub(super) fn new(span: Duration) -> Self {
        let grace = Self(AtomicU64::new(0));
        grace.set(span);
        grace
    }

    pub(super) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, span: Duration) {
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }
}
