//! Between TLS and HTTP: reads along, and asks the client behind each report whether it has come to its end.
//!
//! Two rules make what it knows exact. It takes no byte before TLS has handed all earlier ones to the
//! kernel, and never more than one TLS record holds: so when TLS has nothing left, the count of bytes that
//! the kernel has taken is where the last record ends. And the question after a report is in the same
//! record as the report's end: no client can read the one and leave the other unread.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use super::parser::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PING, PREFACE, Parser, RST_STREAM,
};
use super::question::Question;
use super::{Case, Metered, Wire};

/// What one TLS record holds (RFC 8446, section 5.1).
const RECORD: usize = 16_384;
/// A whole PING frame.
const QUESTION: usize = 17;
/// How long a client is heard out before we end a connection, and how often its kernel is asked meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(5);
/// How long the end of TCP is waited for behind the end of TLS.
const FAREWELL: Duration = Duration::from_secs(2);
/// How much is read when a connection is over.
const LEFTOVER: usize = 4096;

/// What is spoken, by the client's first bytes.
#[derive(Debug)]
enum Speech {
    /// So many bytes were those of HTTP/2 so far.
    Unknown(usize),
    Http1,
    Http2 {
        incoming: Parser,
    },
}

/// One connection, decrypted.
#[derive(Debug)]
pub(in crate::panel) struct Frames {
    tls: TlsStream<Metered>,
    wire: Arc<Wire>,
    speech: Speech,
    outgoing: Parser,
    /// Whether the first question was asked.
    greeted: bool,
    /// Bytes on their way into TLS.
    record: Vec<u8>,
    /// Runs when the peer has ended TLS.
    farewell: Option<Pin<Box<Sleep>>>,
    /// Run when we end the connection.
    patience: Option<Pin<Box<Sleep>>>,
    tick: Option<Pin<Box<Sleep>>>,
    /// Reports whose last byte TLS has and the kernel perhaps not.
    ended: Vec<Arc<Case>>,
}

impl Frames {
    pub(in crate::panel) fn new(tls: TlsStream<Metered>, wire: Arc<Wire>) -> Self {
        Self {
            tls,
            wire,
            speech: Speech::Unknown(0),
            outgoing: Parser::default(),
            greeted: false,
            record: Vec::new(),
            farewell: None,
            patience: None,
            tick: None,
            ended: Vec::new(),
        }
    }

    /// Everything that TLS has goes to the kernel.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.get_ref().1.wants_write() {
            ready!(Pin::new(&mut self.tls).poll_flush(cx))?;
        }
        self.wire.drained(&mut self.ended);
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.drain(cx))?;
        let is_http2 = matches!(self.speech, Speech::Http2 { .. });
        let limit = RECORD - QUESTION;
        self.record.clear();
        for buf in bufs {
            let (part, _) = buf.split_at(buf.len().min(limit - self.record.len()));
            self.record.extend_from_slice(part);
        }
        let (mut taken, mut outgoing, mut asked) = (self.record.len(), None, None);
        if is_http2 {
            let mut parser = self.outgoing.clone();
            let (end, question) = look_ahead(&mut parser, &self.record, &self.wire, self.greeted);
            taken = end;
            self.record.truncate(end);
            if let Some(question) = &question {
                self.record.extend(ping(question.asks()));
            }
            outgoing = Some(parser);
            asked = question;
        }
        if self.record.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = ready!(Pin::new(&mut self.tls).poll_write(cx, &self.record))?;
        if written < self.record.len() {
            // TLS takes a whole record when it has none; otherwise nothing here would be true any more.
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if let Some(parser) = outgoing {
            self.outgoing = parser;
        }
        match asked {
            Some(Asked::Anybody) => self.greeted = true,
            Some(Asked::Report(case)) => self.ended.push(case),
            None => {}
        }
        if !self.tls.get_ref().1.wants_write() {
            self.wire.drained(&mut self.ended);
        }
        Poll::Ready(Ok(taken))
    }

    /// The peer has ended TLS. How it ends TCP says whether it has left something unread, and is heard
    /// before we say goodbye: that would be left unread, too.
    fn hear_the_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let farewell = self
            .farewell
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(FAREWELL)));
        if !self.wire.has_reports() || farewell.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut bytes = [0; 256];
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            let (tcp, _) = self.tls.get_mut();
            match Pin::new(tcp).poll_read(cx, &mut buf) {
                // Nothing that comes behind the end of TLS means anything.
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Before we end the connection its client gets to say that it has its reports; a goodbye that it leaves
    /// unread would look like a report that it leaves unread.
    fn hear_out(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.wire.has_heard_of_all() || self.farewell.is_some() {
                return Poll::Ready(());
            }
            let patience = self
                .patience
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            if patience.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut bytes = [0; 256];
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.tls).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    if let Speech::Http2 { .. } = self.speech {
                        let filled = buf.filled().to_vec();
                        self.hear(&filled);
                    }
                }
                Poll::Ready(Ok(())) => {
                    self.wire.peer_ended_tls();
                    return Poll::Ready(());
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            // An acknowledgement wakes nobody.
            let tick = self
                .tick
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(TICK)));
            ready!(tick.as_mut().poll(cx));
            self.tick = None;
        }
    }

    fn hear(&mut self, mut bytes: &[u8]) {
        if let Speech::Unknown(known) = self.speech {
            let (_, expected) = PREFACE.split_at(known);
            let shared = expected.len().min(bytes.len());
            let ((begin, rest), (expected, _)) =
                (bytes.split_at(shared), expected.split_at(shared));
            bytes = rest;
            if begin != expected {
                self.speech = Speech::Http1;
            } else if known + shared < PREFACE.len() {
                self.speech = Speech::Unknown(known + shared);
            } else {
                self.speech = Speech::Http2 {
                    incoming: Parser::default(),
                };
            }
        }
        let Speech::Http2 { incoming } = &mut self.speech else {
            self.wire.asks_for_more();
            return;
        };
        while !bytes.is_empty() {
            let (read, frame) = incoming.next(bytes, |frame| frame.kind == PING);
            match frame {
                Some((frame, _)) if frame.kind == RST_STREAM => self.wire.cancelled(frame.stream),
                Some((frame, payload)) if frame.kind == PING && frame.flags & ACK != 0 => {
                    let question = payload.try_into().ok().and_then(Question::read);
                    if let Some(question) = question {
                        self.wire.answered(question);
                    }
                }
                _ => {}
            }
            bytes = bytes.split_at(read).1;
        }
    }
}

/// What is asked behind a frame.
#[derive(Debug)]
enum Asked {
    Anybody,
    Report(Arc<Case>),
}

impl Asked {
    fn asks(&self) -> Question {
        match self {
            Self::Anybody => Question::Anybody,
            Self::Report(case) => Question::Report(case.mark),
        }
    }
}

/// Reads what is about to be written, up to the first frame behind which something is to be asked.
fn look_ahead(
    parser: &mut Parser,
    bytes: &[u8],
    wire: &Wire,
    greeted: bool,
) -> (usize, Option<Asked>) {
    let finds_heads = wire.has_heads_to_find();
    let mut end = 0;
    while end < bytes.len() {
        let (_, rest) = bytes.split_at(end);
        let (read, frame) = parser.next(rest, |frame| finds_heads && frame.kind == HEADERS);
        end += read;
        let Some((frame, payload)) = frame else {
            break;
        };
        if frame.kind == HEADERS && finds_heads {
            wire.head(frame.stream, &payload);
        }
        // Nothing may come between a head and its continuation.
        let is_whole = frame.kind != HEADERS || frame.flags & END_HEADERS != 0;
        if is_whole && ends_its_stream(frame) {
            if let Some(case) = wire.of_stream(frame.stream) {
                return (end, Some(Asked::Report(case)));
            }
        } else if is_whole && !greeted {
            return (end, Some(Asked::Anybody));
        }
    }
    (end, None)
}

fn ends_its_stream(frame: Frame) -> bool {
    matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0
}

/// A PING frame (RFC 9113, section 6.7).
fn ping(question: Question) -> impl Iterator<Item = u8> {
    [0, 0, 8, PING, 0, 0, 0, 0, 0]
        .into_iter()
        .chain(question.payload())
}

impl AsyncRead for Frames {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.farewell.is_none() {
            let (before, room) = (buf.filled().len(), buf.remaining());
            ready!(Pin::new(&mut self.tls).poll_read(cx, buf))?;
            let (_, fresh) = buf.filled().split_at(before);
            if !fresh.is_empty() || room == 0 {
                self.hear(fresh);
                return Poll::Ready(Ok(()));
            }
            self.wire.peer_ended_tls();
        }
        self.hear_the_end(cx).map(Ok)
    }
}

impl AsyncWrite for Frames {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.tls).poll_flush(cx))?;
        ready!(self.drain(cx))?;
        // HTTP/1.1 flushes when it has written all that it had.
        if matches!(self.speech, Speech::Http1) {
            self.wire.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.hear_out(cx));
        // It may have ended TLS just now, and TCP not yet.
        if self.wire.has_ended_tls() {
            ready!(self.hear_the_end(cx));
        }
        self.wire.says_goodbye();
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

impl Drop for Frames {
    /// An answer or a cancel may have come that nobody has read.
    fn drop(&mut self) {
        self.wire.meter.fail();
        let mut cx = Context::from_waker(Waker::noop());
        let mut bytes = [0; LEFTOVER];
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.tls).poll_read(&mut cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    // Over HTTP/1.1 it says nothing that is of use any more.
                    if let Speech::Http2 { .. } = self.speech {
                        let filled = buf.filled().to_vec();
                        self.hear(&filled);
                    }
                }
                _ => break,
            }
        }
        self.wire.is_over();
    }
}
