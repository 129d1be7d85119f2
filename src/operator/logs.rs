//! Which lines of the log somebody wants to see.
//!
//! Two kinds of lines come from Xray: `date time [Level] [connection] where: text`, and those of its access log,
//! `date time from ADDRESS accepted DESTINATION [inbound -> outbound] email: USER`.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio_stream::Stream;
use tonic::Status;

use crate::proto::raynode::v1::{LogLine, ReadLogsRequest};
use crate::xray::logs::{Entry, Line, Viewer};

/// How bad a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl Level {
    fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warning" | "warn" => Some(Self::Warning),
            "error" => Some(Self::Error),
            _ => None,
        }
    }

    fn of(line: &str) -> Self {
        let mut words = line.split(' ').take(3);
        let bracketed = words.find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        bracketed.and_then(Self::named).unwrap_or(Self::Info)
    }
}

/// What a line has to be like.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    since: SystemTime,
    user: String,
    inbound: String,
    level: Level,
    text: String,
}

impl Filter {
    /// # Errors
    /// When there is no such level.
    pub(super) fn new(request: &ReadLogsRequest) -> Result<Self, String> {
        let level = match request.level.as_str() {
            "" => Level::Debug,
            name => Level::named(name)
                .ok_or_else(|| format!("{name:?} is not debug, info, warning or error"))?,
        };
        let since = match request.since_seconds {
            0 => None,
            seconds => SystemTime::now().checked_sub(Duration::from_secs(seconds)),
        };
        Ok(Self {
            since: since.unwrap_or(SystemTime::UNIX_EPOCH),
            user: request.user.clone(),
            inbound: request.inbound.clone(),
            level,
            text: request.text.clone(),
        })
    }

    fn wants(&self, line: &Line) -> bool {
        let text = &*line.text;
        line.at >= self.since
            && text.contains(&self.text)
            && (self.user.is_empty() || is_of_user(text, &self.user))
            && (self.inbound.is_empty() || is_through(text, &self.inbound))
            && Level::of(text) >= self.level
    }
}

fn is_of_user(line: &str, user: &str) -> bool {
    let named = line.rsplit_once("email: ").map(|(_, user)| user.trim_end());
    named.is_some_and(|named| named.eq_ignore_ascii_case(user))
}

/// Xray writes `->` where a rule chose the outbound and `>>` where none did.
fn is_through(line: &str, inbound: &str) -> bool {
    [" -> ", " >> ", "]"]
        .iter()
        .any(|end| line.contains(&format!("[{inbound}{end}")))
}

/// What is remembered, then, where it is to be followed, what comes.
pub(super) fn read(
    mut viewer: Viewer,
    filter: Filter,
    request: &ReadLogsRequest,
) -> impl Stream<Item = Result<LogLine, Status>> + Send + use<> {
    let tail = match usize::try_from(request.tail) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(tail) => tail,
    };
    let mut remembered = VecDeque::new();
    while let Some(entry) = viewer.try_next() {
        remembered.extend(wanted(entry, &filter));
        if remembered.len() > tail {
            remembered.pop_front();
        }
    }
    let follow = request.follow;
    let coming =
        futures_util::stream::unfold((viewer, filter), move |(mut viewer, filter)| async move {
            if !follow {
                return None;
            }
            loop {
                let entry = viewer.next().await?;
                if let Some(line) = wanted(entry, &filter) {
                    return Some((line, (viewer, filter)));
                }
            }
        });
    tokio_stream::iter(remembered).chain(coming).map(Ok)
}

fn wanted(entry: Entry, filter: &Filter) -> Option<LogLine> {
    match entry {
        Entry::Line(line) => filter.wants(&line).then(|| LogLine {
            at: unix_millis(line.at),
            text: line.text.to_string(),
            lost: 0,
        }),
        Entry::Lost(lost) => Some(LogLine {
            lost,
            ..LogLine::default()
        }),
    }
}

fn unix_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESS: &str = "2026/11/21 11:00:28.115711 from 10.0.0.1:5000 accepted tcp:example.com:443 [in -> out] email: 7.anna";
    const WARNING: &str = "2026/11/21 11:00:28.115711 [Warning] [123] app/dispatcher: default route for tcp:a.example:80";

    fn wants(change: impl FnOnce(&mut ReadLogsRequest), line: &str) -> bool {
        let mut request = ReadLogsRequest::default();
        change(&mut request);
        let line = Line {
            at: SystemTime::now(),
            text: line.into(),
        };
        Filter::new(&request).unwrap().wants(&line)
    }

    #[test]
    fn lines_are_found_by_user_inbound_level_and_text() {
        for (line, access) in [(ACCESS, true), (WARNING, false)] {
            assert!(wants(|_| {}, line));
            assert_eq!(wants(|of| of.user = "7.Anna".into(), line), access);
            assert!(!wants(|of| of.user = "anna".into(), line));
            assert_eq!(wants(|of| of.inbound = "in".into(), line), access);
            assert!(!wants(|of| of.inbound = "out".into(), line));
            assert_eq!(wants(|of| of.level = "warning".into(), line), !access);
            assert_eq!(wants(|of| of.text = "default route".into(), line), !access);
            assert!(wants(|of| of.since_seconds = 60, line));
        }
        let unknown = ReadLogsRequest {
            level: "loud".to_owned(),
            ..ReadLogsRequest::default()
        };
        assert!(Filter::new(&unknown).unwrap_err().contains("loud"));
    }

    #[tokio::test]
    async fn the_last_lines_of_what_is_remembered_and_then_no_more() {
        let logs = std::sync::Arc::new(crate::xray::logs::Logs::new(10));
        for line in ["one", "two", "three"] {
            logs.push(line);
        }
        let request = ReadLogsRequest {
            tail: 2,
            ..ReadLogsRequest::default()
        };
        let filter = Filter::new(&request).unwrap();
        let lines: Vec<_> = read(logs.viewer(), filter, &request).collect().await;
        let texts: Vec<String> = lines.into_iter().map(|line| line.unwrap().text).collect();
        assert_eq!(texts, ["two", "three"]);
    }
}
