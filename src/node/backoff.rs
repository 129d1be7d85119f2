//! How long to wait before a core that died is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const CAP: Duration = Duration::from_secs(30);
/// A core that ran so long has nothing to do with its predecessor's troubles.
pub(super) const STABLE: Duration = Duration::from_secs(60);

/// Exponential, capped, jittered; forgotten after a stable run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How many failures there have been since the last stable run.
    pub(super) fn failures(self) -> u32 {
        self.failures
    }

    /// The wait after one more failure, of a core that had run for `ran`. The first restart after a
    /// stable run is immediate. `jitter`, between 0 and 1, spreads nodes that failed together.
    pub(super) fn next(&mut self, ran: Duration, jitter: f64) -> Duration {
        if ran >= STABLE {
            self.failures = 0;
        }
        let doubled = self.failures.checked_sub(1).map(|times| {
            FIRST
                .saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX))
                .min(CAP)
        });
        self.failures = self.failures.saturating_add(1);
        doubled
            .unwrap_or_default()
            .mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_cap_and_starts_anew_after_a_stable_run() {
        let mut backoff = Backoff::default();
        let mut waits = || backoff.next(Duration::ZERO, 0.0).as_millis();
        let waited: Vec<u128> = (0..10).map(|_| waits()).collect();
        assert_eq!(
            waited,
            [0, 250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
        );
        assert_eq!(backoff.next(STABLE, 0.0), Duration::ZERO);
        assert_eq!(backoff.next(Duration::ZERO, 0.0), FIRST);
    }

    #[test]
    fn jitter_takes_off_up_to_a_half_and_nothing_overflows() {
        let mut backoff = Backoff { failures: 1 };
        assert_eq!(backoff.next(Duration::ZERO, 1.0), FIRST / 2);
        let mut backoff = Backoff { failures: u32::MAX };
        assert_eq!(backoff.next(Duration::ZERO, 0.0), CAP);
    }
}
