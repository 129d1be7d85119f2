//! The domain: what a panel can do with a node, whichever way it calls.
//!
//! [`Node`] is the door. What changes the node goes through the driver, one change at a time;
//! what only reads is answered from a snapshot and the core's API and waits for no change. No type
//! of a transport appears here.

mod applied;
mod apply;
mod backoff;
mod boot;
mod change;
mod control;
mod driver;
mod endurance;
mod figures;
mod grace;
mod handover;
mod harvesting;
mod history;
mod last_good;
mod look;
mod overview;
mod phase;
mod plan;
mod pulse;
mod reads;
mod roster;
mod routing;
mod served_last;
mod session;
mod setbacks;
mod standing;
mod state;
mod user;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::change::RENEWAL;
pub use self::figures::Figures;
pub use self::history::{LastChange, UnderWay};
pub use self::look::{Comparison, Listed, Step};
pub use self::overview::Overview;
pub use self::pulse::{Beat, Pulse};
pub use self::reads::{CoreInfo, Latency, LogStream};
pub use self::roster::{Refused, Roster};
pub use self::served_last::ServedLast;
pub use self::session::Session;
pub use self::standing::{Absent, Because, Serves, Standing};
pub use self::user::{Email, Malformed, User, Users};

use self::change::{Change, Outcome};
use self::driver::{Driver, Leave, Queued};
use self::grace::Grace;
use self::history::History;
use self::last_good::LastGood;
use self::look::{LOOKS, Look};
use self::plan::Desired;
use self::state::{Serving, State};
use crate::host::Host;
use crate::usage::Policy;
use crate::usage::harvest::Harvester;
use crate::usage::ledger::{self, Ledger};
use crate::xray::config::{self, Rule, Skeleton};
use crate::xray::core::{self, Launcher};
use crate::xray::handover as cores;
use crate::xray::leftover;
use crate::xray::parts::Parts;

/// How many changes may wait for their turn.
const QUEUE: usize = 64;
/// How long the core gets to end when the node ends, beyond its own patience.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a change that has begun gets when the core stays; the next daemon finishes what it can.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);
/// How long the disk gets for the usage ledger at the end; what it does not take is in the core, or is
/// found as unsure.
const LEDGER_DEADLINE: Duration = Duration::from_secs(5);

/// Why the node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No panel has control; a Start is needed.
    #[error("backend not initialized")]
    NotInitialized,
    /// The core is coming up again by itself.
    #[error("core is not started yet")]
    CoreNotStarted,
    /// The core died too often and is not started again by itself.
    #[error("core is not started yet: {0}")]
    GaveUp(Arc<str>),
    /// The configuration can't be used; nothing changed.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The same configuration failed a moment ago; nothing was tried.
    #[error("{0}")]
    FailedBefore(String),
    /// There is no core for this configuration.
    #[error(transparent)]
    Core(#[from] core::Error),
    /// Users that can't be served, by name; nothing of them changed.
    #[error(transparent)]
    Refused(Refused),
    /// Changes that the core did not make, by name; all others were made.
    #[error("{0}")]
    Failed(String),
    /// The core's statistics can't be read.
    #[error("failed to get sys stats: {0}")]
    SysStats(crate::xray::client::Error),
    /// The core refused a read or did not answer.
    #[error("failed to read from xray: {0}")]
    Read(crate::xray::client::Error),
    /// Usage can't be had just now; nothing of it is lost.
    #[error(transparent)]
    Usage(#[from] ledger::Error),
    /// A read without the name that it needs.
    #[error("{0} required")]
    NameRequired(&'static str),
    /// There is no such user, or he never connected.
    #[error("user {0} not found.")]
    UserNotFound(String),
    /// The configuration measures no outbounds.
    #[error("xray outbound latency is not available")]
    NoObservatory,
    /// The core is not there to tell its latencies.
    #[error("xray not started")]
    NoLatencies,
    /// A routing rule that can't be used; nothing changed.
    #[error(transparent)]
    Rule(#[from] config::RuleError),
    /// The core did not change its routing.
    #[error("failed to change the routing: {0}")]
    Routing(crate::xray::client::Error),
    /// A script decides where connections go.
    #[error(
        "routing.script of the config decides where connections go, so rules would have no effect"
    )]
    ScriptRoutes,
    /// No rule matches a connection.
    #[error("no rule matches: the default outbound {outbound:?} would take it")]
    NoRule {
        /// The first one of the configuration.
        outbound: String,
    },
    /// There is no balancer of this tag.
    #[error("balancer {0:?} not found")]
    NoBalancer(String),
    /// There is no outbound of this tag.
    #[error("outbound {0:?} not found")]
    NoOutbound(String),
    /// A call that the core's version does not have.
    #[error("{call} needs xray {needs} or newer, this one is {runs}")]
    TooOld {
        /// Which call.
        call: &'static str,
        /// The first version that has it.
        needs: crate::xray::version::Version,
        /// The version that runs.
        runs: crate::xray::version::Version,
    },
    /// Too many changes wait already.
    #[error("too many changes are waiting for their turn, try again in a few seconds")]
    Busy,
    /// A change takes so long that there is no answer.
    #[error("the node is busy with a change ({0}), try again in a few seconds")]
    Occupied(&'static str),
    /// The node is ending.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// What a Start asks for.
pub struct Start {
    /// Xray's configuration, JSON.
    pub config: String,
    /// Everybody who may connect.
    pub users: Users,
    /// End the session when no call succeeds for so long; `None` for never.
    pub keep_alive: Option<Duration>,
    /// Tags of inbounds that keep the users that the configuration gives them.
    pub exclude_inbounds: Vec<String>,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start")
            .field("keep_alive", &self.keep_alive)
            .field("exclude_inbounds", &self.exclude_inbounds)
            .finish_non_exhaustive()
    }
}

/// Whether the node serves, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseInfo {
    /// Whether a panel has control and its core serves.
    pub started: bool,
    /// The version of the core, or of the binary that would become one; empty when there is none.
    pub core_version: String,
}

/// The door to a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    queue: mpsc::Sender<Queued>,
    state: watch::Receiver<State>,
    launcher: Arc<Launcher>,
    grace: Arc<Grace>,
    host: Arc<Host>,
    harvester: Arc<Harvester>,
    looks: mpsc::Sender<Look>,
    history: Arc<History>,
}

/// The driver's task.
#[derive(Debug)]
pub struct Running {
    task: tokio::task::JoinHandle<()>,
    pulse: Pulse,
    leave: Leave,
    harvesting: JoinSet<()>,
    ledger: Ledger,
    launcher: Arc<Launcher>,
}

impl Running {
    /// What shows that it goes on.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Returns when the driver has ended without being asked to. Without it nothing can change any
    /// more: better to end, so that whoever started the node starts it again. The core serves on.
    pub async fn broken(&mut self) {
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the driver ended badly");
        }
    }

    /// Stops the core and waits until it is gone.
    pub async fn stop(mut self) {
        self.leave.stop.cancel();
        if !self.wait(STOP_DEADLINE).await {
            tracing::error!("the cores did not stop in time, killing them");
            leftover::kill_all(&self.launcher.runtime_dir);
        }
        self.put_down().await;
    }

    /// Whatever was counted until now is on disk then.
    async fn put_down(&mut self) {
        self.harvesting.shutdown().await;
        let closed = tokio::time::timeout(LEDGER_DEADLINE, self.ledger.close()).await;
        if closed.is_err() {
            tracing::error!("the disk does not take the usage ledger in time");
        }
    }

    /// Ends the driver and leaves the core serving, for the daemon that comes next; unless `stop` comes
    /// before that.
    pub async fn detach(mut self, stop: &CancellationToken) {
        self.leave.detach.cancel();
        tokio::select! {
            () = stop.cancelled() => return self.stop().await,
            () = self.leave.gone.cancelled() => {}
            () = tokio::time::sleep(DETACH_DEADLINE) => {
                tracing::warn!("a change was still going on; the next daemon finishes what it can");
            }
        }
        self.put_down().await;
    }

    /// Whether it has ended by then.
    async fn wait(&mut self, patience: Duration) -> bool {
        if self.task.is_finished() {
            return true;
        }
        match tokio::time::timeout(patience, &mut self.task).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, "the driver ended badly");
                true
            }
            Err(_) => false,
        }
    }
}

/// What a node keeps for the one that comes after it, and what it does with what it finds.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Where the last good configuration is kept.
    pub state_dir: std::path::PathBuf,
    /// Whether it is started again where no core runs.
    pub restore: bool,
    /// How long a core serves on after a panel's Stop.
    pub stop_grace: Duration,
    /// What becomes of what is used.
    pub usage: Policy,
    /// How a core makes way for another one.
    pub handover: cores::Policy,
}

impl Node {
    /// A node with what an earlier one left behind: its core where it still runs, the session of its
    /// panel, and what it served last.
    pub async fn spawn(launcher: Launcher, memory: Memory) -> (Self, Running) {
        let launcher = Arc::new(launcher);
        let (queue, changes) = mpsc::channel(QUEUE);
        let (looks, to_tell) = mpsc::channel(LOOKS);
        let history = Arc::new(History::default());
        let (publish, state) = watch::channel(State::default());
        let grace = Arc::new(Grace::new(memory.stop_grace));
        let leave = Leave::default();
        let last_good = LastGood::new(&memory.state_dir, &launcher.runtime_dir);
        let ledger = Ledger::open(&memory.state_dir, memory.usage);
        let interval = memory.usage.harvest_interval;
        let metrics = Arc::clone(&launcher.metrics);
        let harvester = Arc::new(Harvester::new(ledger.clone(), interval, metrics));
        let driver = Driver::new(
            Arc::clone(&launcher),
            (changes, to_tell),
            (publish, Arc::clone(&history)),
            Arc::clone(&grace),
            (last_good, Arc::clone(&harvester)),
            (memory.handover, memory.restore),
        )
        .await;
        let pulse = Pulse::default();
        let task = tokio::spawn(driver.run(leave.clone(), pulse.clone()));
        let mut harvesting = JoinSet::new();
        harvesting.spawn(harvesting::run(Arc::clone(&harvester), state.clone()));
        let node = Self {
            queue,
            state,
            launcher,
            grace,
            host: Arc::new(Host::new()),
            harvester,
            looks,
            history,
        };
        let running = Running {
            launcher: Arc::clone(&node.launcher),
            task,
            pulse,
            leave,
            harvesting,
            ledger,
        };
        (node, running)
    }

    /// From now on a core serves on for so long after a panel's Stop.
    pub fn set_stop_grace(&self, span: Duration) {
        self.grace.set(span);
    }

    /// Makes the node run a configuration with exactly these users, for this panel. Repeating it
    /// changes nothing. Goes on when the caller stops waiting.
    ///
    /// # Errors
    /// When the configuration or a user is refused: what ran before still runs then.
    pub async fn start(&self, start: Start) -> Result<(Uuid, BaseInfo), Error> {
        let Start {
            config,
            users,
            keep_alive,
            exclude_inbounds,
        } = start;
        let desired = tokio::task::spawn_blocking(move || {
            let skeleton = Skeleton::parse(&config, &exclude_inbounds)?;
            drop(config);
            let roster = Roster::new(skeleton.inbounds(), users).map_err(Error::Refused)?;
            Ok::<_, Error>(Desired {
                skeleton: Arc::new(skeleton),
                roster,
            })
        });
        self.host.watch();
        let session = self
            .change(Change::Start {
                desired,
                keep_alive,
            })
            .await?;
        Ok((session.unwrap_or_default(), self.base_info().await))
    }

    /// Ends the session. The core serves on for the grace after a Stop, then it ends, too.
    ///
    /// # Errors
    /// When no panel has control.
    pub async fn stop(&self) -> Result<(), Error> {
        self.change(Change::Stop).await.map(drop)
    }

    /// Gives the configuration and the users that are served a core of their own. Connections live on where
    /// a second core can be started beside the one that serves, and end where not.
    ///
    /// # Errors
    /// When no panel has control, or the new core does not serve.
    pub async fn restart_core(&self) -> Result<(), Error> {
        self.change(Change::RestartCore).await.map(drop)
    }

    /// Later cores are made of these parts, and make way like this. A core that serves and is made of others
    /// makes way for one of these, where it can without cutting anybody.
    ///
    /// # Errors
    /// When the new core does not get ready; the old one and its parts stay.
    pub async fn renew(&self, parts: Parts, policy: cores::Policy) -> Result<(), Error> {
        self.change(Change::Renew { parts, policy }).await.map(drop)
    }

    /// Gives the listed users what they name and nothing else; a user without inbounds is removed.
    /// Who is not listed stays. No connection ends but those that a removed user opens next.
    ///
    /// With `all_or_nothing` one refused user refuses the list; otherwise those before him are done.
    ///
    /// # Errors
    /// When users are refused, or the core did not make a change: each by name.
    pub async fn update_users(&self, users: Users, all_or_nothing: bool) -> Result<(), Error> {
        self.change(Change::UpdateUsers {
            users,
            all_or_nothing,
        })
        .await
        .map(drop)
    }

    /// Makes the listed users the only ones. No connection ends.
    ///
    /// # Errors
    /// As for an update.
    pub async fn replace_users(&self, users: Users) -> Result<(), Error> {
        self.change(Change::ReplaceUsers { users }).await.map(drop)
    }

    /// Puts a routing rule behind all others; with `reset` it becomes the only one, and balancers go.
    /// It outlives the core and ends with the next Start that does not have it. No connection ends,
    /// and those that are open keep their outbound.
    ///
    /// # Errors
    /// When the rule is refused, or the core is too old for it.
    pub async fn add_routing_rule(&self, rule: Rule, reset: bool) -> Result<(), Error> {
        self.change(Change::AddRule { rule, reset }).await.map(drop)
    }

    /// Removes every routing rule of a tag; there may be none.
    ///
    /// # Errors
    /// When the rule is the node's own, or the core is too old or does not answer.
    pub async fn remove_routing_rule(&self, tag: String) -> Result<(), Error> {
        self.change(Change::RemoveRule { tag }).await.map(drop)
    }

    /// Makes a balancer take one outbound until the next Start; with an
    /// empty `target` it chooses again.
    ///
    /// # Errors
    /// When there is no such balancer, or the core is too old or does not answer.
    pub async fn override_balancer(&self, balancer: String, target: String) -> Result<(), Error> {
        self.change(Change::OverrideBalancer { balancer, target })
            .await
            .map(drop)
    }

    async fn change(&self, change: Change) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        self.queue
            .try_send((change, reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Error::Busy,
                mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
            })?;
        outcome.await.map_err(|_| Error::ShuttingDown)?
    }

    /// The session of the panel that has control.
    #[must_use]
    pub fn session(&self) -> Option<Arc<Session>> {
        self.state.borrow().session.clone()
    }

    /// Notes that a call of the panel succeeded.
    pub fn touch(&self) {
        if let Some(session) = &self.state.borrow().session {
            session.touch(Instant::now());
        }
    }

    /// Waits until something about the session or the core has changed; `false` when nothing ever
    /// will again.
    pub async fn changed(&mut self) -> bool {
        self.state.changed().await.is_ok()
    }

    /// Fails unless a panel has control and its core serves.
    ///
    /// # Errors
    /// When there is no session, or the core is coming up again.
    pub fn require_core(&self) -> Result<(), Error> {
        self.serving().map(drop)
    }

    /// The core that serves, for calls that need one.
    fn serving(&self) -> Result<Arc<Serving>, Error> {
        let state = self.state.borrow();
        if state.session.is_none() {
            return Err(Error::NotInitialized);
        }
        match (&state.serving, &state.gave_up) {
            (Some(serving), _) => Ok(Arc::clone(serving)),
            (None, Some(why)) => Err(Error::GaveUp(Arc::clone(why))),
            (None, None) => Err(Error::CoreNotStarted),
        }
    }
}
