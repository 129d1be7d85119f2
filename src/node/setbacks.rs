//! Configurations that failed only when a running core had been stopped for them. Pure.
//!
//! A panel repeats a Start that has failed, every few seconds and without end; and each attempt would cut
//! everybody. So the same one is refused for a while, without touching what serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the same configuration is refused after its first failure; then twice as long, and so on.
const FIRST: Duration = Duration::from_secs(20);
const LONGEST: Duration = Duration::from_secs(600);

/// The last one that failed.
#[derive(Debug)]
pub(super) struct Setbacks<T> {
    last: Option<Setback<T>>,
}

#[derive(Debug)]
struct Setback<T> {
    of: Arc<T>,
    times: u32,
    until: Instant,
    reason: String,
}

impl<T> Default for Setbacks<T> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<T: PartialEq> Setbacks<T> {
    /// Why this one is not tried, when it failed lately.
    ///
    /// # Errors
    /// With the reason of then, and how long it is remembered.
    pub(super) fn allow(&self, wanted: &T, now: Instant) -> Result<(), String> {
        match &self.last {
            Some(last) if now < last.until && *last.of == *wanted => Err(format!(
                "{} (it failed a moment ago; the same configuration is tried again in {} s)",
                last.reason,
                (last.until - now).as_secs() + 1
            )),
            _ => Ok(()),
        }
    }

    /// How often this one has failed.
    pub(super) fn count(&self, wanted: &T) -> u32 {
        let same = self.last.as_ref().filter(|last| *last.of == *wanted);
        same.map_or(0, |last| last.times)
    }

    /// This one has failed.
    pub(super) fn note(&mut self, of: Arc<T>, reason: String, now: Instant) {
        let times = self.count(&of) + 1;
        let doubled = 1_u32.checked_shl(times - 1).unwrap_or(u32::MAX);
        self.last = Some(Setback {
            of,
            times,
            until: now + FIRST.saturating_mul(doubled).min(LONGEST),
            reason,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_one_waits_longer_each_time_and_another_one_does_not() {
        let (mut setbacks, now) = (Setbacks::default(), Instant::now());
        assert_eq!(setbacks.allow(&1, now), Ok(()));
        setbacks.note(Arc::new(1), "port taken".to_owned(), now);
        let refused = setbacks.allow(&1, now).unwrap_err();
        assert!(
            refused.starts_with("port taken (") && refused.contains("in 21 s"),
            "{refused}"
        );
        assert_eq!(setbacks.allow(&2, now), Ok(()));
        assert_eq!(setbacks.allow(&1, now + FIRST), Ok(()));
        setbacks.note(Arc::new(1), "port taken".to_owned(), now);
        assert!(setbacks.allow(&1, now + FIRST).is_err());
        assert_eq!(setbacks.allow(&1, now + 2 * FIRST), Ok(()));
        for _ in 0..100 {
            setbacks.note(Arc::new(1), String::new(), now);
        }
        assert_eq!(setbacks.allow(&1, now + LONGEST), Ok(()));
        assert_eq!((setbacks.count(&1), setbacks.count(&2)), (102, 0));
    }
}
