//! One panel's control of the node, from its Start on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// A session. Its id is a credential: whoever knows it is the panel that started it.
pub struct Session {
    id: Uuid,
    keep_alive: Option<Duration>,
    started: Instant,
    /// Milliseconds from the start to the last successful call.
    last_call: AtomicU64,
    /// Streams that the panel holds open. An open log viewer is a panel that is there.
    open: AtomicUsize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("keep_alive", &self.keep_alive)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session that ends by itself when its panel does not call for `keep_alive`.
    #[must_use]
    pub fn new(id: Uuid, keep_alive: Option<Duration>, now: Instant) -> Self {
        Self {
            id,
            keep_alive,
            started: now,
            last_call: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        }
    }

    /// The id that Start's reply carries.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// How long its panel may be silent; `None` for ever.
    #[must_use]
    pub fn keep_alive(&self) -> Option<Duration> {
        self.keep_alive
    }

    /// Notes a successful call.
    pub fn touch(&self, now: Instant) {
        let since_start = now.saturating_duration_since(self.started).as_millis();
        self.last_call.fetch_max(
            u64::try_from(since_start).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// When its panel's Start was made.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// When its panel last made a call that succeeded.
    #[must_use]
    pub fn last_call(&self) -> Instant {
        let since_start = Duration::from_millis(self.last_call.load(Ordering::Relaxed));
        self.started
            .checked_add(since_start)
            .unwrap_or(self.started)
    }

    /// When the session ends unless its panel calls; `None` for one that does not end by itself.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.last_call().checked_add(self.keep_alive?)
    }

    /// Whether its panel has been silent for too long.
    #[must_use]
    pub fn has_expired(&self, now: Instant) -> bool {
        self.open.load(Ordering::Relaxed) == 0
            && self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// Keeps the session from expiring as long as the result lives.
    #[must_use]
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.open.fetch_add(1, Ordering::Relaxed);
        Hold(Arc::clone(self))
    }
}

/// An open stream of a session's panel.
#[derive(Debug)]
pub struct Hold(Arc<Session>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.touch(Instant::now());
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(keep_alive: Option<u64>) -> (Arc<Session>, Instant) {
        let now = Instant::now();
        (
            Arc::new(Session::new(
                Uuid::nil(),
                keep_alive.map(Duration::from_secs),
                now,
            )),
            now,
        )
    }

    #[test]
    fn it_ends_when_the_panel_is_silent_for_the_whole_keep_alive() {
        let (session, start) = session(Some(60));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!session.has_expired(at(59)));
        assert!(session.has_expired(at(60)));
        session.touch(at(50));
        assert!(!session.has_expired(at(109)));
        assert!(session.has_expired(at(110)));
        session.touch(at(10));
        assert!(
            !session.has_expired(at(109)),
            "a late report of an early call takes nothing back"
        );
    }

    #[test]
    fn without_keep_alive_it_never_ends() {
        let (session, start) = session(None);
        assert!(!session.has_expired(start + Duration::from_secs(1 << 30)));
    }

    #[test]
    fn an_endless_keep_alive_does_not_overflow() {
        let (session, start) = session(Some(u64::MAX));
        assert!(!session.has_expired(start + Duration::from_secs(1 << 30)));
    }

    #[test]
    fn an_open_stream_keeps_it() {
        let (session, start) = session(Some(1));
        let hold = session.hold();
        assert!(!session.has_expired(start + Duration::from_secs(100)));
        drop(hold);
        assert!(session.has_expired(start + Duration::from_secs(100)));
    }
}
