//! How often a configuration whose cores die is tried, and what comes after it. Pure.

use std::time::Duration;

use super::backoff::Backoff;
pub(super) use super::backoff::STABLE;

/// So many failures in a row make a new configuration give way to the one before.
const TRIES_OF_A_NEW_ONE: u32 = 5;
/// So many make any configuration wait for somebody who changes something.
const TRIES: u32 = 10;

/// What is known of the configuration that serves: how often it failed, and which one served before it.
#[derive(Debug)]
pub(super) struct Endurance<T> {
    backoff: Backoff,
    before: Option<T>,
}

/// What to do about a core that has died.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// Start it again.
    Again {
        /// After so long.
        wait: Duration,
        /// How often it has failed by now.
        failures: u32,
    },
    /// Start the one before.
    Back {
        /// That one.
        to: T,
        /// How often the other has failed.
        failures: u32,
    },
    /// Wait for somebody.
    GiveUp {
        /// How often it has failed.
        failures: u32,
    },
}

impl<T> Default for Endurance<T> {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            before: None,
        }
    }
}

impl<T> Endurance<T> {
    /// Another configuration serves now; the one `before` it had served for so long. What has not proved
    /// itself is no place to go back to where there is another one.
    pub(super) fn replaced(&mut self, before: T, ran: Duration) {
        if ran >= STABLE || self.before.is_none() {
            self.before = Some(before);
        }
        self.backoff = Backoff::default();
    }

    /// How often it has failed in a row.
    pub(super) fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// What serves has served for so long: after a while it needs no predecessor.
    pub(super) fn has_run_for(&mut self, ran: Duration) {
        if ran >= STABLE {
            self.before = None;
        }
    }

    /// Its core has died, after so long. `jitter`, between 0 and 1, spreads nodes that failed together.
    pub(super) fn failed(&mut self, ran: Duration, jitter: f64) -> Verdict<T> {
        self.has_run_for(ran);
        let wait = self.backoff.next(ran, jitter);
        let failures = self.backoff.failures();
        if failures >= TRIES_OF_A_NEW_ONE
            && let Some(to) = self.before.take()
        {
            self.backoff = Backoff::default();
            return Verdict::Back { to, failures };
        }
        if failures < TRIES {
            Verdict::Again { wait, failures }
        } else {
            Verdict::GiveUp { failures }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    /// How often it is tried before it is not, and what comes then.
    fn tries(endurance: &mut Endurance<char>) -> (u32, Verdict<char>) {
        let mut count = 0;
        loop {
            count += 1;
            match endurance.failed(AT_ONCE, 0.0) {
                Verdict::Again { failures, .. } => assert_eq!(failures, count),
                verdict => return (count, verdict),
            }
        }
    }

    #[test]
    fn a_new_one_gives_way_and_the_one_before_waits_for_somebody_in_the_end() {
        let mut endurance = Endurance::default();
        endurance.replaced('a', STABLE);
        let back = Verdict::Back {
            to: 'a',
            failures: 5,
        };
        assert_eq!(tries(&mut endurance), (5, back));
        assert_eq!(
            tries(&mut endurance),
            (10, Verdict::GiveUp { failures: 10 })
        );
    }

    #[test]
    fn what_ran_for_a_while_has_proved_itself() {
        let mut endurance = Endurance::default();
        endurance.replaced('a', STABLE);
        endurance.has_run_for(STABLE);
        assert_eq!(
            tries(&mut endurance),
            (10, Verdict::GiveUp { failures: 10 })
        );
        // A stable run ends the count, too.
        let mut endurance = Endurance::<char>::default();
        for _ in 0..30 {
            let again = endurance.failed(STABLE, 0.0);
            assert_eq!(
                again,
                Verdict::Again {
                    wait: Duration::ZERO,
                    failures: 1
                }
            );
        }
    }

    #[test]
    fn what_did_not_prove_itself_is_no_place_to_go_back_to() {
        let mut endurance = Endurance::default();
        endurance.replaced('a', STABLE);
        // b served for a moment, then c came.
        endurance.replaced('b', AT_ONCE);
        assert_eq!(
            tries(&mut endurance).1,
            Verdict::Back {
                to: 'a',
                failures: 5
            }
        );
        // Where there is no other, it is better than nothing.
        endurance.replaced('b', AT_ONCE);
        assert_eq!(
            tries(&mut endurance).1,
            Verdict::Back {
                to: 'b',
                failures: 5
            }
        );
    }
}
