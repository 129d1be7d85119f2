//! Slows down who guesses keys: a token bucket per address, in bounded memory.
//!
//! Only failed attempts are counted and only they wait. Whoever shows a right key is never slowed,
//! whatever others do from the same address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// So many failures are answered at once. A panel whose session has expired repeats the old id
/// every couple of seconds and must not suffer.
const BURST: f64 = 20.0;
/// Then so many a second.
const PER_SECOND: f64 = 1.0;
/// No answer waits longer.
const LONGEST: Duration = Duration::from_secs(5);
/// How many addresses are remembered; of more, those that failed longest ago are forgotten.
const ADDRESSES: usize = 4096;
/// How often the log says how many were turned away.
const REPORT: Duration = Duration::from_secs(10);

/// The failures of every address.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    buckets: HashMap<IpAddr, Bucket>,
    total: u64,
    reported: Option<(Instant, u64)>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Throttle {
    /// Notes a failure and says how long its answer has to wait.
    pub(super) fn failed(&mut self, address: IpAddr, now: Instant) -> Duration {
        self.total += 1;
        let address = network(address);
        if !self.buckets.contains_key(&address) && self.buckets.len() >= ADDRESSES {
            self.forget_the_oldest(now);
        }
        let bucket = self.buckets.entry(address).or_insert(Bucket {
            tokens: BURST,
            at: now,
        });
        let refill = now.saturating_duration_since(bucket.at).as_secs_f64() * PER_SECOND;
        bucket.tokens = (bucket.tokens + refill).min(BURST) - 1.0;
        bucket.at = now;
        // A debt that could never be paid back would slow an address down for hours.
        bucket.tokens = bucket.tokens.max(-LONGEST.as_secs_f64() * PER_SECOND);
        Duration::from_secs_f64((-bucket.tokens).max(0.0) / PER_SECOND)
    }

    /// How many were turned away since this was last said, if it is time to say it again.
    pub(super) fn report(&mut self, now: Instant) -> Option<u64> {
        let (at, counted) = self.reported.unwrap_or((now, 0));
        let due = self.reported.is_none() || now.saturating_duration_since(at) >= REPORT;
        let count = self.total - counted;
        if !due || count == 0 {
            return None;
        }
        self.reported = Some((now, self.total));
        Some(count)
    }

    /// Makes room: full buckets say nothing, and of the others the older half goes.
    fn forget_the_oldest(&mut self, now: Instant) {
        let full = Duration::from_secs_f64(BURST / PER_SECOND);
        self.buckets
            .retain(|_, bucket| now.saturating_duration_since(bucket.at) < full);
        if self.buckets.len() >= ADDRESSES {
            let mut ages: Vec<Instant> = self.buckets.values().map(|bucket| bucket.at).collect();
            let (_, median, _) = ages.select_nth_unstable(ADDRESSES / 2);
            let median = *median;
            self.buckets.retain(|_, bucket| bucket.at > median);
        }
    }
}

/// One IPv6 customer has a whole /64 to call from.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(
            address.to_bits() & !u128::from(u64::MAX),
        )),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn a_burst_is_answered_at_once_and_then_one_a_second() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for _ in 0..20 {
            assert_eq!(throttle.failed(address(1), start), Duration::ZERO);
        }
        assert_eq!(throttle.failed(address(1), start), Duration::from_secs(1));
        assert_eq!(
            throttle.failed(address(2), start),
            Duration::ZERO,
            "others do not suffer"
        );
        for _ in 0..1000 {
            assert!(throttle.failed(address(1), start) <= LONGEST);
        }
        let later = start + Duration::from_secs(60);
        assert_eq!(
            throttle.failed(address(1), later),
            Duration::ZERO,
            "it is forgiven"
        );
    }

    #[test]
    fn a_panel_that_repeats_an_old_session_every_two_seconds_never_waits() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for round in 0..1000 {
            let now = start + Duration::from_secs(2 * round);
            assert_eq!(throttle.failed(address(1), now), Duration::ZERO);
        }
    }

    #[test]
    fn memory_is_bounded_whoever_calls() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for number in 0..100_000 {
            throttle.failed(
                address(number),
                start + Duration::from_micros(u64::from(number)),
            );
            assert!(throttle.buckets.len() <= ADDRESSES);
        }
    }

    #[test]
    fn one_network_is_one_address() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:203.0.113.7"), of("203.0.113.7"));
        assert_ne!(of("203.0.113.7"), of("203.0.113.8"));
    }

    #[test]
    fn the_log_hears_of_them_now_and_then() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        throttle.failed(address(1), start);
        assert_eq!(throttle.report(start), Some(1));
        throttle.failed(address(1), start);
        assert_eq!(throttle.report(start), None);
        assert_eq!(throttle.report(start + REPORT), Some(1));
        assert_eq!(throttle.report(start + REPORT + REPORT), None);
    }
}
