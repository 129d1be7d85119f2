//! A core that takes too much memory makes way for a fresh one.

use std::time::{Duration, Instant};

use super::Driver;
use crate::node::phase::Phase;

/// How often its memory is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// So many looks in a row it has to be above the limit: what is garbage by then, Go has given back.
const LOOKS: u32 = 3;
/// What does not help is not done again for so long.
const AGAIN: Duration = Duration::from_secs(3600);
/// What did not come off is tried again after so long.
const TRIED: Duration = Duration::from_secs(300);

/// What was seen of the core's memory.
#[derive(Debug, Default)]
pub(super) struct MemoryGuard {
    looked: Option<Instant>,
    above: u32,
    /// Not before then again.
    rests_until: Option<Instant>,
}

impl MemoryGuard {
    /// Whether it is time to look.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .looked
            .is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK);
        if due {
            self.looked = Some(now);
        }
        due
    }

    /// Whether a fresh core is wanted, by what the one that serves has.
    fn sees(&mut self, bytes: u64, limit: u64, now: Instant) -> bool {
        if bytes <= limit {
            self.above = 0;
            return false;
        }
        self.above += 1;
        let lately = self.rests_until.is_some_and(|until| now < until);
        if self.above == LOOKS {
            tracing::warn!(
                memory_mib = bytes >> 20,
                limit_mib = limit >> 20,
                lately,
                "the core takes more memory than CORE_MEMORY_LIMIT"
            );
        }
        if self.above < LOOKS || lately {
            return false;
        }
        self.above = 0;
        self.rests_until = now.checked_add(TRIED);
        true
    }
}

impl Driver {
    pub(super) async fn guard_memory(&mut self, now: Instant) {
        let Phase::Serving { core, .. } = &self.phase else {
            return;
        };
        let Some(limit) = core.parts().and_then(|parts| parts.memory_limit) else {
            return;
        };
        if !self.memory_guard.is_due(now) {
            return;
        }
        let Some(bytes) = core.memory() else {
            return;
        };
        if !self.memory_guard.sees(bytes, limit, now) {
            return;
        }
        if let Some(why) = self.alone() {
            tracing::warn!(why, "no fresh core can be started beside it, so it goes on");
            return;
        }
        match self.renew("it takes too much memory").await {
            Ok(()) => self.memory_guard.rests_until = now.checked_add(AGAIN),
            Err(error) => tracing::error!(%error, "the core goes on with the memory that it has"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_core_is_wanted_once_an_hour() {
        let (mut guard, now) = (MemoryGuard::default(), Instant::now());
        assert!(guard.is_due(now));
        assert!(!guard.is_due(now + LOOK / 2));
        assert!(guard.is_due(now + LOOK));
        let looks = |guard: &mut MemoryGuard, bytes: &[u64], at: Instant| -> Vec<bool> {
            bytes
                .iter()
                .map(|bytes| guard.sees(*bytes, 10, at))
                .collect()
        };
        assert_eq!(
            looks(&mut guard, &[11, 11, 10], now),
            [false; 3],
            "it gave it back"
        );
        assert_eq!(looks(&mut guard, &[11, 12, 11], now), [false, false, true]);
        assert_eq!(looks(&mut guard, &[11; 9], now + TRIED / 2), [false; 9]);
        guard.rests_until = Some(now + AGAIN);
        assert_eq!(looks(&mut guard, &[11; 9], now + AGAIN / 2), [false; 9]);
        assert!(guard.sees(11, 10, now + AGAIN));
    }
}
