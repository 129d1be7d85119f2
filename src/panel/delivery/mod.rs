//! Whether a report of usage reached the panel: what is seen of a connection below HTTP.
//!
//! Between TLS and HTTP sits [`Frames`], which reads along: it knows when the last byte of a report has
//! been handed to the kernel, asks the client's library right behind it whether it is there (an HTTP/2
//! PING), and hears its answer and its cancels. Below TLS [`metered`] counts bytes. A task for each report
//! adds what the kernel knows, and has all of it judged.

mod frames;
mod judge;
mod metered;
mod parser;
mod tcp_info;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Version};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::frames::Frames;
pub(super) use self::metered::Metered;

use self::judge::{Evidence, Verdict, judge};
use self::metered::Meter;
use self::tcp_info::Info;
use crate::usage::ledger::Ticket;

/// Names a report to whoever reads along, and to people who look at a capture.
const HEADER: HeaderName = HeaderName::from_static("raynode-delivery");
/// So many cancelled streams are remembered.
const CANCELLED: usize = 1024;
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

/// One connection, as far as reports are concerned.
#[derive(Debug)]
pub(super) struct Wire {
    meter: Arc<Meter>,
    /// The same socket: the connection's own is closed when it is over, and the kernel is asked after that.
    socket: Option<OwnedFd>,
    cases: Mutex<Cases>,
    answered: AtomicBool,
    goodbye: AtomicBool,
    ended_tls: AtomicBool,
    over: OnceLock<Instant>,
    given_up: CancellationToken,
    news: Notify,
    watchers: TaskTracker,
}

#[derive(Debug, Default)]
struct Cases {
    next: u32,
    open: Vec<Arc<Case>>,
    by_stream: HashMap<u32, Arc<Case>>,
    /// Streams that were cancelled and whose head was not seen yet.
    cancelled: VecDeque<u32>,
}

/// One report on its way.
#[derive(Debug)]
struct Case {
    mark: Mark,
    http2: bool,
    /// Zero until it is known.
    end: AtomicU64,
    complete: AtomicBool,
    discarded: AtomicBool,
    replaced: AtomicBool,
    reset_stream: AtomicBool,
    pong: AtomicBool,
    answered_before: bool,
}

/// A report's number on its connection: eight letters that HTTP/2 always packs into five bytes, in which
/// they are found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark(u32);

impl Mark {
    /// The letters whose codes in HPACK's Huffman table are 0 to 7, in five bits each (RFC 7541, appendix B).
    const LETTERS: [u8; 8] = *b"012aceio";
    /// So many bits are in eight letters.
    const BITS: u32 = 24;

    fn letters(self) -> [u8; 8] {
        let mut letters = [0; 8];
        for (place, letter) in letters.iter_mut().enumerate() {
            let shift = Self::BITS - 3 * (u32::try_from(place).unwrap_or(0) + 1);
            let digit = (self.0 >> shift) & 7;
            *letter = Self::LETTERS
                .get(digit as usize)
                .copied()
                .unwrap_or_default();
        }
        letters
    }

    /// As HPACK writes it: Huffman, five bytes (RFC 7541, section 5.2).
    fn packed(self) -> [u8; 6] {
        let mut bits = 0_u64;
        for place in 1..=8 {
            let digit = (self.0 >> (Self::BITS - 3 * place)) & 7;
            bits = bits << 5 | u64::from(digit);
        }
        let mut packed = [0x85; 6];
        let (_, bytes) = packed.split_at_mut(1);
        bytes.copy_from_slice(bits.to_be_bytes().split_at(3).1);
        packed
    }
}

impl Wire {
    pub(super) fn new(tcp: &TcpStream, watchers: TaskTracker) -> Arc<Self> {
        use std::os::fd::AsFd;

        Arc::new(Self {
            meter: Arc::default(),
            socket: tcp.as_fd().try_clone_to_owned().ok(),
            cases: Mutex::default(),
            answered: AtomicBool::new(false),
            goodbye: AtomicBool::new(false),
            ended_tls: AtomicBool::new(false),
            over: OnceLock::new(),
            given_up: CancellationToken::new(),
            news: Notify::new(),
            watchers,
        })
    }

    /// Counts what the connection takes.
    pub(super) fn meter(&self, tcp: TcpStream) -> Metered {
        Metered::new(tcp, Arc::clone(&self.meter))
    }

    /// A report is about to leave: the header that it needs, and what notes how its body fares.
    pub(super) fn send(
        self: &Arc<Self>,
        ticket: Ticket,
        version: Version,
    ) -> ((HeaderName, HeaderValue), Track) {
        ticket.leaves();
        let case = {
            let mut cases = self.cases.lock().unwrap_or_else(PoisonError::into_inner);
            cases.next = (cases.next + 1) % (1 << Mark::BITS);
            let case = Arc::new(Case {
                mark: Mark(cases.next),
                http2: version == Version::HTTP_2,
                end: AtomicU64::new(0),
                complete: AtomicBool::new(false),
                discarded: AtomicBool::new(false),
                replaced: AtomicBool::new(false),
                reset_stream: AtomicBool::new(false),
                pong: AtomicBool::new(false),
                answered_before: self.answered.load(Ordering::Relaxed),
            });
            cases.open.push(Arc::clone(&case));
            case
        };
        let value = HeaderValue::from_bytes(&case.mark.letters());
        let mut value = value.unwrap_or_else(|_| HeaderValue::from_static("00000000"));
        // What is sensitive is never put into HPACK's table: it is always written out.
        value.set_sensitive(true);
        let watch = watch(Arc::clone(self), Arc::clone(&case), ticket);
        self.watchers.spawn(watch);
        ((HEADER, value), Track { case })
    }

    /// Returns when the connection has to end, because a report on it gets nowhere.
    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    fn with_cases<T>(&self, look: impl FnOnce(&mut Cases) -> T) -> T {
        look(&mut self.cases.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn forget(&self, case: &Arc<Case>) {
        self.with_cases(|cases| {
            cases.open.retain(|open| !Arc::ptr_eq(open, case));
            cases.by_stream.retain(|_, open| !Arc::ptr_eq(open, case));
        });
    }

    /// The head of a reply was sent on this stream.
    fn head(&self, stream: u32, head: &[u8]) {
        self.with_cases(|cases| {
            let is_cancelled = cases.cancelled.contains(&stream);
            let assigned: Vec<_> = cases.by_stream.values().map(|case| case.mark).collect();
            let found = cases.open.iter().find(|case| {
                !assigned.contains(&case.mark)
                    && head.windows(6).any(|window| window == case.mark.packed())
            });
            if let Some(case) = found.map(Arc::clone) {
                case.reset_stream.fetch_or(is_cancelled, Ordering::AcqRel);
                cases.by_stream.insert(stream, case);
            }
        });
    }

    fn has_heads_to_find(&self) -> bool {
        self.with_cases(|cases| cases.open.len() > cases.by_stream.len())
    }

    fn of_stream(&self, stream: u32) -> Option<Arc<Case>> {
        self.with_cases(|cases| cases.by_stream.get(&stream).map(Arc::clone))
    }

    /// The client cancels a call.
    fn cancelled(&self, stream: u32) {
        self.with_cases(|cases| {
            if let Some(case) = cases.by_stream.get(&stream) {
                case.reset_stream.store(true, Ordering::Release);
            } else if cases.open.len() > cases.by_stream.len() {
                // Its head may still be on its way to the wire, or was thrown away.
                cases.cancelled.push_back(stream);
                if cases.cancelled.len() > CANCELLED {
                    cases.cancelled.pop_front();
                }
            }
        });
        self.news.notify_waiters();
    }

    /// The client's library has answered a question of ours.
    fn answered(&self, question: Question) {
        self.answered.store(true, Ordering::Release);
        if let Question::Report(mark) = question {
            self.with_cases(|cases| {
                for case in cases.open.iter().filter(|case| case.mark == mark) {
                    case.pong.store(true, Ordering::Release);
                }
            });
        }
        self.news.notify_waiters();
    }

    /// Everything that was written is in the kernel: the ends of these reports, too.
    fn drained(&self, ended: &mut Vec<Arc<Case>>) {
        for case in ended.drain(..) {
            case.end.store(self.meter.written(), Ordering::Release);
            self.news.notify_waiters();
        }
    }

    /// The same over HTTP/1.1, where there is one reply at a time.
    fn flushed(&self) {
        self.with_cases(|cases| {
            let whole = cases.open.iter().filter(|case| {
                !case.http2
                    && case.complete.load(Ordering::Acquire)
                    && case.end.load(Ordering::Acquire) == 0
            });
            for case in whole {
                case.end.store(self.meter.written(), Ordering::Release);
            }
        });
        self.news.notify_waiters();
    }

    /// The client says something over HTTP/1.1: it has read what its kernel has acknowledged.
    fn asks_for_more(&self) {
        self.with_cases(|cases| {
            for case in cases.open.iter().filter(|case| !case.http2) {
                let end = case.end.load(Ordering::Acquire);
                if end > 0 && self.info().acked() >= end {
                    case.pong.store(true, Ordering::Release);
                }
            }
        });
        self.news.notify_waiters();
    }

    fn peer_ended_tls(&self) {
        self.ended_tls.store(true, Ordering::Release);
    }

    fn has_reports(&self) -> bool {
        self.with_cases(|cases| !cases.open.is_empty())
    }

    fn info(&self) -> Info {
        self.socket.as_ref().and_then(Info::of).unwrap_or_default()
    }

    /// Whether of each report on the connection something was heard that decides.
    fn has_heard_of_all(&self) -> bool {
        if self.meter.has_failed() {
            return true;
        }
        let info = self.info();
        self.with_cases(|cases| {
            cases.open.iter().all(|case| {
                let end = case.end.load(Ordering::Acquire);
                let has_answered = if case.http2 {
                    case.pong.load(Ordering::Acquire)
                } else {
                    info.acked() >= end
                };
                has_answered || end == 0 || case.reset_stream.load(Ordering::Acquire)
            })
        })
    }

    /// HTTP closes the connection: because it wants to, unless something went wrong before.
    fn says_goodbye(&self) {
        if !self.meter.has_failed() {
            self.goodbye.store(true, Ordering::Release);
        }
    }

    fn is_over(&self) {
        self.over.get_or_init(Instant::now);
        self.news.notify_waiters();
    }

    /// What the kernel still has of a connection that is over must not come out after the verdict: it is
    /// closed with a reset when nobody looks at it any more.
    fn drop_the_rest(&self) {
        let reset = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        if let Some(socket) = &self.socket
            && self.over.get().is_some()
            && let Err(error) = setsockopt(socket, sockopt::Linger, &reset)
        {
            tracing::debug!(%error, "what is left of a connection may still be sent");
        }
    }

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
            answered: case.answered_before || self.answered.load(Ordering::Acquire),
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
async fn watch(wire: Arc<Wire>, case: Arc<Case>, ticket: Ticket) {
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

/// What a PING of ours asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// Whether anybody answers: asked once, at the beginning.
    Anybody,
    /// Whether the client has come to the end of this report.
    Report(Mark),
}

impl Question {
    /// The payload of the PING, eight bytes that nobody else uses.
    fn payload(self) -> [u8; 8] {
        let [_, a, b, c] = match self {
            Self::Anybody => [0; 4],
            Self::Report(mark) => mark.0.to_be_bytes(),
        };
        let kind = u8::from(self != Self::Anybody);
        [b'D', b'L', b'r', b'n', kind, a, b, c]
    }

    fn read(payload: [u8; 8]) -> Option<Self> {
        let [b'D', b'L', b'r', b'n', kind, a, b, c] = payload else {
            return None;
        };
        match kind {
            0 => Some(Self::Anybody),
            1 => Some(Self::Report(Mark(u32::from_be_bytes([0, a, b, c])))),
            _ => None,
        }
    }
}

/// How the body of a report fares.
#[derive(Debug)]
pub(super) struct Track {
    case: Arc<Case>,
}

impl Track {
    /// HTTP has taken the last of it.
    pub(super) fn complete(&self) {
        self.case.complete.store(true, Ordering::Release);
    }

    /// What the client gets is an error.
    pub(super) fn replaced(&self) {
        self.case.replaced.store(true, Ordering::Release);
    }
}

impl Drop for Track {
    fn drop(&mut self) {
        if !self.case.complete.load(Ordering::Acquire) {
            self.case.discarded.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_in_what_hpack_makes_of_it() {
        // RFC 7541, appendix B: '0' is 00000, '1' 00001, '2' 00010, 'a' 00011, 'c' 00100, 'e' 00101, 'i'
        // 00110, 'o' 00111.
        assert_eq!(&Mark(0).letters(), b"00000000");
        assert_eq!(&Mark(0o12_345_670).letters(), b"12aceio0");
        assert_eq!(
            Mark(0o12_345_670).packed(),
            [
                0x85,
                0b0000_1000,
                0b1000_0110,
                0b0100_0010,
                0b1001_1000,
                0b1110_0000
            ]
        );
    }

    #[test]
    fn a_question_is_known_by_its_answer() {
        for question in [Question::Anybody, Question::Report(Mark(0x00ab_cdef))] {
            assert_eq!(Question::read(question.payload()), Some(question));
        }
        assert_eq!(Question::read(*b"\0\0\0\0\0\0\0\0"), None);
        assert_eq!(Question::read(*b"DLrn\x07abc"), None);
    }
}
