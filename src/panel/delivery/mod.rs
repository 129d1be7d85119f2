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
mod question;
mod tcp_info;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use http::{HeaderName, HeaderValue, Version};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::frames::Frames;
pub(super) use self::metered::Metered;

use self::metered::Meter;
use self::question::{Mark, Question};
use self::tcp_info::Info;
use self::watch::watch;
use crate::usage::ledger::Ticket;

/// Names a report to whoever reads along, and to people who look at a capture.
const HEADER: HeaderName = HeaderName::from_static("raynode-delivery");
/// So many cancelled streams are remembered.
const CANCELLED: usize = 1024;

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
        let case = self.with_cases(|cases| {
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
            });
            cases.open.push(Arc::clone(&case));
            case
        });
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

    fn has_ended_tls(&self) -> bool {
        self.ended_tls.load(Ordering::Acquire)
    }

    /// HTTP closes the connection: because it wants to, unless the peer has done so before, in whatever way.
    fn says_goodbye(&self) {
        let has_ended = self.meter.has_failed()
            || self.meter.eof()
            || self.has_ended_tls()
            || self.info().is_closed();
        if !has_ended {
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
