//! The core's log lines: one bounded history that every viewer reads at his own pace.
//!
//! The history belongs to the node, not to a core, so viewers live on when the core is started
//! anew. When it is full the oldest lines go; a viewer who has not read them yet is told how many.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

/// The history's size in bytes, however few lines that makes.
const HISTORY_BYTES: usize = 4 << 20;

/// The log of all cores of one node.
#[derive(Debug)]
pub struct Logs {
    history: Mutex<History>,
    missed: AtomicU64,
    /// The number of lines so far; a change wakes the viewers.
    written: watch::Sender<u64>,
}

#[derive(Debug)]
struct History {
    lines: VecDeque<Line>,
    bytes: usize,
    /// The number of the oldest line that is still here.
    oldest: u64,
    capacity: usize,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it came.
    pub at: SystemTime,
    /// The line.
    pub text: Arc<str>,
}

/// What a viewer gets next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A line.
    Line(Line),
    /// So many lines went before the viewer read them.
    Lost(u64),
}

impl Logs {
    /// A log that remembers up to `capacity` lines.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let history = History {
            lines: VecDeque::new(),
            bytes: 0,
            oldest: 0,
            capacity: capacity.max(1),
        };
        Self {
            history: Mutex::new(history),
            missed: AtomicU64::new(0),
            written: watch::Sender::new(0),
        }
    }

    /// Adds a line. Never waits for a viewer.
    pub fn push(&self, line: &str) {
        let written = self.lock().push(line.into());
        self.written.send_replace(written);
    }

    /// How many lines there were so far.
    #[must_use]
    pub fn lines(&self) -> u64 {
        *self.written.borrow()
    }

    /// How many of them viewers did not get, each viewer by himself.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// A viewer who starts with the whole history.
    #[must_use]
    pub fn viewer(self: &Arc<Self>) -> Viewer {
        Viewer {
            next: self.lock().oldest,
            written: self.written.subscribe(),
            logs: Arc::clone(self),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    fn push(&mut self, text: Arc<str>) -> u64 {
        self.bytes += text.len();
        let at = SystemTime::now();
        self.lines.push_back(Line { at, text });
        while self.lines.len() > self.capacity
            || (self.bytes > HISTORY_BYTES && self.lines.len() > 1)
        {
            let Some(line) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= line.text.len();
            self.oldest += 1;
        }
        self.end()
    }

    fn end(&self) -> u64 {
        self.oldest + self.lines.len() as u64
    }
}

/// One reader of the log.
#[derive(Debug)]
pub struct Viewer {
    logs: Arc<Logs>,
    written: watch::Receiver<u64>,
    next: u64,
}

impl Viewer {
    /// The next line, waiting for one if there is none yet. `None` when the log itself is gone.
    ///
    /// Cancel-safe: a line is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Entry> {
        loop {
            self.written.mark_unchanged();
            if let Some(entry) = self.try_next() {
                return Some(entry);
            }
            self.written.changed().await.ok()?;
        }
    }

    /// The next line, if there is one already.
    pub fn try_next(&mut self) -> Option<Entry> {
        let history = self.logs.lock();
        if self.next < history.oldest {
            let lost = history.oldest - self.next;
            self.next = history.oldest;
            self.logs.missed.fetch_add(lost, Ordering::Relaxed);
            return Some(Entry::Lost(lost));
        }
        let place = usize::try_from(self.next - history.oldest).ok()?;
        let line = history.lines.get(place)?.clone();
        self.next += 1;
        Some(Entry::Line(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next(viewer: &mut Viewer) -> String {
        match viewer.next().await.unwrap() {
            Entry::Line(line) => line.text.to_string(),
            Entry::Lost(count) => format!("{count} lost"),
        }
    }

    #[tokio::test]
    async fn every_viewer_gets_every_line_and_starts_with_the_history() {
        let logs = Arc::new(Logs::new(10));
        logs.push("one");
        let (mut early, mut late) = (logs.viewer(), logs.viewer());
        assert_eq!(next(&mut early).await, "one");
        logs.push("two");
        assert_eq!(next(&mut early).await, "two");
        assert_eq!(next(&mut late).await, "one");
        assert_eq!(next(&mut late).await, "two");
    }

    #[tokio::test]
    async fn a_slow_viewer_is_told_how_many_lines_he_lost() {
        let logs = Arc::new(Logs::new(2));
        let mut viewer = logs.viewer();
        for text in ["a", "b", "c", "d", "e"] {
            logs.push(text);
        }
        assert_eq!(next(&mut viewer).await, "3 lost");
        assert_eq!((logs.lines(), logs.missed()), (5, 3));
        assert_eq!(next(&mut viewer).await, "d");
        assert_eq!(next(&mut viewer).await, "e");
    }

    #[tokio::test]
    async fn a_waiting_viewer_wakes_up() {
        let logs = Arc::new(Logs::new(2));
        let mut viewer = logs.viewer();
        let writer = Arc::clone(&logs);
        let (entry, ()) = tokio::join!(next(&mut viewer), async {
            tokio::task::yield_now().await;
            writer.push("now");
        });
        assert_eq!(entry, "now");
    }

    #[test]
    fn the_history_is_bounded_in_bytes_too() {
        let logs = Logs::new(usize::MAX);
        let long = "x".repeat(1 << 20);
        for _ in 0..10 {
            logs.push(&long);
        }
        assert!(logs.lock().bytes <= HISTORY_BYTES);
        assert_eq!(*logs.written.borrow(), 10);
    }
}
