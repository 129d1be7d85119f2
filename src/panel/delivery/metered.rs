//! A TCP connection that counts what it takes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a connection has taken and said.
#[derive(Debug, Default)]
pub(super) struct Meter {
    written: AtomicU64,
    eof: AtomicBool,
    /// Behind a failure an end says nothing: a reset that was read looks like one the next time.
    failed: AtomicBool,
}

impl Meter {
    /// How many bytes the kernel has taken.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Whether the peer has ended its side in order.
    pub(super) fn eof(&self) -> bool {
        self.eof.load(Ordering::Acquire)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The peer has ended its side, unless something went wrong before.
    pub(super) fn end(&self) {
        if !self.has_failed() {
            self.eof.store(true, Ordering::Release);
        }
    }

    /// From now on an end says nothing.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

/// The connection.
#[derive(Debug)]
pub(in crate::panel) struct Metered {
    tcp: TcpStream,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(tcp: TcpStream, meter: Arc<Meter>) -> Self {
        Self { tcp, meter }
    }

    fn note(&self, taken: io::Result<usize>) -> io::Result<usize> {
        match &taken {
            Ok(bytes) => {
                self.meter
                    .written
                    .fetch_add(*bytes as u64, Ordering::AcqRel);
            }
            Err(_) => self.meter.fail(),
        }
        taken
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = ready!(Pin::new(&mut self.tcp).poll_read(cx, buf));
        match &read {
            Ok(()) if room > 0 && buf.filled().len() == before => {
                self.meter.end();
            }
            Ok(()) => {}
            Err(_) => self.meter.fail(),
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.tcp).poll_write(cx, buf));
        Poll::Ready(self.note(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = ready!(Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs));
        Poll::Ready(self.note(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
