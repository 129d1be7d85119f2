//! What can be read of a node. Nothing here waits for a change.

use super::session::Hold;
use super::{BaseInfo, Error, Node, State};
use crate::host::Sample;
use crate::proto::xray::app::stats::command::SysStatsResponse;
use crate::xray::client::{self, Client, Counter};
use crate::xray::config::{API_INBOUND, API_TAG, PLACEHOLDER};
use crate::xray::logs::{Entry, Viewer};

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
        let State { session, serving } = self.state.borrow().clone();
        let core_version = match &serving {
            Some(serving) => serving.version.to_string(),
            None => self
                .launcher
                .version()
                .await
                .map(|version| version.to_string())
                .unwrap_or_default(),
        };
        BaseInfo {
            started: session.is_some() && serving.is_some(),
            core_version,
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
        let counters = match of {
            TrafficOf::Users => client.counters("user>>>", reset).await,
            TrafficOf::Inbounds => client.counters("inbound>>>", reset).await,
            TrafficOf::Outbounds => client.counters("outbound>>>", reset).await,
            TrafficOf::User(email) => both(client, "user", &email, "email", reset).await?,
            TrafficOf::Inbound(tag) => both(client, "inbound", &tag, "tag", reset).await?,
            TrafficOf::Outbound(tag) => both(client, "outbound", &tag, "tag", reset).await?,
        };
        Ok(counters
            .map_err(Error::Read)?
            .iter()
            .filter_map(traffic)
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

/// Both counters of one name, by their full names: looking them up costs nothing, a search among
/// all counters does. What was never counted is not there, which is no error.
async fn both(
    client: &Client,
    kind: &str,
    name: &str,
    what: &'static str,
    reset: bool,
) -> Result<Result<Vec<Counter>, client::Error>, Error> {
    named(name, what)?;
    let mut counters = Vec::with_capacity(2);
    for direction in ["uplink", "downlink"] {
        match client
            .counter(&format!("{kind}>>>{name}>>>traffic>>>{direction}"), reset)
            .await
        {
            Ok(counter) => counters.push(counter),
            Err(client::Error::NotFound(_)) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(counters))
}

/// Reads `user>>>7>>>traffic>>>uplink`. Counters of the node's own doing, and names of another form,
/// are nobody's traffic.
fn traffic(counter: &Counter) -> Option<Traffic> {
    let parts: Vec<&str> = counter.name.split(">>>").collect();
    let [_, name, "traffic", direction] = *parts.as_slice() else {
        return None;
    };
    if name.is_empty() || [API_INBOUND, API_TAG, PLACEHOLDER].contains(&name) {
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

    fn read(name: &str) -> Option<Traffic> {
        let name = name.to_owned();
        traffic(&Counter { name, value: 5 })
    }

    #[test]
    fn a_counter_is_read_by_its_name() {
        let traffic = read("user>>>7>>>traffic>>>uplink").unwrap();
        assert_eq!(
            (traffic.name.as_str(), traffic.direction, traffic.bytes),
            ("7", Direction::Up, 5)
        );
        let traffic = read("outbound>>>direct>>>traffic>>>downlink").unwrap();
        assert_eq!(
            (traffic.name.as_str(), traffic.direction),
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
            "",
        ] {
            assert_eq!(read(name), None, "{name}");
        }
    }

    #[test]
    fn what_the_node_adds_is_nobodys_traffic() {
        for name in [
            "inbound>>>API_INBOUND",
            "outbound>>>API",
            "user>>>raynode-placeholder",
        ] {
            assert_eq!(read(&format!("{name}>>>traffic>>>uplink")), None, "{name}");
        }
    }
}
