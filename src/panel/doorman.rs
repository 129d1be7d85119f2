//! What every port does with those who come: slows down who guesses keys, and counts the calls that
//! are open, the replies that are on their way, and how calls end.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Extensions;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::observed::Observed;
use super::throttle::Throttle;
use super::usage::Usage;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Call;

/// Who calls, as the listener has seen it.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// One for all ports.
#[derive(Debug)]
pub struct Doorman {
    throttle: Mutex<Throttle>,
    replies: TaskTracker,
    metrics: Arc<Metrics>,
}

/// What a reply holds until its last byte is handed over.
pub(super) type Tokens = [Option<TaskTrackerToken>; 2];

impl Doorman {
    /// Whoever waits for `replies` waits until the last one has left.
    #[must_use]
    pub fn new(replies: TaskTracker, metrics: Arc<Metrics>) -> Self {
        Self {
            throttle: Mutex::default(),
            replies,
            metrics,
        }
    }

    /// Watches a call until its answer.
    pub(super) fn observe(&self, call: Call) -> Observed {
        Observed::begin(&self.metrics, call)
    }

    /// A caller who is let in; `endless` replies are those that nobody waits for.
    pub(super) fn let_in(&self, caller: &Extensions, endless: bool) -> Tokens {
        let reply = (!endless).then(|| self.replies.token());
        let usage = caller.get::<Arc<Usage>>();
        [reply, usage.map(|usage| usage.call())]
    }

    /// A caller who is turned away waits as long as his address has earned.
    pub(super) async fn turn_away(&self, caller: &Extensions, reason: &str) {
        let now = Instant::now();
        let peer = caller.get::<Peer>().map(|peer| peer.0);
        let (wait, report) = {
            let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = peer.map_or(Duration::ZERO, |peer| throttle.failed(peer, now));
            (wait, throttle.report(now))
        };
        self.metrics.turned_away(wait);
        if let Some(count) = report {
            let last = peer.map(tracing::field::display);
            tracing::warn!(count, last, reason, "turned callers away");
        }
        tokio::time::sleep(wait).await;
    }
}
