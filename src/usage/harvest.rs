//! Reads the core's counters into the ledger, and who is online.
//!
//! The counters are never reset, so a reading that gets lost costs nothing. Two kinds of reading:
//!
//! * a *sweep* has every counter, by one call that looks at all of them;
//! * a *glance* has those who are online, those who have just left, and the inbounds and outbounds: from
//!   Xray 26.4.13 on by one call for everybody, from 26.1.13 on by the names of those who are online and a
//!   look at each one's counters.
//!
//! A glance costs as much as there are people online, a sweep as much as ever connected. So there is a
//! glance every interval and a sweep now and then; where people use something whom no glance sees (the
//! core lists nobody who comes from 127.0.0.1), sweeps come as often as they may cost.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::Mutex;

use super::OnlineUser;
use super::book::Epoch;
use super::counter::{Kind, Reading, names};
use super::ledger::{self, Ledger, Readings};
use super::online::{Address, Online};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{Reading as Read, Trouble};
use crate::xray::client::{self, Client, Counter};
use crate::xray::version::Version;

/// A sweep comes at the latest after so long.
const SWEEP: Duration = Duration::from_secs(30);
/// For each second of reading there are so many without.
const SHARE: u32 = 50;
/// Of so many readings the cost is remembered.
const COSTS: usize = 5;
/// How long a core may take to be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a core that is to be stopped may take: somebody waits for it.
const LAST: Duration = Duration::from_secs(2);
/// How many counters are asked for at once.
const IN_FLIGHT: usize = 32;
/// So many single counters are looked at before a sweep is the better way.
const SINGLES: usize = 2000;
/// So many inbounds and outbounds are looked at one by one.
const TAGS: usize = 64;
/// What one look at a counter costs, with the answer.
const LOOK: Duration = Duration::from_micros(15);
/// Looks that cost no more than this are never replaced by a sweep.
const CHEAP: Duration = Duration::from_millis(2);
/// The first version that names everybody who is online.
const NAMES_WHO_IS_ONLINE: Version = Version::new(26, 1, 13);
/// The first version that has everybody who is online, with addresses and traffic, in one call.
pub const TELLS_USERS_STATS: Version = Version::new(26, 4, 13);
/// A view of who is online is good for so long at least.
const FRESH: Duration = Duration::from_secs(5);
/// How many are online is told for so long after a glance; glances that are dear come once in half a minute.
const STALE: Duration = Duration::from_secs(90);

/// Why there was no harvest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The core does not tell.
    #[error(transparent)]
    Core(#[from] client::Error),
    /// The ledger does not take it.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

impl Error {
    fn trouble(&self) -> Trouble {
        match self {
            Self::Core(_) => Trouble::Core,
            Self::Ledger(_) => Trouble::Ledger,
        }
    }
}

/// A core that can be read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its lifetime.
    pub epoch: Epoch,
    /// Its API.
    pub client: Client,
    /// Its version.
    pub version: Version,
}

/// Reads the cores that are alive.
#[derive(Debug)]
pub struct Harvester {
    ledger: Ledger,
    interval: Duration,
    cores: std::sync::Mutex<HashMap<Epoch, Arc<Watched>>>,
    metrics: Arc<Metrics>,
}

/// A core that is read, one reading after the other: readings that overtake each other would be
/// differences that never were.
#[derive(Debug, Default)]
struct Watched {
    turn: Mutex<Turn>,
    online: ArcSwapOption<Online>,
    /// Who was online at the last glance.
    there: ArcSwapOption<There>,
    /// Since when it is asked and does not tell.
    asked: ArcSwapOption<Instant>,
}

/// Who was online at a moment.
#[derive(Debug)]
struct There {
    names: HashSet<String>,
    at: Instant,
}

impl Watched {
    fn is_asked(&self, now: Instant) {
        if self.asked.load().is_none() {
            self.asked.store(Some(Arc::new(now)));
        }
    }

    /// What the ledger has against it is nothing that the core could mend.
    fn has_told(&self, trouble: Option<&Error>) {
        if !matches!(trouble, Some(Error::Core(_))) {
            self.asked.store(None);
        }
    }

    fn has_seen(&self, name: &str) -> bool {
        let there = self.there.load();
        there
            .as_ref()
            .is_some_and(|there| there.names.contains(name))
    }
}

/// What is known of a core from its last readings.
#[derive(Debug, Default)]
struct Turn {
    /// When the last sweep began that the ledger has.
    swept: Option<Instant>,
    /// What the last sweeps and glances took of the core's time.
    sweeps: Costs,
    glances: Costs,
    /// Inbounds and outbounds that have counters.
    tags: Vec<(Kind, String)>,
    /// The last sweep found bytes of somebody whom no glance had seen.
    hidden: bool,
    /// The core does not tell who is online.
    blind: bool,
}

/// How long the last readings took. One that was held up says nothing about what the next one costs.
#[derive(Debug, Default)]
struct Costs(VecDeque<Duration>);

impl Costs {
    fn note(&mut self, cost: Duration) {
        if self.0.len() == COSTS {
            self.0.pop_front();
        }
        self.0.push_back(cost);
    }

    fn usual(&self) -> Duration {
        let mut costs: Vec<Duration> = self.0.iter().copied().collect();
        costs.sort();
        costs.get(costs.len() / 2).copied().unwrap_or_default()
    }

    /// How long it has to be between two of them.
    fn pause(&self) -> Duration {
        self.usual().saturating_mul(SHARE).min(SWEEP)
    }
}

impl Turn {
    fn wants_sweep(&self, now: Instant, glance: Glance) -> bool {
        let Some(began) = self.swept else {
            return true;
        };
        let due = if self.hidden || glance != Glance::Done {
            self.sweeps.pause()
        } else {
            SWEEP
        };
        now.saturating_duration_since(began) >= due
    }
}

impl Harvester {
    /// A harvester that reads every `interval`.
    #[must_use]
    pub fn new(ledger: Ledger, interval: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            ledger,
            interval,
            cores: std::sync::Mutex::default(),
            metrics,
        }
    }

    /// Only these cores are alive: what is known of others beside their bytes is forgotten.
    pub fn only(&self, alive: Vec<Epoch>) {
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.retain(|epoch, _| alive.contains(epoch));
        self.ledger.only_epochs(alive);
    }

    fn watched(&self, core: Epoch) -> Arc<Watched> {
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cores.entry(core).or_default())
    }

    /// Where the bytes go.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// One harvest, and how long the next one can wait: the interval, or longer where they are dear.
    ///
    /// # Errors
    /// When the core or the ledger does not answer.
    pub async fn harvest(&self, core: &Source) -> Result<Duration, Error> {
        let watched = self.watched(core.epoch);
        let mut turn = watched.turn.lock().await;
        let began = Instant::now();
        watched.is_asked(began);
        let harvested = self.harvest_in(&mut turn, core, &watched, began).await;
        watched.has_told(harvested.as_ref().err());
        let read = harvested.as_ref().map(|(_, read)| *read);
        self.metrics
            .harvested(read.map_err(Error::trouble), began.elapsed());
        harvested.map(|(wait, _)| wait)
    }

    async fn harvest_in(
        &self,
        turn: &mut Turn,
        core: &Source,
        watched: &Watched,
        began: Instant,
    ) -> Result<(Duration, Read), Error> {
        let mut readings = Vec::new();
        let glance = glance(core, watched, turn, &mut readings).await?;
        if glance == Glance::Done {
            turn.glances.note(began.elapsed());
        }
        let mut sweep = None;
        if turn.wants_sweep(began, glance) {
            sweep = Some(Instant::now());
            readings.push(read_all(core, turn, PATIENCE).await?);
        }
        let moved = self.ledger.count(core.epoch, readings).await?;
        if sweep.is_some() {
            turn.swept = sweep;
            turn.hidden = moved.iter().any(|name| !watched.has_seen(name));
        }
        let dear = match glance {
            Glance::Done => turn.glances.pause(),
            Glance::Dear | Glance::Blind => turn.sweeps.pause(),
        };
        let read = sweep.map_or(Read::Glance, |_| Read::Sweep);
        Ok((self.interval.max(dear), read))
    }

    /// Reads everything now, unless somebody else has begun to since this was called.
    ///
    /// # Errors
    /// When the core or the ledger does not answer.
    pub async fn sweep(&self, core: &Source) -> Result<(), Error> {
        self.sweep_within(core, PATIENCE).await
    }

    /// Reads what one user, inbound or outbound has now.
    ///
    /// # Errors
    /// When the core or the ledger does not answer.
    pub async fn look_at(&self, core: &Source, kind: Kind, name: &str) -> Result<(), Error> {
        let watched = self.watched(core.epoch);
        let _turn = watched.turn.lock().await;
        let counters = look(&core.client, &[(kind, name.to_owned())]).await?;
        let readings = vec![Readings::Some(counters)];
        self.ledger.count(core.epoch, readings).await?;
        Ok(())
    }

    /// The last reading of a core before it is stopped. What it counts from here to its end nobody sees.
    pub async fn last(&self, core: &Source) {
        match tokio::time::timeout(LAST, self.sweep_within(core, LAST)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "what the core counted last was not read before its end");
            }
            Err(_) => {
                self.metrics.harvested(Err(Trouble::Core), LAST);
                tracing::warn!("the core did not tell in time what it counted last before its end");
            }
        }
    }

    /// The addresses of a user by the last glance, where that is recent: none for one who is offline, `None`
    /// where nobody knows.
    pub async fn addresses(&self, epoch: Epoch, email: &str) -> Option<Vec<Address>> {
        let online = self.recent(epoch)?;
        if let Some(addresses) = online.addresses(email) {
            return Some(addresses.to_vec());
        }
        // One who never connected is no user to the core, which is for the core to say.
        let known = self.ledger.knows_user(epoch, email.to_owned()).await;
        known.then(Vec::new)
    }

    /// Everybody who is online, by the last glance or by one that is made now.
    ///
    /// # Errors
    /// When the core or the ledger does not answer.
    pub async fn online(&self, core: &Source) -> Result<Vec<OnlineUser>, Error> {
        if self.recent(core.epoch).is_none() {
            self.harvest(core).await?;
        }
        let online = self.recent(core.epoch);
        Ok(online.map(|online| online.users()).unwrap_or_default())
    }

    /// Who is online at these cores, by the last glance at each; `None` where one of them does not tell.
    #[must_use]
    pub fn names_online(&self, epochs: &[Epoch]) -> Option<BTreeSet<String>> {
        let there: Option<Vec<Arc<There>>> = {
            let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
            let there = epochs
                .iter()
                .map(|epoch| cores.get(epoch)?.there.load_full());
            there.collect()
        };
        let there = there?;
        if there.iter().any(|there| there.at.elapsed() > STALE) {
            return None;
        }
        let names = there.iter().flat_map(|there| &there.names);
        Some(names.cloned().collect())
    }

    /// For how long this core has been asked in vain; `None` where it has told what it was asked for.
    #[must_use]
    pub fn silent_for(&self, epoch: Epoch) -> Option<Duration> {
        let asked = self.watched(epoch).asked.load_full()?;
        Some(asked.elapsed())
    }

    fn recent(&self, epoch: Epoch) -> Option<Arc<Online>> {
        let fresh = FRESH.max(self.interval.saturating_mul(2));
        let online = self.watched(epoch).online.load_full();
        online.filter(|online| online.is_fresh(fresh))
    }

    async fn sweep_within(&self, core: &Source, patience: Duration) -> Result<(), Error> {
        let asked = Instant::now();
        let watched = self.watched(core.epoch);
        let mut turn = watched.turn.lock().await;
        if turn.swept.is_some_and(|began| began >= asked) {
            return Ok(());
        }
        let began = Instant::now();
        let swept = async {
            let readings = vec![read_all(core, &mut turn, patience).await?];
            self.ledger.count(core.epoch, readings).await?;
            Ok::<_, Error>(Read::Sweep)
        };
        watched.is_asked(began);
        let swept = swept.await;
        watched.has_told(swept.as_ref().err());
        let read = swept.as_ref().copied().map_err(Error::trouble);
        self.metrics.harvested(read, began.elapsed());
        swept?;
        // Whoever waits for it may leave in between; then it was none.
        turn.swept = Some(began);
        Ok(())
    }
}

/// Reads those who are online, as far as this core can tell who that is.
async fn glance(
    core: &Source,
    watched: &Watched,
    turn: &mut Turn,
    readings: &mut Vec<Readings>,
) -> Result<Glance, Error> {
    if turn.blind || core.version < NAMES_WHO_IS_ONLINE {
        return Ok(Glance::Blind);
    }
    let there = if core.version < TELLS_USERS_STATS {
        within(PATIENCE, core.client.online_users()).await
    } else {
        let users = within(PATIENCE, core.client.users_stats()).await;
        users.map(|users| {
            let before = watched.online.load_full();
            let online = Online::new(&users, before.as_deref());
            let names = online.emails().cloned().collect();
            watched.online.store(Some(Arc::new(online)));
            readings.push(Readings::Users(users));
            names
        })
    };
    let there: HashSet<String> = match there {
        Ok(names) => names.into_iter().collect(),
        Err(client::Error::Unsupported(_)) => {
            turn.blind = true;
            return Ok(Glance::Blind);
        }
        Err(error) => return Err(error.into()),
    };
    // Who has left used something until then; who is there is known already, or is looked at, too.
    let before = watched.there.load_full();
    let left = before.iter().flat_map(|before| &before.names);
    let left = left.filter(|name| !there.contains(*name));
    let looked_at: Vec<(Kind, String)> = left
        .chain(there.iter().filter(|_| readings.is_empty()))
        .map(|name| (Kind::User, name.clone()))
        .chain(turn.tags.iter().cloned())
        .collect();
    let there = There {
        names: there,
        at: Instant::now(),
    };
    watched.there.store(Some(Arc::new(there)));
    let dear = LOOK.saturating_mul(u32::try_from(looked_at.len() * 2).unwrap_or(u32::MAX));
    let sweep = turn.sweeps.usual().max(CHEAP);
    if looked_at.len() > SINGLES || turn.swept.is_some() && dear > sweep {
        return Ok(Glance::Dear);
    }
    readings.push(Readings::Some(look(&core.client, &looked_at).await?));
    Ok(Glance::Done)
}

/// Reads every counter.
async fn read_all(core: &Source, turn: &mut Turn, patience: Duration) -> Result<Readings, Error> {
    let began = Instant::now();
    let counters = within(patience, core.client.counters("")).await?;
    turn.sweeps.note(began.elapsed());
    let tags: BTreeSet<(Kind, String)> = counters
        .iter()
        // Nearly all of them are of users.
        .filter(|counter| !counter.name.starts_with("user>>>"))
        .filter_map(|counter| Reading::parse(&counter.name, counter.value))
        .filter(|reading| reading.kind != Kind::User)
        .map(|reading| (reading.kind, reading.name.to_owned()))
        .collect();
    turn.tags = tags.into_iter().take(TAGS).collect();
    Ok(Readings::Sweep(counters))
}

/// How far a glance came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Glance {
    /// Everybody who is online was read.
    Done,
    /// A sweep is the cheaper way.
    Dear,
    /// This core does not tell who is online.
    Blind,
}

/// The counters of these names; what was never counted is not there.
async fn look(client: &Client, at: &[(Kind, String)]) -> Result<Vec<Counter>, client::Error> {
    let counters: Vec<String> = at
        .iter()
        .flat_map(|(kind, name)| names(*kind, name))
        .collect();
    let looks = futures_util::stream::iter(counters).map(|counter| {
        let client = client.clone();
        async move {
            match client.counter(&counter).await {
                Ok(counter) => Ok(Some(counter)),
                Err(client::Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        }
    });
    let found = looks.buffer_unordered(IN_FLIGHT);
    within(
        PATIENCE,
        found
            .try_filter_map(|found| std::future::ready(Ok(found)))
            .try_collect(),
    )
    .await
}

async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, client::Error>>,
) -> Result<T, client::Error> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => answer,
        Err(_) => Err(client::Error::NoAnswer(format!(
            "nothing within {} s",
            patience.as_secs()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeps_come_seldom_unless_somebody_is_hidden() {
        let now = Instant::now();
        let mut turn = Turn::default();
        assert!(turn.wants_sweep(now, Glance::Done), "the first harvest");
        turn.sweeps.note(Duration::from_millis(100));
        turn.swept = Some(now);
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(!turn.wants_sweep(after(29), Glance::Done));
        assert!(turn.wants_sweep(after(30), Glance::Done));
        for glance in [Glance::Dear, Glance::Blind] {
            assert!(
                !turn.wants_sweep(after(4), glance),
                "at most 2 % of the time"
            );
            assert!(turn.wants_sweep(after(5), glance));
        }
        turn.hidden = true;
        assert!(turn.wants_sweep(after(5), Glance::Done));
    }

    #[test]
    fn one_reading_that_was_held_up_holds_up_no_other() {
        let mut costs = Costs::default();
        for millis in [1, 2, 2500, 2, 1] {
            costs.note(Duration::from_millis(millis));
        }
        assert_eq!(costs.pause(), Duration::from_millis(100));
        for _ in 0..COSTS {
            costs.note(Duration::from_secs(9));
        }
        assert_eq!(costs.pause(), SWEEP, "never longer than that");
    }
}
