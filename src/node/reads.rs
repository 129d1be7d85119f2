//! What can be read of a node. Nothing here waits for a change.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::session::Hold;
use super::{BaseInfo, Error, Node, State};
use crate::host::Sample;
use crate::proto::xray::app::stats::command::SysStatsResponse;
use crate::usage::book::{Entry, Epoch, Of};
use crate::usage::counter::Kind;
use crate::usage::harvest::{self, Source, TELLS_USERS_STATS};
use crate::usage::ledger::{Batch, Report};
use crate::usage::{Address, OnlineUser};
use crate::xray::handover::{Tally, sockets};
use crate::xray::logs::{self, Viewer};
use crate::xray::version::Version;
use crate::xray::{client, core};

/// How long a binary that nobody has asked yet may take to say its version.
const VERSION_PATIENCE: Duration = Duration::from_millis(500);
/// How long a core may keep somebody waiting who wants to know what was used.
const SWEEP_PATIENCE: Duration = Duration::from_secs(5);

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

/// A core that is alive.
#[derive(Clone, Debug)]
pub struct CoreInfo {
    /// Its own number.
    pub id: Epoch,
    /// The number of its process.
    pub pid: i32,
    /// Its version.
    pub version: Version,
    /// New connections go to it; otherwise it drains.
    pub serves: bool,
    /// Since when it does that.
    pub since: Instant,
    /// Bytes of memory that it has; 0 where nobody knows.
    pub memory: u64,
    /// Files and connections that it has open; 0 where nobody may look.
    pub open_files: u64,
    /// Connections that it keeps, at the last look, while it drains.
    pub connections: u64,
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
            logs::Entry::Line(line) => line.text.to_string(),
            logs::Entry::Lost(count) => {
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
            Some(serving) => serving.source.version.to_string(),
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

    /// Every core that is alive, the one that serves first, and how often one made way. Needs no session.
    #[must_use]
    pub fn cores(&self) -> (Vec<CoreInfo>, Tally) {
        let state = self.state.borrow().clone();
        let info = |source: &Source, pid, since| CoreInfo {
            id: source.epoch,
            pid,
            version: source.version,
            serves: true,
            since,
            memory: core::memory_of(pid).unwrap_or_default(),
            open_files: sockets::open_files(pid).map_or(0, |count| count as u64),
            connections: 0,
        };
        let serving = state.serving.iter();
        let serving = serving.map(|core| info(&core.source, core.pid, core.ready));
        let draining = state.draining.iter().map(|core| CoreInfo {
            serves: false,
            connections: core.connections.load(Ordering::Relaxed) as u64,
            ..info(&core.source, core.pid, core.since)
        });
        (serving.chain(draining).collect(), state.tally)
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
            .source
            .client
            .sys_stats()
            .await
            .map_err(Error::SysStats)
    }

    /// What was used and is not reported yet; what is returned here is in nobody else's report, unless its
    /// ticket says that it did not arrive. It does not need a core: what an earlier one counted is there.
    ///
    /// # Errors
    /// When a single one is asked for without a name, no panel has control, or the disk refuses.
    pub async fn report(&self, of: Of) -> Result<Report, Error> {
        let of = named_one(of)?;
        self.session().ok_or(Error::NotInitialized)?;
        if self.serving().is_ok() {
            self.read_counters(&of).await;
        }
        Ok(self.harvester.ledger().report(of).await?)
    }

    /// What the core has counted since it started, whether it was reported or not; with what those counted
    /// that still drain.
    ///
    /// # Errors
    /// When a single one is asked for without a name, or no core serves.
    pub async fn counted(&self, of: Of) -> Result<Vec<Entry>, Error> {
        let of = named_one(of)?;
        self.serving()?;
        self.read_counters(&of).await;
        let epochs = self.alive().into_iter().map(|core| core.epoch).collect();
        Ok(self.harvester.ledger().of_cores(epochs, of).await?)
    }

    /// The core that serves, and those that drain.
    pub(super) fn alive(&self) -> Vec<Source> {
        let state = self.state.borrow();
        let serving = state.serving.iter().map(|serving| serving.source.clone());
        let draining = state.draining.iter().map(|core| core.source.clone());
        serving.chain(draining).collect()
    }

    /// A core that does not answer keeps what it has counted; what is known of it is told all the same.
    pub(super) async fn read_counters(&self, of: &Of) {
        let harvester = &self.harvester;
        let read = |core: Source| async move {
            match of {
                Of::All(_) => harvester.sweep(&core).await,
                Of::One(kind, name) => harvester.look_at(&core, *kind, name).await,
            }
        };
        let reads = futures_util::future::join_all(self.alive().into_iter().map(read));
        let Ok(reads) = tokio::time::timeout(SWEEP_PATIENCE, reads).await else {
            tracing::warn!("a core is slow to tell, usage is told as it was read last");
            return;
        };
        for error in reads.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "usage is told as it was read last");
        }
    }

    /// The batch of usage behind `cursor`, for panels that send receipts; `None` where nothing is.
    ///
    /// # Errors
    /// When the cursor is none, the disk refuses, or too many batches wait for their receipt.
    pub async fn collect(&self, cursor: String, limit: usize) -> Result<Option<Batch>, Error> {
        let ledger = self.harvester.ledger();
        // The core is not asked for what was handed out before.
        if let Some(batch) = ledger.batch(cursor.clone(), 0).await? {
            return Ok(Some(batch));
        }
        if self.serving().is_ok() {
            self.read_counters(&Of::All(Kind::User)).await;
        }
        Ok(ledger.batch(cursor, limit).await?)
    }

    /// These batches have arrived; returns how many of them had no receipt before.
    ///
    /// # Errors
    /// When one is no number of a batch, or the disk refuses.
    pub async fn acknowledge(&self, batches: Vec<String>) -> Result<usize, Error> {
        Ok(self.harvester.ledger().receipts(batches).await?)
    }

    /// Everybody who is online, by the last harvest.
    ///
    /// # Errors
    /// When no core serves, or it is too old to tell.
    pub async fn online_users(&self) -> Result<Vec<OnlineUser>, Error> {
        let serving = self.serving()?;
        let source = &serving.source;
        if source.version < TELLS_USERS_STATS {
            return Err(Error::TooOld {
                call: "ListOnlineUsers",
                needs: TELLS_USERS_STATS,
                runs: source.version,
            });
        }
        self.online_at(source).await
    }

    /// Everybody who is online at this core, or at one that drains.
    pub(super) async fn online_at(&self, source: &Source) -> Result<Vec<OnlineUser>, Error> {
        let mut all = self
            .harvester
            .online(source)
            .await
            .map_err(|error| match error {
                harvest::Error::Core(error) => Error::Read(error),
                harvest::Error::Ledger(error) => Error::Usage(error),
            })?;
        for core in self.draining() {
            // Whom an older one does not tell of is told of by his next connection.
            for user in self.harvester.online(&core).await.unwrap_or_default() {
                match all.iter_mut().find(|known| known.email == user.email) {
                    Some(known) => join(&mut known.addresses, user.addresses),
                    None => all.push(user),
                }
            }
        }
        all.sort_by(|a, b| a.email.cmp(&b.email));
        Ok(all)
    }

    fn draining(&self) -> Vec<Source> {
        let state = self.state.borrow();
        let draining = state.draining.iter();
        draining.map(|core| core.source.clone()).collect()
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
            .source
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
        let source = &serving.source;
        let viewed = self.harvester.addresses(source.epoch, email).await;
        if viewed.is_none() && self.draining().is_empty() {
            // A number is less than all the addresses.
            let count = source.client.online_count(email).await;
            return count.map_err(|error| not_online(email, error));
        }
        let addresses = self.addresses(email).await?;
        Ok(i64::try_from(addresses.len()).unwrap_or(i64::MAX))
    }

    /// The addresses that a user is connected from, with the Unix second of his latest connection.
    ///
    /// # Errors
    /// As for the count.
    pub async fn online_addresses(&self, email: &str) -> Result<Vec<(String, i64)>, Error> {
        self.serving()?;
        named(email, "email")?;
        let addresses = self.addresses(email).await?;
        Ok(addresses.into_iter().collect())
    }

    /// Those at any core that is alive, one that knows him being enough.
    pub(super) async fn addresses(&self, email: &str) -> Result<BTreeMap<String, i64>, Error> {
        let mut all = BTreeMap::new();
        let mut found = Err(Error::CoreNotStarted);
        for (place, core) in self.alive().iter().enumerate() {
            let addresses = match self.harvester.addresses(core.epoch, email).await {
                Some(addresses) => {
                    let addresses = addresses.into_iter();
                    Ok(addresses
                        .map(|address| (address.ip, address.latest))
                        .collect())
                }
                None => core.client.online_addresses(email).await,
            };
            match addresses {
                Ok(addresses) => {
                    for (ip, latest) in addresses {
                        let known = all.entry(ip).or_insert(latest);
                        *known = latest.max(*known);
                    }
                    found = Ok(());
                }
                Err(error) if place == 0 => found = Err(not_online(email, error)),
                Err(_) => {}
            }
        }
        found.map(|()| all)
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

/// Adds addresses to others; whoever is at both cores is there since he was at the first.
fn join(known: &mut Vec<Address>, more: Vec<Address>) {
    for address in more {
        match known.iter_mut().find(|one| one.ip == address.ip) {
            Some(one) => {
                one.latest = one.latest.max(address.latest);
                one.since = one.since.min(address.since);
            }
            None => known.push(address),
        }
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

fn named_one(of: Of) -> Result<Of, Error> {
    if let Of::One(kind, name) = &of {
        named(name, kind.name())?;
    }
    Ok(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_viewer_reads_how_much_is_missing() {
        let logs = std::sync::Arc::new(logs::Logs::new(1));
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
