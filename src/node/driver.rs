//! The one task that changes things.
//!
//! ```text
//!             Start                 plan is empty: no step
//!  Idle ────────────────▶ check ────────────────────┐
//!   ▲                       │ refused: back, untouched
//!   │ grace after a Stop    ▼                       ▼
//!   │ keep-alive ────────  start ◀───────────── Serving
//!   │                       ▲                    │  ▲ user changes
//!   │                       │ retry              │  └──┘
//!   │                       └────── Down ◀───────┘ the core died
//!   │                                │ too often
//!   └──────── Start ────────── GaveUp ◀┘
//! ```
//!
//! A panel's Stop ends its session and leaves the core serving for a while, because panels send it
//! before nearly every Start: a Start within the grace is planned against what runs.
//!
//! Changes come in through a bounded queue and are applied one after the other, each to its end,
//! also when its caller has gone: so a repeat of a change that is under way finds it done. What
//! everybody may read is published as a [`State`] with every step; readers never wait for a change.

mod beside;
mod control;
mod death;
mod draining;
mod handover;
mod ladder;
mod look;
mod memory;
mod way_back;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::beside::{Beside, EVENTS};
use self::memory::MemoryGuard;
use super::Error;
use super::applied::{Applied, Former};
use super::apply::change_users;
use super::boot;
use super::change::{Change, Outcome, RENEWAL};
use super::control::Control;
use super::endurance::Endurance;
use super::grace::Grace;
use super::handover::{Drain, Event};
use super::harvesting::source;
use super::history::History;
use super::last_good::LastGood;
use super::look::Look;
use super::phase::Phase;
use super::plan::{self, UserChanges};
use super::pulse::Pulse;
use super::roster::Roster;
use super::routing;
use super::session::Session;
use super::setbacks::Setbacks;
use super::standing::Because;
use super::state::{Serving, State};
use crate::telemetry::metrics::Rung;
use crate::usage::harvest::Harvester;
use crate::xray::config::Skeleton;
use crate::xray::core::{Core, Launcher};
use crate::xray::handover::Policy;
use crate::xray::handover::journal::Journal;
use crate::xray::leftover;
use crate::xray::record::Record;

/// How often deadlines and the disk are looked after.
const TICK: Duration = Duration::from_millis(500);

/// What lingers has at least so long under a new daemon: its panel could not reach the last one.
const COMING_BACK: Duration = Duration::from_secs(3);
/// A change on its way to the driver, and where its outcome goes.
pub(super) type Queued = (Change, oneshot::Sender<Outcome>);

pub(super) struct Driver {
    launcher: Arc<Launcher>,
    queue: mpsc::Receiver<Queued>,
    state: watch::Sender<State>,
    grace: Arc<Grace>,
    session: Option<Arc<Session>>,
    /// How long the panel that started what serves may be silent.
    keep_alive: Option<Duration>,
    /// Until when the core serves on though no panel has control; `None` for ever.
    linger_until: Option<Instant>,
    phase: Phase,
    /// Keeps what served before what serves now, until that has proved itself.
    endurance: Endurance<Former>,
    last_good: LastGood,
    harvester: Arc<Harvester>,
    setbacks: Setbacks<Skeleton>,
    beside: Beside,
    from_drains: mpsc::Receiver<Event>,
    memory_guard: MemoryGuard,
    looks: mpsc::Receiver<Look>,
    history: Arc<History>,
    /// What the change that is being made takes.
    how: String,
}

/// How a driver ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Leave {
    /// With the core: at once, whatever is going on.
    pub(super) stop: CancellationToken,
    /// Without: the core serves on, for the daemon that comes next.
    pub(super) detach: CancellationToken,
    /// The driver has left.
    pub(super) gone: CancellationToken,
}

impl Driver {
    /// A driver with what an earlier daemon left behind.
    pub(super) async fn new(
        launcher: Arc<Launcher>,
        (queue, looks): (mpsc::Receiver<Queued>, mpsc::Receiver<Look>),
        (state, history): (watch::Sender<State>, Arc<History>),
        grace: Arc<Grace>,
        (mut last_good, harvester): (LastGood, Arc<Harvester>),
        (policy, start_again): (Policy, bool),
    ) -> Self {
        let left = Control::read(&launcher.runtime_dir);
        let now = Instant::now();
        let lingers = left.linger_until.is_some_and(|until| until > now);
        let found = boot::restore(
            &launcher,
            (&mut last_good, &harvester),
            policy.mode,
            start_again,
            lingers,
        )
        .await;
        let (session, linger_until) = match (&found.phase, left.session) {
            (Phase::Idle, _) => (None, None),
            (_, Some((id, keep_alive))) if found.is_what_the_panel_had => {
                tracing::info!("the panel's session goes on");
                (Some(Arc::new(Session::new(id, keep_alive, now))), None)
            }
            // A panel that has stopped the node gets its grace; otherwise nothing but a panel's own
            // word ends what it once started, whether it calls or not.
            _ if found.stopped => {
                let until = left.linger_until.or(now.checked_add(grace.get()));
                (None, until.map(|until| until.max(now + COMING_BACK)))
            }
            _ => (None, None),
        };
        let (phase, keep_alive) = (found.phase, found.keep_alive);
        let (events, from_drains) = mpsc::channel(EVENTS);
        let mut driver = Self {
            launcher,
            queue,
            state,
            grace,
            session,
            keep_alive,
            linger_until,
            phase,
            endurance: Endurance::default(),
            last_good,
            harvester,
            setbacks: Setbacks::default(),
            beside: Beside::new(policy, found.journal, found.groups, events),
            from_drains,
            memory_guard: MemoryGuard::default(),
            looks,
            history,
            how: String::new(),
        };
        driver.last_good.forget_next();
        driver.go_on_draining(found.draining, &found.gone).await;
        driver.publish();
        driver
    }

    /// Applies changes until it is told to leave, and counts in `pulse` what it does.
    pub(super) async fn run(self, leave: Leave, pulse: Pulse) {
        let changes = Box::pin(self.serve_changes(leave, &pulse));
        pulse.counting(changes).await;
    }

    async fn serve_changes(mut self, leave: Leave, pulse: &Pulse) {
        let _gone = leave.gone.clone().drop_guard();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pulse.round();
            // The order: a stop ends everything, the end of a core comes before what would need it.
            // All of them are cancel-safe.
            tokio::select! {
                biased;
                () = leave.stop.cancelled() => break,
                () = leave.detach.cancelled() => break,
                Some(event) = self.from_drains.recv() => self.on_drain(event).await,
                event = self.phase.event() => tokio::select! {
                    biased;
                    () = leave.stop.cancelled() => break,
                    () = self.on_core(event) => {}
                },
                queued = self.queue.recv() => match queued {
                    Some((change, reply)) => {
                        let what = change.name();
                        let generation = self.history.begin(what);
                        // A driver that leaves its core behind finishes what it has begun.
                        let outcome = tokio::select! {
                            biased;
                            () = leave.stop.cancelled() => break,
                            outcome = self.apply(change) => outcome,
                        };
                        tracing::debug!(generation, what, made = outcome.is_ok(), "a change");
                        let refused = outcome.as_ref().err().map(ToString::to_string);
                        let how = std::mem::take(&mut self.how);
                        if what == RENEWAL && how.is_empty() && refused.is_none() {
                            // Somebody looked whether there was anything to do.
                            self.history.pass(what);
                        } else {
                            self.history.end(what, how, refused);
                        }
                        if let (Ok(_), Some(session)) = (&outcome, &self.session) {
                            // However long it took: a panel that waits for us is there.
                            session.touch(Instant::now());
                        }
                        // The caller may have gone; the change is made all the same.
                        drop(reply.send(outcome));
                    }
                    None => break,
                },
                Some(look) = self.looks.recv() => self.tell(look),
                _ = tick.tick() => tokio::select! {
                    biased;
                    () = leave.stop.cancelled() => break,
                    () = self.on_tick(Instant::now()) => {}
                },
            }
        }
        self.leave(&leave).await;
    }

    async fn leave(mut self, leave: &Leave) {
        tokio::task::block_in_place(|| self.last_good.sync());
        if leave.detach.is_cancelled() && !leave.stop.is_cancelled() {
            if let Phase::Serving { core, .. } = &self.phase {
                let draining = self.beside.drains.len();
                tracing::info!(
                    pid = core.pid(),
                    draining,
                    "the core serves on for the next daemon"
                );
            }
            return;
        }
        self.session = None;
        self.stop_core().await;
        // A change that was cut off may have had cores in its hands.
        let folder = &self.launcher.runtime_dir;
        let known = Record::read(folder)
            .into_iter()
            .chain(Journal::read(folder).records());
        let mut left: Vec<Record> = known
            .filter(|record| leftover::is_core_of(folder, record.process))
            .collect();
        left.dedup_by_key(|record| record.id);
        join_all(
            left.iter()
                .map(|record| boot::farewell(record, &self.harvester)),
        )
        .await;
        leftover::end(&self.launcher.runtime_dir, &[]).await;
        self.beside.journal = Journal::default();
        self.write_journal().await;
    }

    async fn apply(&mut self, change: Change) -> Outcome {
        match change {
            Change::Start {
                desired,
                keep_alive,
            } => {
                // However long it takes, and whatever becomes of us meanwhile.
                self.linger_on();
                let reached = match desired.await {
                    Ok(Ok(desired)) => self.reach(desired).await,
                    Ok(Err(refused)) => Err(refused),
                    Err(_) => Err(Error::ShuttingDown),
                };
                if let Err(refused) = reached {
                    self.linger_on();
                    return Err(refused);
                }
                if self.keep_alive != keep_alive {
                    self.keep_alive = keep_alive;
                    self.save();
                }
                Ok(Some(self.begin_session(keep_alive)))
            }
            Change::Stop => self.stop().await,
            Change::RestartCore => {
                self.fresh_core("a fresh one was asked for").await?;
                Ok(None)
            }
            Change::Renew { parts, policy } => {
                self.beside.policy = policy;
                self.take_parts(parts).await?;
                Ok(None)
            }
            Change::UpdateUsers {
                users,
                all_or_nothing,
            } => {
                let (_, applied, _) = self.serving()?;
                let (changes, refused) = tokio::task::block_in_place(|| {
                    plan::update(&applied.roster, users, all_or_nothing)
                });
                self.change_users(changes).await?;
                refused.map_err(Error::Refused)?;
                Ok(None)
            }
            Change::ReplaceUsers { users } => {
                let (_, applied, _) = self.serving()?;
                let changes = tokio::task::block_in_place(|| {
                    let wanted = Roster::new(applied.skeleton.inbounds(), users)?;
                    Ok(plan::replace_all(&applied.roster, &wanted))
                });
                self.change_users(changes.map_err(Error::Refused)?).await?;
                Ok(None)
            }
            Change::AddRule { rule, reset } => {
                self.add_rule(&rule, reset).await?;
                self.changed();
                Ok(None)
            }
            Change::RemoveRule { tag } => {
                let (core, applied, _) = self.serving()?;
                routing::remove_rule(core, applied, &tag).await?;
                self.changed();
                Ok(None)
            }
            Change::OverrideBalancer { balancer, target } => {
                let (core, applied, _) = self.serving()?;
                routing::override_balancer(core, applied, &balancer, &target).await?;
                self.changed();
                Ok(None)
            }
        }
    }

    /// Whoever is gone afterwards is cut in the cores that drain, too.
    async fn change_users(&mut self, changes: UserChanges) -> Result<(), Error> {
        let removed = changes.removed();
        if !changes.is_empty() {
            let count = changes.len();
            self.takes(&format!("{count} users change over the core's API"));
            self.launcher.metrics.rung(Rung::Users);
        }
        let Phase::Serving { core, applied } = &mut self.phase else {
            return Err(Error::CoreNotStarted);
        };
        let made = change_users(core.client(), applied, &mut self.last_good, changes).await;
        let roster = &applied.roster;
        self.launcher.metrics.users(roster.people());
        let gone = removed.into_iter().filter(|email| !roster.has(email));
        let gone: Vec<String> = gone.map(|email| email.as_str().to_owned()).collect();
        self.cut(&gone);
        made
    }

    /// Puts down what the change that is being made takes.
    fn takes(&mut self, how: &str) {
        if !self.how.is_empty() {
            self.how.push_str(", ");
        }
        self.how.push_str(how);
    }

    fn serving(&mut self) -> Result<(&Core, &mut Applied, &mut LastGood), Error> {
        if self.session.is_none() {
            return Err(Error::NotInitialized);
        }
        match &mut self.phase {
            Phase::Serving { core, applied } if !core.has_ended() => {
                Ok((core, applied, &mut self.last_good))
            }
            Phase::GaveUp { why, .. } => Err(Error::GaveUp(Arc::clone(why))),
            Phase::Serving { .. } | Phase::Down { .. } | Phase::Idle => Err(Error::CoreNotStarted),
        }
    }

    /// What there is to serve, after the core that serves it has been stopped.
    async fn take_applied(&mut self) -> Option<Applied> {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => None,
            Phase::Down { applied, .. } | Phase::GaveUp { applied, .. } => Some(applied),
            Phase::Serving { core, applied } => {
                self.publish();
                self.end(core).await;
                Some(applied)
            }
        }
    }

    /// What is down is tried at once, as if it had never failed.
    async fn try_again_now(&mut self) {
        if let Some(applied) = self.take_applied().await {
            self.endurance = Endurance::default();
            self.come_back_now(applied);
        }
    }

    fn come_back_now(&mut self, applied: Applied) {
        self.phase = Phase::Down {
            applied,
            retry: tokio::time::Instant::now(),
            because: Because::NotStarted,
        };
        self.publish();
    }

    async fn serve(&mut self, core: Core, mut applied: Applied) {
        applied.doubtful = false;
        let keep_alive = self.keep_alive;
        tokio::task::block_in_place(|| self.last_good.save(core.id(), &applied, keep_alive));
        self.phase = Phase::Serving { core, applied };
        self.harvester.only(self.alive());
        self.tell_who_serves().await;
        self.publish();
    }

    /// More than users has changed in the core that serves.
    fn changed(&mut self) {
        self.save();
        self.publish();
    }

    fn save(&mut self) {
        let keep_alive = self.keep_alive;
        if let Phase::Serving { core, applied } = &self.phase {
            tokio::task::block_in_place(|| self.last_good.save(core.id(), applied, keep_alive));
        }
    }

    fn runs_for(&self) -> Duration {
        match &self.phase {
            Phase::Serving { core, .. } => core.ready_since().elapsed(),
            _ => Duration::ZERO,
        }
    }

    async fn stop_core(&mut self) {
        self.endurance = Endurance::default();
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        self.publish();
        let drains = std::mem::take(&mut self.beside.drains);
        let end_drains = join_all(drains.iter().map(|drain| drain.end("the node stops")));
        let end = async {
            if let Phase::Serving { core, .. } = phase {
                self.end(core).await;
            }
        };
        tokio::join!(end_drains, end);
        self.beside.before = None;
        self.write_journal().await;
        self.publish();
    }

    /// Stops a core, once it has told what it counted.
    async fn end(&self, core: Core) {
        if !core.has_ended() {
            self.harvester.last(&source(&core)).await;
        }
        core.stop().await;
    }

    fn publish(&self) {
        let serving = match &self.phase {
            Phase::Serving { core, applied } => Some(Arc::new(Serving {
                source: source(core),
                pid: core.pid(),
                binary: core.parts().map(|parts| parts.binary.clone()),
                ready: core.ready_since(),
                skeleton: Arc::clone(&applied.skeleton),
                sockets: core.own_sockets().map(PathBuf::from).collect(),
            })),
            Phase::Down { .. } | Phase::GaveUp { .. } | Phase::Idle => None,
        };
        let draining = self.beside.drains.iter().map(Drain::view).collect();
        let (comes, gave_up) = match &self.phase {
            Phase::Down { because, retry, .. } => (Some((*because, retry.into_std())), None),
            Phase::GaveUp { why, .. } => (None, Some(Arc::clone(why))),
            Phase::Serving { .. } | Phase::Idle => (None, None),
        };
        self.launcher
            .metrics
            .users(self.phase.roster().map_or(0, Roster::people));
        self.state.send_replace(State {
            failures: self.endurance.failures(),
            session: self.session.clone(),
            serving,
            draining,
            tally: self.beside.tally,
            comes,
            gave_up,
            linger_until: self.linger_until.filter(|_| self.session.is_none()),
        });
    }
}
