//! The one task that changes things.
//!
//! ```text
//!            Start                 plan is empty: no step
//!  Idle ───────────────▶ check ────────────────────┐
//!   ▲                      │ refused: back, untouched
//!   │ Stop / keep-alive    ▼                       ▼
//!   └──────────────────  start ◀───────────── Serving
//!                          ▲                    │  ▲ user changes
//!                          │ retry              │  └──┘
//!                          └────── Down ◀───────┘ the core died
//! ```
//!
//! Changes come in through a bounded queue and are applied one after the other, each to its end,
//! also when its caller has gone: so a repeat of a change that is under way finds it done. What
//! everybody may read is published as a [`State`] with every step; readers never wait for a change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Error;
use super::applied::Applied;
use super::apply::change_users;
use super::backoff::Backoff;
use super::change::{Change, Outcome};
use super::plan::{self, Desired, Plan};
use super::roster::Roster;
use super::routing::{self, Left};
use super::session::Session;
use super::state::{Serving, State};
use crate::xray::config::Rule;
use crate::xray::core::{Core, Launcher};

/// How often sessions are looked at for expiry.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(500);

/// A change on its way to the driver, and where its outcome goes.
pub(super) type Queued = (Change, oneshot::Sender<Outcome>);

pub(super) struct Driver {
    launcher: Arc<Launcher>,
    queue: mpsc::Receiver<Queued>,
    state: watch::Sender<State>,
    session: Option<Arc<Session>>,
    phase: Phase,
    backoff: Backoff,
}

enum Phase {
    /// Nothing runs and nothing should.
    Idle,
    /// A core serves.
    Serving { core: Core, applied: Applied },
    /// The core died and comes back by itself.
    Down {
        applied: Applied,
        retry: tokio::time::Instant,
    },
}

impl Driver {
    pub(super) fn new(
        launcher: Arc<Launcher>,
        queue: mpsc::Receiver<Queued>,
        state: watch::Sender<State>,
    ) -> Self {
        Self {
            launcher,
            queue,
            state,
            session: None,
            phase: Phase::Idle,
            backoff: Backoff::default(),
        }
    }

    /// Applies changes until `shutdown`, then stops the core.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // The order: a stop ends everything, the end of a core comes before what would need it.
            // All of them are cancel-safe.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                event = self.phase.event() => tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    () = self.on_core(event) => {}
                },
                queued = self.queue.recv() => match queued {
                    Some((change, reply)) => {
                        let outcome = tokio::select! {
                            biased;
                            () = shutdown.cancelled() => break,
                            outcome = self.apply(change) => outcome,
                        };
                        if let (Ok(_), Some(session)) = (&outcome, &self.session) {
                            // However long it took: a panel that waits for us is there.
                            session.touch(Instant::now());
                        }
                        // The caller may have gone; the change is made all the same.
                        drop(reply.send(outcome));
                    }
                    None => break,
                },
                _ = expiry.tick() => self.expire(Instant::now()).await,
            }
        }
        self.session = None;
        self.stop_core().await;
    }

    async fn apply(&mut self, change: Change) -> Outcome {
        match change {
            Change::Start {
                desired,
                keep_alive,
            } => {
                let desired = desired.await.map_err(|_| Error::ShuttingDown)??;
                self.reach(desired).await?;
                Ok(Some(self.begin_session(keep_alive)))
            }
            Change::Stop => {
                if self.session.take().is_none() {
                    return Err(Error::NotInitialized);
                }
                tracing::info!("the panel stopped the node");
                self.stop_core().await;
                Ok(None)
            }
            Change::RestartCore => {
                tracing::info!("the core is started anew because the panel asked for it");
                self.restart().await.map(|()| None)
            }
            Change::UpdateUsers {
                users,
                all_or_nothing,
            } => {
                let (core, applied) = self.serving()?;
                let (changes, refused) = tokio::task::block_in_place(|| {
                    plan::update(&applied.roster, users, all_or_nothing)
                });
                change_users(
                    core.client(),
                    &applied.skeleton,
                    &mut applied.roster,
                    changes,
                )
                .await?;
                refused.map_err(Error::Refused)?;
                Ok(None)
            }
            Change::ReplaceUsers { users } => {
                let (core, applied) = self.serving()?;
                let changes = tokio::task::block_in_place(|| {
                    let wanted = Roster::new(applied.skeleton.inbounds(), users)?;
                    Ok(plan::replace_all(&applied.roster, &wanted))
                });
                change_users(
                    core.client(),
                    &applied.skeleton,
                    &mut applied.roster,
                    changes.map_err(Error::Refused)?,
                )
                .await?;
                Ok(None)
            }
            Change::AddRule { rule, reset } => {
                self.add_rule(&rule, reset).await?;
                self.publish();
                Ok(None)
            }
            Change::RemoveRule { tag } => {
                let (core, applied) = self.serving()?;
                routing::remove_rule(core, applied, &tag).await?;
                self.publish();
                Ok(None)
            }
            Change::OverrideBalancer { balancer, target } => {
                let (core, applied) = self.serving()?;
                routing::override_balancer(core, applied, &balancer, &target).await?;
                Ok(None)
            }
        }
    }

    fn serving(&mut self) -> Result<(&Core, &mut Applied), Error> {
        if self.session.is_none() {
            return Err(Error::NotInitialized);
        }
        match &mut self.phase {
            Phase::Serving { core, applied } if !core.has_ended() => Ok((core, applied)),
            Phase::Serving { .. } | Phase::Down { .. } | Phase::Idle => Err(Error::CoreNotStarted),
        }
    }

    async fn add_rule(&mut self, rule: &Rule, reset: bool) -> Result<(), Error> {
        let launcher = Arc::clone(&self.launcher);
        let (core, applied) = self.serving()?;
        if !reset {
            return routing::add_rule(&launcher, core, applied, rule).await;
        }
        match routing::replace_rules(&launcher, core, applied, rule).await {
            Ok(()) => Ok(()),
            Err((error, Left::Unchanged)) => Err(error),
            Err((error, Left::Unknown)) => {
                tracing::warn!(%error, "nobody knows which rules the core has, so it is started anew with those of before");
                self.restart().await?;
                Err(error)
            }
        }
    }

    /// Takes the lowest rung of the ladder that leads to what is wanted.
    async fn reach(&mut self, desired: Desired) -> Result<(), Error> {
        let (core, applied) = match &mut self.phase {
            Phase::Serving { core, applied } if !core.has_ended() => (core, applied),
            Phase::Serving { .. } | Phase::Down { .. } | Phase::Idle => {
                return self.start_fresh(desired).await;
            }
        };
        let step = tokio::task::block_in_place(|| {
            plan::plan(&applied.skeleton, &applied.roster, &desired)
        });
        match step {
            Plan::Nothing => {
                tracing::info!("start: the node runs exactly this already");
                Ok(())
            }
            Plan::Users(changes) => {
                tracing::info!(changes = changes.len(), "start: only users differ");
                change_users(
                    core.client(),
                    &applied.skeleton,
                    &mut applied.roster,
                    changes,
                )
                .await
            }
            Plan::Rules { steps, changes } => {
                tracing::info!(
                    appended = steps.append.len(),
                    removed = steps.remove.len(),
                    users = changes.len(),
                    "start: only routing rules and users differ"
                );
                if !steps.append.is_empty() {
                    self.launcher
                        .check(&desired.skeleton, &desired.roster)
                        .await?;
                }
                if let Err(error) = routing::change_rules(&self.launcher, core, &steps).await {
                    tracing::warn!(%error, "the core does not change its rules, so it is started anew");
                    return self.exchange(desired).await;
                }
                applied.skeleton = desired.skeleton;
                let changed = change_users(
                    core.client(),
                    &applied.skeleton,
                    &mut applied.roster,
                    changes,
                )
                .await;
                self.publish();
                changed
            }
            Plan::Restart { because } => {
                tracing::info!(
                    because = because.join(", "),
                    "start: the core has to be started anew"
                );
                self.launcher
                    .check(&desired.skeleton, &desired.roster)
                    .await?;
                self.exchange(desired).await
            }
        }
    }

    /// Nothing serves, so nothing can be lost: the start itself is the test.
    async fn start_fresh(&mut self, desired: Desired) -> Result<(), Error> {
        let applied = Applied::from(desired);
        let core = applied.launch(&self.launcher).await?;
        self.backoff = Backoff::default();
        self.serve(core, applied);
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), Error> {
        let applied = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => return Err(Error::NotInitialized),
            Phase::Down { applied, .. } => applied,
            Phase::Serving { core, applied } => {
                self.publish();
                core.stop().await;
                applied
            }
        };
        match applied.launch(&self.launcher).await {
            Ok(core) => {
                self.serve(core, applied);
                Ok(())
            }
            Err(failure) => {
                self.phase = Phase::Down {
                    applied,
                    retry: tokio::time::Instant::now(),
                };
                self.publish();
                Err(failure.into())
            }
        }
    }

    /// From the running core to one with another configuration, and back when that fails.
    async fn exchange(&mut self, desired: Desired) -> Result<(), Error> {
        let Phase::Serving {
            core,
            applied: before,
        } = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return self.start_fresh(desired).await;
        };
        self.publish();
        core.stop().await;
        let failure = match self.start_fresh(desired).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        tracing::warn!(error = %failure, "the new configuration does not run, going back to the last one");
        match before.launch(&self.launcher).await {
            Ok(core) => self.serve(core, before),
            Err(error) => {
                tracing::error!(%error, "the last configuration does not start either");
                self.phase = Phase::Down {
                    applied: before,
                    retry: tokio::time::Instant::now(),
                };
                self.publish();
            }
        }
        Err(failure)
    }

    fn serve(&mut self, core: Core, applied: Applied) {
        self.phase = Phase::Serving { core, applied };
        self.publish();
    }

    fn begin_session(&mut self, keep_alive: Option<Duration>) -> Uuid {
        let id = Uuid::new_v4();
        self.session = Some(Arc::new(Session::new(id, keep_alive, Instant::now())));
        self.publish();
        id
    }

    async fn expire(&mut self, now: Instant) {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.has_expired(now))
        {
            tracing::warn!("the panel has been silent for the whole keep_alive, stopping the core");
            self.session = None;
            self.stop_core().await;
        }
    }

    async fn stop_core(&mut self) {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        self.publish();
        if let Phase::Serving { core, .. } = phase {
            core.stop().await;
        }
    }

    async fn on_core(&mut self, event: CoreEvent) {
        let applied = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => return,
            Phase::Down { applied, .. } | Phase::Serving { applied, .. } => applied,
        };
        let ran = match event {
            CoreEvent::Ended { how, ran } => {
                self.publish();
                let line = format!("xray process exited unexpectedly: {how}");
                self.launcher.logs.push(&line);
                tracing::error!(how, ran_s = ran.as_secs(), "the core ended unexpectedly");
                ran
            }
            CoreEvent::RetryDue => match applied.launch(&self.launcher).await {
                Ok(core) => return self.serve(core, applied),
                Err(error) => {
                    tracing::error!(%error, "the core can't be started again");
                    Duration::ZERO
                }
            },
        };
        let wait = self.backoff.next(ran, rand::random());
        tracing::info!(wait_ms = wait.as_millis(), "starting the core again");
        self.phase = Phase::Down {
            applied,
            retry: tokio::time::Instant::now() + wait,
        };
        self.publish();
    }

    fn publish(&self) {
        let serving = match &self.phase {
            Phase::Serving { core, applied } => Some(Arc::new(Serving {
                client: core.client().clone(),
                version: core.version(),
                ready: core.ready_since(),
                skeleton: Arc::clone(&applied.skeleton),
            })),
            Phase::Down { .. } | Phase::Idle => None,
        };
        self.state.send_replace(State {
            session: self.session.clone(),
            serving,
        });
    }
}

/// Something that a phase was waiting for.
enum CoreEvent {
    Ended { how: String, ran: Duration },
    RetryDue,
}

impl Phase {
    /// Cancel-safe: it only watches.
    async fn event(&self) -> CoreEvent {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Serving { core, .. } => {
                let how = core.ended().await;
                CoreEvent::Ended {
                    how,
                    ran: core.ready_since().elapsed(),
                }
            }
            Self::Down { retry, .. } => {
                tokio::time::sleep_until(*retry).await;
                CoreEvent::RetryDue
            }
        }
    }
}
