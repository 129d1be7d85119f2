//! What can be read of a node. Nothing here waits for a change.

use std::time::Duration;

use super::session::Hold;
use super::{BaseInfo, Error, Node, State};
use crate::host::Sample;
use crate::proto::xray::app::stats::command::SysStatsResponse;
use crate::xray::client::{self, Client, Counter};
use crate::xray::config::{API_INBOUND, API_TAG, PLACEHOLDER};
use crate::xray::logs::{Entry, Viewer};

/// How long a binary that nobody has asked yet may take to say its version.
const VERSION_PATIENCE: Duration = Duration::from_millis(500);

/// What traffic is counted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrafficOf {
    /// All users.
    Users,
    /// One user, by e-mail.
    User(String),
    /// All inbounds.
    Inbounds,
    /// One inbound, by tag.
    Inbound(String),
    /// All outbounds.
    Outbounds,
    /// One outbound, by tag.
    Outbound(String),
}

/// Which way the bytes went, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// E-mail or tag.
    pub name: String,
    /// Which way.
    pub direction: Direction,
    /// Since the core started, or since the last read that reset it.
    pub bytes: i64,
}

/// What the core measured of one outbound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    /// The outbound's tag.
    pub tag: String,
    /// Whether the last probe came back.
    pub alive: bool,
    /// Round trip of the probe.
    pub delay_ms: i64,
    /// When a probe last came back, Unix seconds.
    pub last_seen: i64,
    /// When a probe was last sent, Unix seconds.
    pub last_try: i64,
}

/// A panel's view of the log.
#[derive(Debug)]
pub struct LogStream {
    viewer: Viewer,
    _hold: Option<Hold>,
}

impl LogStream {
    /// The next line; cancel-safe. `None` when the node ends.
    pub async fn next(&mut self) -> Option<String> {
        Some(match self.viewer.next().await? {
            Entry::Line(line) => line.to_string(),
            Entry::Lost(count) => {
                format!("[raynode] {count} lines are missing here: this viewer reads too slowly")
            }
        })
    }
}

impl Node {
    /// Whether the node serves, and which core. Always answers.
    pub async fn base_info(&self) -> BaseInfo {
        let State {
            session, serving, ..
        } = self.state.borrow().clone();
        let core_version = match &serving {
            Some(serving) => serving.version.to_string(),
            None => self.version_of_the_binary().await,
        };
        BaseInfo {
            started: session.is_some() && serving.is_some(),
            core_version,
        }
    }

    /// A binary that hangs must not hold anybody up.
    async fn version_of_the_binary(&self) -> String {
        if let Some(known) = self.launcher.known_version() {
            return known.to_string();
        }
        let asked = tokio::time::timeout(VERSION_PATIENCE, self.launcher.version()).await;
        match asked {
            Ok(Ok(version)) => version.to_string(),
            _ => String::new(),
        }
    }

    /// The machine's load, and how long the core has been serving, in seconds.
    ///
    /// # Errors
    /// When no panel has control or its core does not serve.
    pub fn system_stats(&self) -> Result<(Sample, u64), Error> {
        let serving = self.serving()?;
        Ok((self.host.sample(), serving.ready.elapsed().as_secs()))
    }

    /// The core's own statistics; panels take it as the node's pulse.
    ///
    /// # Errors
    /// When the core does not answer.
    pub async fn backend_stats(&self) -> Result<SysStatsResponse, Error> {
        self.serving()?
            .client
            .sys_stats()
            .await
            .map_err(Error::SysStats)
    }

    /// Traffic counters; with `reset` they start at zero again.
    ///
    /// # Errors
    /// When a single one is asked for without a name, or the core does not answer.
    pub async fn traffic(&self, of: TrafficOf, reset: bool) -> Result<Vec<Traffic>, Error> {
        let client = &self.serving()?.client;
        let (kind, name) = match of {
            TrafficOf::Users => (Kind::User, None),
            TrafficOf::Inbounds => (Kind::Inbound, None),
            TrafficOf::Outbounds => (Kind::Outbound, None),
            TrafficOf::User(email) => (Kind::User, Some(email)),
            TrafficOf::Inbound(tag) => (Kind::Inbound, Some(tag)),
            TrafficOf::Outbound(tag) => (Kind::Outbound, Some(tag)),
        };
        let counters = match name {
            None => client.counters(&format!("{}>>>", kind.word()), reset).await,
            Some(name) => both(client, kind, &name, reset).await?,
        };
        let counters = counters.map_err(Error::Read)?;
        Ok(counters
            .iter()
            .filter_map(|counter| traffic(kind, counter))
            .collect())
    }

    /// What the core measured of its outbounds, by tag; of all of them, or of the one named.
    ///
    /// # Errors
    /// When the core does not serve, measures nothing, or does not answer. Without a session there
    /// is nothing to tell, which is no error.
    pub async fn latencies(&self, name: &str) -> Result<Vec<Latency>, Error> {
        let serving = match self.serving() {
            Ok(serving) => serving,
            Err(Error::NotInitialized) => return Ok(Vec::new()),
            Err(_) => return Err(Error::NoLatencies),
        };
        if !serving.skeleton.has_observatory() {
            return Err(Error::NoObservatory);
        }
        let measured = serving
            .client
            .outbound_status()
            .await
            .map_err(Error::Read)?;
        let mut latencies: Vec<Latency> = measured
            .into_iter()
            .filter(|status| name.is_empty() || status.outbound_tag == name)
            .filter(|status| !serving.skeleton.is_silent_outbound(&status.outbound_tag))
            .map(|status| Latency {
                tag: status.outbound_tag,
                alive: status.alive,
                delay_ms: status.delay,
                last_seen: status.last_seen_time,
                last_try: status.last_try_time,
            })
            .collect();
        latencies.sort_by(|a, b| a.tag.cmp(&b.tag));
        Ok(latencies)
    }

    /// From how many addresses a user is connected.
    ///
    /// # Errors
    /// [`Error::UserNotFound`] for a user who has not connected since the core started.
    pub async fn online(&self, email: &str) -> Result<i64, Error> {
        let serving = self.serving()?;
        named(email, "email")?;
        serving
            .client
            .online_count(email)
            .await
            .map_err(|error| not_online(email, error))
    }

    /// The addresses that a user is connected from, with the Unix second of his latest connection.
    ///
    /// # Errors
    /// As for the count.
    pub async fn online_addresses(&self, email: &str) -> Result<Vec<(String, i64)>, Error> {
        let serving = self.serving()?;
        named(email, "email")?;
        serving
            .client
            .online_addresses(email)
            .await
            .map_err(|error| not_online(email, error))
    }

    /// The core's log: what is remembered, then every line as it comes, also of later cores.
    ///
    /// # Errors
    /// When no panel has control.
    pub fn logs(&self) -> Result<LogStream, Error> {
        let session = self.session().ok_or(Error::NotInitialized)?;
        let viewer = self.launcher.logs.viewer();
        Ok(LogStream {
            viewer,
            _hold: Some(session.hold()),
        })
    }
}

fn named(name: &str, what: &'static str) -> Result<(), Error> {
    if name.is_empty() {
        Err(Error::NameRequired(what))
    } else {
        Ok(())
    }
}

fn not_online(email: &str, error: client::Error) -> Error {
    match error {
        client::Error::NotFound(_) => Error::UserNotFound(email.to_owned()),
        error => Error::Read(error),
    }
}

/// The first part of a counter's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    User,
    Inbound,
    Outbound,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    /// What a caller calls the name.
    fn name(self) -> &'static str {
        match self {
            Self::User => "email",
            Self::Inbound | Self::Outbound => "tag",
        }
    }

    /// Whether the node added this to the core.
    fn is_ours(self, name: &str) -> bool {
        match self {
            Self::User => name == PLACEHOLDER,
            Self::Inbound => name == API_INBOUND,
            Self::Outbound => name == API_TAG,
        }
    }
}

/// Both counters of one name, by their full names: looking them up costs nothing, a search among
/// all counters does. What was never counted is not there, which is no error.
async fn both(
    client: &Client,
    kind: Kind,
    name: &str,
    reset: bool,
) -> Result<Result<Vec<Counter>, client::Error>, Error> {
    named(name, kind.name())?;
    let mut counters = Vec::with_capacity(2);
    for direction in ["uplink", "downlink"] {
        let name = format!("{}>>>{name}>>>traffic>>>{direction}", kind.word());
        match client.counter(&name, reset).await {
            Ok(counter) => counters.push(counter),
            Err(client::Error::NotFound(_)) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(counters))
}

/// Reads `user>>>7>>>traffic>>>uplink`. Counters of the node's own doing, of another kind (Xray
/// looks for a pattern anywhere in a name) and of another form are passed over.
fn traffic(kind: Kind, counter: &Counter) -> Option<Traffic> {
    let parts: Vec<&str> = counter.name.split(">>>").collect();
    let [word, name, "traffic", direction] = *parts.as_slice() else {
        return None;
    };
    if word != kind.word() || name.is_empty() || kind.is_ours(name) {
        return None;
    }
    let direction = match direction {
        "uplink" => Direction::Up,
        "downlink" => Direction::Down,
        _ => return None,
    };
    Some(Traffic {
        name: name.to_owned(),
        direction,
        bytes: counter.value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, name: &str) -> Option<Traffic> {
        let name = name.to_owned();
        traffic(kind, &Counter { name, value: 5 })
    }

    #[test]
    fn a_counter_is_read_by_its_name() {
        let traffic = read(Kind::User, "user>>>7>>>traffic>>>uplink").unwrap();
        assert_eq!(
            (&*traffic.name, traffic.direction, traffic.bytes),
            ("7", Direction::Up, 5)
        );
        let traffic = read(Kind::Outbound, "outbound>>>direct>>>traffic>>>downlink").unwrap();
        assert_eq!(
            (&*traffic.name, traffic.direction),
            ("direct", Direction::Down)
        );
    }

    #[test]
    fn other_names_are_passed_over() {
        for name in [
            "user>>>7>>>online",
            "user>>>>>>traffic>>>uplink",
            "user>>>7>>>traffic>>>sideways",
            "user>>>a>>>b>>>traffic>>>uplink",
            "inbound>>>my-user>>>traffic>>>uplink",
            "",
        ] {
            assert_eq!(read(Kind::User, name), None, "{name}");
        }
    }

    #[test]
    fn what_the_node_adds_is_nobodys_traffic() {
        let ours = [
            (Kind::Inbound, "inbound>>>API_INBOUND"),
            (Kind::Outbound, "outbound>>>API"),
            (Kind::User, "user>>>raynode-placeholder"),
        ];
        for (kind, name) in ours {
            assert_eq!(
                read(kind, &format!("{name}>>>traffic>>>uplink")),
                None,
                "{name}"
            );
        }
        assert!(
            read(Kind::User, "user>>>API>>>traffic>>>uplink").is_some(),
            "a user of that name"
        );
    }

    #[tokio::test]
    async fn a_slow_viewer_reads_how_much_is_missing() {
        let logs = std::sync::Arc::new(crate::xray::logs::Logs::new(1));
        let mut stream = LogStream {
            viewer: logs.viewer(),
            _hold: None,
        };
        for line in ["a", "b", "c"] {
            logs.push(line);
        }
        let told = stream.next().await.unwrap();
        assert!(told.contains("2 lines are missing here"), "{told}");
        assert_eq!(stream.next().await.unwrap(), "c");
    }
}
