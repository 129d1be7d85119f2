//! What has been going on on one connection.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// One connection's calls.
#[derive(Debug)]
pub(super) struct Usage {
    admitted: AtomicBool,
    begun: AtomicU64,
    open: TaskTracker,
}

impl Default for Usage {
    fn default() -> Self {
        let open = TaskTracker::new();
        // Only a closed one can be waited for; calls may still come.
        open.close();
        Self {
            admitted: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            open,
        }
    }
}

impl Usage {
    /// Somebody has shown a key.
    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    /// Whether anybody on this connection has shown a key.
    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Relaxed)
    }

    /// A call begins; it goes on for as long as the token lives.
    pub(super) fn call(&self) -> TaskTrackerToken {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.open.token()
    }

    /// Returns when there has been no call for so long.
    pub(super) async fn idle(&self, patience: Duration) {
        loop {
            self.open.wait().await;
            let begun = self.begun.load(Ordering::Relaxed);
            tokio::time::sleep(patience).await;
            if self.open.is_empty() && self.begun.load(Ordering::Relaxed) == begun {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_nobody_calls_for_so_long() {
        let patience = Duration::from_secs(10);
        let usage = Usage::default();
        let start = tokio::time::Instant::now();
        let call = usage.call();
        let watch = async {
            usage.idle(patience).await;
            start.elapsed()
        };
        let calls = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(call);
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(usage.call());
        };
        let (idle, ()) = tokio::join!(watch, calls);
        assert!(
            idle >= Duration::from_secs(75) && idle < Duration::from_secs(90),
            "{idle:?}"
        );
    }
}
