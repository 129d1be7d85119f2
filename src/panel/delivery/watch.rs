//! Looks at a report until it can be judged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::judge::{Evidence, Verdict, judge};
use super::{Case, Wire};
use crate::usage::ledger::Ticket;

/// How soon a report is looked at first, and how often at most.
const FIRST_LOOK: Duration = Duration::from_micros(300);
const LOOK: Duration = Duration::from_millis(20);
/// How long a report rests that seems to have arrived: a cancel may still be on its way.
const REST: Duration = Duration::from_secs(1);
/// The same over HTTP/1.1, where nothing but its next request says that it has read the report.
const REST_HTTP1: Duration = Duration::from_secs(20);
/// How long a connection on which nothing goes forward is kept for a report.
const BOUND: Duration = Duration::from_secs(60);
/// How long the peer's last word is waited for when a connection is over, and how long nothing may have gone
/// forward: the kernel goes on sending.
const LAST_WORD: Duration = Duration::from_secs(5);
const STILL: Duration = Duration::from_secs(30);

/// What is remembered from one look to the next.
struct Seen {
    began: Instant,
    acked: u64,
    /// When something went forward last.
    forward: Instant,
    /// When the first sign came that it arrived.
    signs: Option<Instant>,
}

/// Looks at a report until its verdict is known.
pub(super) async fn watch(wire: Arc<Wire>, case: Arc<Case>, ticket: Ticket) {
    let mut pause = FIRST_LOOK;
    let now = Instant::now();
    let mut seen = Seen {
        began: now,
        acked: 0,
        forward: now,
        signs: None,
    };
    loop {
        let news = wire.news.notified();
        let evidence = wire.evidence(&case, &mut seen);
        let verdict = judge(&evidence);
        match verdict {
            Verdict::Arrived => ticket.arrived(),
            Verdict::Lost => {
                wire.drop_the_rest();
                ticket.lost();
            }
            Verdict::Unsure => {
                wire.drop_the_rest();
                ticket.unsure();
            }
            Verdict::Wait | Verdict::GiveUp => {
                if verdict == Verdict::GiveUp {
                    wire.given_up.cancel();
                }
                drop(tokio::time::timeout(pause, news).await);
                pause = pause.mul_f32(1.5).min(LOOK);
                continue;
            }
        }
        tracing::debug!(id = ticket.id(), ?evidence, "a report of usage was judged");
        break;
    }
    wire.forget(&case);
}

impl Wire {
    /// HTTP has taken a reply whose head never comes out: it has thrown it away.
    fn is_stuck(&self, case: &Case, age: Duration) -> bool {
        let has_head =
            || self.with_cases(|cases| cases.by_stream.values().any(|of| of.mark == case.mark));
        case.http2 && age >= BOUND && case.complete.load(Ordering::Acquire) && !has_head()
    }

    fn evidence(&self, case: &Case, seen: &mut Seen) -> Evidence {
        let over = self.over.get();
        let end = Some(case.end.load(Ordering::Acquire)).filter(|end| *end > 0);
        let info = self.info();
        let pong = case.pong.load(Ordering::Acquire);
        if pong || end.is_some_and(|end| info.acked() >= end) {
            seen.signs.get_or_insert_with(Instant::now);
        }
        if info.acked() > seen.acked {
            (seen.acked, seen.forward) = (info.acked(), Instant::now());
        }
        Evidence {
            http2: case.http2,
            end,
            written: self.meter.written(),
            acked: info.acked(),
            unsent: info.unsent(),
            closed: info.is_closed(),
            eof: self.meter.eof(),
            ended_tls: self.ended_tls.load(Ordering::Acquire),
            goodbye: self.goodbye.load(Ordering::Acquire),
            over: over.is_some(),
            silent: over.is_some_and(|since| since.elapsed() >= LAST_WORD)
                && seen.forward.elapsed() >= STILL,
            replaced: case.replaced.load(Ordering::Acquire),
            discarded: case.discarded.load(Ordering::Acquire),
            reset_stream: case.reset_stream.load(Ordering::Acquire),
            pong,
            answered: self.answered.load(Ordering::Acquire),
            rested: seen.signs.is_some_and(|since| {
                // Over HTTP/1.1 the client's next word may take as long as its rhythm is.
                let is_over = over.is_some_and(|since| since.elapsed() >= REST);
                let rest = if case.http2 || is_over {
                    REST
                } else {
                    REST_HTTP1
                };
                since.elapsed() >= rest
            }),
            late: seen.forward.elapsed() >= BOUND || self.is_stuck(case, seen.began.elapsed()),
        }
    }
}
