//! What a core prints: to the viewers, to the operator's files, and kept for its last words.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::xray::appender::Appender;
use crate::xray::config::{API_INBOUND, API_RULE_TAG, LogFiles};
use crate::xray::lines::Sink;
use crate::xray::logs::Logs;

/// The longest part of the log that one error repeats.
const ERROR_LOG_BYTES: usize = 4 << 10;
/// How many of our own API connections are remembered, to hide their lines.
const HIDDEN_SESSIONS: usize = 16;

/// Where the lines of one core go.
#[derive(Clone, Debug)]
pub(super) struct Output {
    logs: Arc<Logs>,
    access: Appender,
    error: Appender,
    ours: Ours,
    tail: Tail,
    /// Whether the node's own log repeats every line.
    echo: bool,
}

impl Output {
    pub(super) fn new(
        logs: Arc<Logs>,
        files: &LogFiles,
        socket: &Path,
        tail: Tail,
        echo: bool,
    ) -> Self {
        Self {
            logs,
            access: Appender::new(files.access.clone()),
            error: Appender::new(files.error.clone()),
            ours: Ours::new(socket),
            tail,
            echo,
        }
    }
}

impl Sink for Output {
    fn lines(&mut self, lines: &[String]) {
        let lines: Vec<&String> = lines.iter().filter(|line| !self.ours.owns(line)).collect();
        for line in &lines {
            self.tail.push(line);
            self.logs.push(line);
            if self.echo {
                tracing::info!(line = line.as_str(), "xray");
            }
        }
        self.access
            .append(lines.iter().copied().filter(|line| is_access(line)));
        self.error
            .append(lines.iter().copied().filter(|line| !is_access(line)));
    }
}

/// Access records say `DATE TIME from ADDRESS accepted|rejected ...`.
fn is_access(line: &str) -> bool {
    let mut words = line.split(' ').skip(2);
    words.next() == Some("from") && matches!(words.nth(1), Some("accepted" | "rejected"))
}

/// Recognises the lines that the node's own API connections cause.
///
/// Destinations stand in lines as clients send them, so nobody may be able to hide his lines by a
/// clever destination: texts are compared at their fixed place only.
#[derive(Clone, Debug)]
struct Ours {
    socket: Option<String>,
    connection: String,
    detour: String,
    counter: String,
    sessions: VecDeque<String>,
}

impl Ours {
    fn new(socket: &Path) -> Self {
        Self {
            socket: socket
                .to_str()
                .filter(|path| !path.is_empty())
                .map(str::to_owned),
            connection: format!("{API_INBOUND} "),
            detour: format!("app/dispatcher: Hit route rule: [{API_RULE_TAG}] "),
            counter: format!("app/stats: create new counter inbound>>>{API_INBOUND}>>>"),
            sessions: VecDeque::new(),
        }
    }

    fn owns(&mut self, line: &str) -> bool {
        if is_access(line) {
            // The inbound's tag stands behind the destination, and an API connection has no user. One
            // that came before the core's rules were in force was sent elsewhere, and failed.
            return line.rsplit_once(" [").is_some_and(|(_, tags)| {
                tags.starts_with(&self.connection) && tags.ends_with(']')
            });
        }
        match message(line) {
            Some((Some(session), text)) => self.owns_of_session(session, text),
            Some((None, text)) => {
                text.starts_with(&self.counter)
                    || self
                        .socket
                        .as_ref()
                        .is_some_and(|socket| text.contains(socket.as_str()))
            }
            None => false,
        }
    }

    /// A connection is known as ours by its first line, and then by its number.
    fn owns_of_session(&mut self, session: &str, text: &str) -> bool {
        if self.sessions.iter().any(|ours| ours == session) {
            return true;
        }
        let ours = text.starts_with(&self.detour)
            // An API connection through a door on a unix socket has no address.
            || text == "proxy/dokodemo: processing connection from: 0.0.0.0:0"
            || text == "proxy/dokodemo: received request for 0.0.0.0:0";
        if ours {
            if self.sessions.len() == HIDDEN_SESSIONS {
                self.sessions.pop_front();
            }
            self.sessions.push_back(session.to_owned());
        }
        ours
    }
}

/// Takes `DATE TIME [Info] [1444747722] proxy/...: text` apart: the number of the connection, which
/// lines of the whole process do not have, and the text.
fn message(line: &str) -> Option<(Option<&str>, &str)> {
    let (_, rest) = line.split_once(" [")?;
    let (level, rest) = rest.split_once("] ")?;
    level
        .bytes()
        .all(|byte| byte.is_ascii_alphabetic())
        .then_some(())?;
    let numbered = rest
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "));
    Some(match numbered {
        Some((id, text)) if id.bytes().all(|byte| byte.is_ascii_digit()) => (Some(id), text),
        _ => (None, rest),
    })
}

/// The last lines of one process.
#[derive(Clone, Debug)]
pub(super) struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
    capacity: usize,
}

impl Tail {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            lines: Arc::default(),
            capacity: capacity.max(1),
        }
    }

    /// Adds every line of a text.
    pub(super) fn extend(&self, text: &str) {
        text.lines().for_each(|line| self.push(line));
    }

    fn push(&self, line: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == self.capacity {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// The last lines, the newest of them where they are too many for one error.
    pub(super) fn text(&self) -> String {
        self.newest(ERROR_LOG_BYTES)
    }

    fn newest(&self, bytes: usize) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = bytes;
        let mut newest: Vec<&str> = lines
            .iter()
            .rev()
            .take_while(|line| {
                let fits = line.len() < room;
                room = room.saturating_sub(line.len() + 1);
                fits
            })
            .map(String::as_str)
            .collect();
        newest.reverse();
        newest.join("\n")
    }

    /// Why the process failed, in Xray's own words: the line that it ends with when it can't start,
    /// or the first line of a panic.
    pub(super) fn failure(&self) -> Option<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = lines
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix("Failed to start: "));
        if let Some(reason) = refused {
            return Some(reason.to_owned());
        }
        lines
            .iter()
            .find(|line| line.starts_with("panic: ") || line.starts_with("fatal error: "))
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_records_are_told_from_the_rest() {
        for line in [
            "2026/11/21 11:00:28.115711 from 10.0.0.1:5000 accepted tcp:example.com:443 [in -> out] email: 7",
            "2026/11/21 11:00:28.115711 from tcp:[2001:db8::1]:5000 accepted udp:1.1.1.1:53 [in >> out] email: 7",
            "2026/11/21 11:00:28 from 1.2.3.4:5678 rejected  proxy/vless/encoding: invalid request user id: x",
        ] {
            assert!(is_access(line), "{line}");
        }
        for line in [
            "2026/11/21 11:00:27.541641 [Warning] core: Xray 26.3.27 started",
            "2026/11/21 11:00:28.1 [Info] [14] proxy/http: request from 10.0.0.1 accepted",
            "panic: runtime error",
        ] {
            assert!(!is_access(line), "{line}");
        }
    }

    #[test]
    fn lines_of_the_api_connection_are_hidden_with_all_that_follow_them() {
        let mut ours = Ours::new(Path::new("/run/raynode/core-1-1.sock"));
        for line in [
            "d t [Debug] app/stats: create new counter inbound>>>API_INBOUND>>>traffic>>>uplink",
            "d t [Debug] app/proxyman/inbound: creating unix domain socket worker on /run/raynode/core-1-1.sock,0600",
            "d t [Info] transport/internet/tcp: listening Unix Domain Socket on /run/raynode/core-1-1.sock,0600",
            "d t [Info] app/commander: API server listening on /run/raynode/core-1-1.sock",
            "d t [Debug] [14] proxy/dokodemo: processing connection from: 0.0.0.0:0",
            "d t [Info] [14] proxy/dokodemo: received request for 0.0.0.0:0",
            "d t [Info] [14] app/proxyman: anything about that connection",
            "d t from 0.0.0.0:0 accepted unix:127.0.0.1 [API_INBOUND -> API]",
            "d t from 0.0.0.0:0 accepted unix:127.0.0.1 [API_INBOUND >> direct]",
        ] {
            assert!(ours.owns(line), "{line}");
        }
    }

    #[test]
    fn no_client_can_hide_by_his_destination() {
        let mut ours = Ours::new(Path::new("/run/raynode/core-1-1.sock"));
        for line in [
            "d t [Info] [15] proxy/vless: somebody else",
            "d t from 10.0.0.1:5000 accepted tcp:[API_INBOUND -> API]:443 [in -> out] email: API",
            "d t from 10.0.0.1:5000 accepted tcp:/run/raynode/core-1-1.sock:443 [in -> out] email: 7",
            "d t [Info] [15] app/dispatcher: default route for tcp:raynode-api.API_INBOUND:443",
            "d t [Info] [15] proxy/freedom: opening connection to tcp:/run/raynode/core-1-1.sock:443",
            "d t [Info] [15] proxy/dokodemo: received request for 0.0.0.0:01",
        ] {
            assert!(!ours.owns(line), "{line}");
        }
    }

    #[test]
    fn the_reason_of_a_failure_is_xrays_own() {
        let tail = Tail::new(3);
        for line in [
            "a",
            "b",
            "Failed to start: main: failed > infra/conf: unknown config id: x",
        ] {
            tail.push(line);
        }
        assert_eq!(
            tail.failure().unwrap(),
            "main: failed > infra/conf: unknown config id: x"
        );
        assert_eq!(tail.newest(usize::MAX).lines().count(), 3);
        tail.push("c");
        assert!(
            tail.newest(usize::MAX).starts_with("b\n") && tail.newest(usize::MAX).ends_with("\nc")
        );
    }
}
