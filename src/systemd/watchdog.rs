//! Tells systemd that this daemon is not hung, for as long as it is not.
//!
//! It speaks as a task of the runtime, so a runtime that hangs is silent; and only while the driver goes on, by
//! the driver's own counts. When systemd hears nothing it kills the daemon and starts it again; the core
//! serves on meanwhile, and the next daemon takes it over.
//!
//! What "goes on" means is a choice between two mistakes. A driver that is taken for hung while it works is
//! killed in the middle of a change, and so is the next one when the panel asks for the same: worse than a
//! hung one that is found a minute later, since users are served all the time. So both limits are longer than the
//! longest that the code itself allows.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use super::Manager;
use crate::node::{Beat, Pulse};

/// How long the driver may make no step. It makes two a second when there is nothing to do. In a change it waits
/// for the core or the disk: every wait has a deadline, and the longest is the minute that Xray may take to
/// look at a configuration (a start asks the core again and again meanwhile).
const SILENCE: Duration = Duration::from_secs(90);
/// How long it may be busy with one thing, going from step to step all the while. A configuration that took a
/// minute to look at and has failed five times has an hour and a half to start (`ladder`).
const ONE_THING: Duration = Duration::from_secs(2 * 3600);
/// More than this between two looks is time in which nobody ran: they come at half of systemd's interval.
const LONGEST_GAP: Duration = Duration::from_secs(60);
/// systemd is not asked for less than this by anybody who means it.
const SHORTEST: Duration = Duration::from_millis(20);

/// Speaks at half the interval that systemd wants, while the driver goes on.
pub async fn watch(manager: Manager, pulse: Pulse) {
    let Some(interval) = manager.watchdog() else {
        return;
    };
    let mut look = tokio::time::interval((interval / 2).max(SHORTEST));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut judge = Judge::new(pulse.beat(), Instant::now());
    let mut hung = None;
    loop {
        look.tick().await;
        let judged = judge.look(pulse.beat(), Instant::now());
        match judged {
            Ok(()) => manager.alive().await,
            Err(why) if hung != Some(why) => {
                tracing::error!(
                    why = why.text(),
                    "the driver hangs, which is a defect of this program: systemd is no longer told that it does not, and starts it again"
                );
            }
            Err(_) => {}
        }
        hung = judged.err();
    }
}

/// Why the driver is taken for hung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hung {
    Silent,
    NeverDone,
}

impl Hung {
    fn text(self) -> &'static str {
        match self {
            Self::Silent => "it has made no step for 90 s",
            Self::NeverDone => "it has been busy with one thing for two hours",
        }
    }
}

/// Judges by what it sees from look to look.
struct Judge {
    seen: Beat,
    looked: Instant,
    /// For how long there has been no step, and no end of a round.
    silent: Duration,
    busy: Duration,
}

impl Judge {
    fn new(seen: Beat, now: Instant) -> Self {
        Self {
            seen,
            looked: now,
            silent: Duration::ZERO,
            busy: Duration::ZERO,
        }
    }

    fn look(&mut self, beat: Beat, now: Instant) -> Result<(), Hung> {
        // After a machine that stood still, nobody had the time that is over.
        let gap = now.saturating_duration_since(self.looked).min(LONGEST_GAP);
        let again = |was: Duration, same: bool| if same { was + gap } else { Duration::ZERO };
        self.silent = again(self.silent, beat.steps == self.seen.steps);
        self.busy = again(self.busy, beat.rounds == self.seen.rounds);
        (self.seen, self.looked) = (beat, now);
        if self.silent > SILENCE {
            return Err(Hung::Silent);
        }
        if self.busy > ONE_THING {
            return Err(Hung::NeverDone);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_secs(15);

    /// What is judged when a look each [`LOOK`] sees these beats.
    fn judged(beats: impl IntoIterator<Item = (u64, u64)>) -> Vec<Result<(), Hung>> {
        let mut now = Instant::now();
        let mut judge = Judge::new(Beat::default(), now);
        let beats = beats.into_iter();
        beats
            .map(|(steps, rounds)| {
                now += LOOK;
                judge.look(Beat { steps, rounds }, now)
            })
            .collect()
    }

    #[test]
    fn one_that_ticks_lives() {
        let ticks = (1..10_000).map(|look| (look * 60, look * 30));
        assert!(judged(ticks).iter().all(Result::is_ok));
    }

    #[test]
    fn one_that_waits_for_what_never_comes_does_not() {
        let verdicts = judged([(5, 3); 12]);
        let lived = verdicts
            .iter()
            .take_while(|verdict| verdict.is_ok())
            .count();
        // The first look sees the last step, and six more are 90 s.
        assert_eq!(lived, 7);
        assert_eq!(verdicts[lived..], [Err(Hung::Silent); 5]);
    }

    #[test]
    fn a_minute_of_waiting_is_not_too_long_and_one_that_goes_on_lives_again() {
        let verdicts = judged([(1, 1), (1, 1), (1, 1), (1, 1), (1, 1), (2, 1), (3, 2)]);
        assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
        let mut beats = vec![(1, 1); 9];
        beats.push((2, 2));
        let verdicts = judged(beats);
        assert_eq!(verdicts[8], Err(Hung::Silent));
        assert_eq!(verdicts[9], Ok(()));
    }

    #[test]
    fn a_change_may_take_long_and_not_for_ever() {
        let looks = ONE_THING.as_secs() / LOOK.as_secs();
        let verdicts = judged((1..looks + 10).map(|look| (look, 1)));
        let (in_time, late) = verdicts.split_at(usize::try_from(looks).unwrap() + 1);
        assert!(in_time.iter().all(Result::is_ok));
        assert!(!late.is_empty());
        assert!(late.iter().all(|verdict| *verdict == Err(Hung::NeverDone)));
    }

    #[test]
    fn time_that_nobody_had_is_not_held_against_it() {
        let mut now = Instant::now();
        let beat = Beat {
            steps: 9,
            rounds: 4,
        };
        let mut judge = Judge::new(beat, now);
        // The machine stands still for an hour, and the driver goes on after us.
        now += Duration::from_secs(3600);
        assert_eq!(judge.look(beat, now), Ok(()));
    }
}
