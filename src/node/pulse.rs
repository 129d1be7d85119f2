//! What the driver does, counted, for those who have to notice when it stops.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counts of one driver. Cheap to clone.
///
/// Both are made by the driver's own task while it runs: nobody else can make them, whatever else in the
/// process still goes on.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    steps: AtomicU64,
    rounds: AtomicU64,
}

/// How far the driver is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// How often something that it waited for let it go on: a tick, an answer of the core, the end of a
    /// process. One that waits for what never comes makes none.
    pub steps: u64,
    /// How often it was done with whatever it had to do and looked for what is next: twice a second at
    /// least, unless a change takes longer.
    pub rounds: u64,
}

impl Pulse {
    /// The counts of now.
    #[must_use]
    pub fn beat(&self) -> Beat {
        Beat {
            steps: self.0.steps.load(Ordering::Relaxed),
            rounds: self.0.rounds.load(Ordering::Relaxed),
        }
    }

    /// `task`, with its steps counted.
    pub(super) async fn counting<T>(&self, mut task: impl Future<Output = T> + Unpin) -> T {
        poll_fn(|context| {
            self.0.steps.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut task).poll(context)
        })
        .await
    }

    /// One more round.
    pub(super) fn round(&self) {
        self.0.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_what_never_comes_makes_no_step() {
        let pulse = Pulse::default();
        let counted = pulse.clone();
        let task = tokio::spawn(async move {
            let work = async {
                counted.round();
                tokio::time::sleep(Duration::from_secs(1)).await;
                counted.round();
                std::future::pending::<()>().await;
            };
            counted.counting(Box::pin(work)).await;
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = pulse.beat();
        assert_eq!(begun.rounds, 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let stuck = pulse.beat();
        assert!(stuck.steps > begun.steps);
        assert_eq!(stuck.rounds, 2);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(pulse.beat(), stuck);
        task.abort();
    }
}
