//! A stream of bytes, line by line.

use tokio::io::{AsyncRead, AsyncReadExt};

/// A longer line is cut here.
const MAX_LINE: usize = 64 << 10;

/// What reads a process's output, one line at a time.
pub(super) trait Sink: Send + 'static {
    /// Takes the lines that arrived together, without their ends.
    fn lines(&mut self, lines: &[String]);
}

/// Hands every line to `sink`, until the end.
pub(super) async fn read_lines(mut from: impl AsyncRead + Unpin, mut sink: impl Sink) {
    let mut chunk = vec![0; 16 << 10];
    let mut splitter = Splitter::default();
    loop {
        match from.read(&mut chunk).await {
            Ok(0) => break,
            Ok(count) => {
                let lines = splitter.split(chunk.get(..count).unwrap_or_default());
                if !lines.is_empty() {
                    sink.lines(&lines);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "reading the output of xray failed");
                break;
            }
        }
    }
    if let Some(rest) = splitter.rest() {
        sink.lines(&[rest]);
    }
}

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Default)]
struct Splitter {
    line: Vec<u8>,
    cut: bool,
}

impl Splitter {
    fn split(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = MAX_LINE - self.line.len();
            self.cut |= text.len() > room;
            self.line.extend(text.iter().take(room));
            if whole {
                lines.extend(self.rest());
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.line);
        let cut = std::mem::take(&mut self.cut);
        let mut line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if cut {
            line.push_str(" [cut]");
        }
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_the_bytes_arrive() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.split(b"one\ntw"), ["one"]);
        assert_eq!(splitter.split(b"o\r\n\nthree"), ["two"]);
        assert_eq!(splitter.rest().as_deref(), Some("three"));
        assert_eq!(splitter.rest(), None);
    }

    #[test]
    fn an_endless_line_is_cut_and_says_so() {
        let mut splitter = Splitter::default();
        for _ in 0..10 {
            assert_eq!(splitter.split(&[b'x'; MAX_LINE / 4]), Vec::<String>::new());
        }
        let lines = splitter.split(b"end\nnext\n");
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("x [cut]") && lines[0].len() == MAX_LINE + " [cut]".len());
        assert_eq!(lines[1], "next");
    }
}
