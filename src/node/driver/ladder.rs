//! From what runs to what is wanted, by the lowest rung that leads there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Driver;
use crate::node::Error;
use crate::node::applied::{Applied, Former};
use crate::node::endurance::Endurance;
use crate::node::phase::Phase;
use crate::node::plan::{self, Desired, Plan};
use crate::node::routing::{self, Left};
use crate::telemetry::metrics::{Launch, Rung};
use crate::xray::config::Rule;
use crate::xray::core::{self, READY_DEADLINE};

/// How long a core may take to be ready when another one was stopped for it. Trying its configuration
/// took so long, which is all of a start but the listening.
fn patience(tried: Duration) -> Duration {
    Duration::from_millis(1500) + 3 * tried
}

impl Driver {
    /// Takes the lowest rung of the ladder that leads to what is wanted.
    pub(super) async fn reach(&mut self, desired: Desired) -> Result<(), Error> {
        let (core, applied) = match &mut self.phase {
            Phase::Serving { core, applied } if !core.has_ended() => (core, applied),
            _ => return self.start_fresh(desired).await,
        };
        if !routing::settle(core, applied).await {
            return self
                .exchange(desired, "nobody knows which rules the core has")
                .await;
        }
        let step = tokio::task::block_in_place(|| {
            plan::plan(&applied.skeleton, &applied.roster, &desired)
        });
        if !matches!(step, Plan::Another { .. }) {
            routing::free_balancers(core, applied).await;
        }
        match step {
            Plan::Nothing => {
                tracing::info!("start: the node runs exactly this already");
                self.takes("nothing differs");
                self.launcher.metrics.rung(Rung::Nothing);
                Ok(())
            }
            Plan::Users(changes) => {
                tracing::info!(changes = changes.len(), "start: only users differ");
                self.change_users(changes).await
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
                    tracing::warn!(%error, "the core does not change its rules");
                    return self.exchange(desired, "rules").await;
                }
                self.launcher.metrics.rung(Rung::Rules);
                applied.skeleton = desired.skeleton;
                self.takes("routing rules change over the core's API");
                let changed = self.change_users(changes).await;
                self.changed();
                changed
            }
            Plan::Another { because } => self.exchange(desired, &because.join(", ")).await,
        }
    }

    /// Nothing serves, so nothing can be lost: the start itself is the test.
    pub(super) async fn start_fresh(&mut self, desired: Desired) -> Result<(), Error> {
        if matches!(self.phase, Phase::Serving { .. }) {
            // Its core has ended, and nobody has looked at it since. That counts like any other end.
            let end = self.phase.event().await;
            self.on_core(end).await;
        }
        let is_the_same = match &self.phase {
            Phase::Down { applied, .. } => applied.skeleton == desired.skeleton,
            _ => false,
        };
        if let Phase::Down { applied, .. } | Phase::GaveUp { applied, .. } = &self.phase {
            self.cut(&applied.roster.gone_in(&desired.roster));
        }
        let mut applied = Applied::from(desired);
        self.takes("a core is started");
        let launched = applied.launch(&self.launcher, READY_DEADLINE, Launch::Start);
        let core = launched.await?;
        self.launcher.metrics.rung(Rung::Start);
        if !is_the_same {
            self.endurance = Endurance::default();
        }
        self.serve(core, applied).await;
        Ok(())
    }

    /// From the running core to one with another configuration: beside the running one where two can stand
    /// there, else after it.
    pub(super) async fn exchange(&mut self, desired: Desired, because: &str) -> Result<(), Error> {
        self.setbacks
            .allow(&desired.skeleton, Instant::now())
            .map_err(Error::FailedBefore)?;
        self.launcher.can_record()?;
        let Some(why) = self.alone() else {
            let tried = self
                .launcher
                .check(&desired.skeleton, &desired.roster)
                .await?;
            return self
                .hand_over((Applied::from(desired), tried), because)
                .await;
        };
        self.warn_of_the_end(because, &why);
        self.exchange_in_turn(desired).await
    }

    /// One core after the other, and back when that fails. Whatever can be known before is known before the
    /// running one is stopped.
    async fn exchange_in_turn(&mut self, desired: Desired) -> Result<(), Error> {
        let took = self
            .launcher
            .check(&desired.skeleton, &desired.roster)
            .await?;
        // One that was slow, and not wrong, gets there in the end.
        let patience = patience(took) * 2_u32.pow(self.setbacks.count(&desired.skeleton).min(5));
        let ran = self.runs_for();
        let parts = match &self.phase {
            Phase::Serving { core, .. } => core.parts().cloned(),
            _ => None,
        };
        self.beside.tally.restarts += 1;
        let Some(mut before) = self.take_applied().await else {
            return self.start_fresh(desired).await;
        };
        let mut applied = Applied::from(desired);
        let tried = Arc::clone(&applied.skeleton);
        let failure = match applied
            .launch(&self.launcher, patience, Launch::Restart)
            .await
        {
            Ok(core) => {
                self.cut(&before.roster.gone_in(&applied.roster));
                let former = Former {
                    applied: before,
                    parts,
                };
                self.endurance.replaced(former, ran);
                self.serve(core, applied).await;
                return Ok(());
            }
            Err(failure) => Error::from(failure),
        };
        tracing::warn!(error = %failure, "the new configuration does not run, going back to the last one");
        self.setbacks
            .note(tried, failure.to_string(), Instant::now());
        match before
            .launch(&self.launcher, READY_DEADLINE, Launch::Back)
            .await
        {
            Ok(core) => self.serve(core, before).await,
            Err(error) => {
                tracing::error!(%error, "the last configuration does not start either");
                self.come_back_now(before);
            }
        }
        Err(failure)
    }

    /// A core of its own for what serves, without a change of it.
    pub(super) async fn fresh_core(&mut self, because: &str) -> Result<(), Error> {
        if self.session.is_none() {
            return Err(Error::NotInitialized);
        }
        self.launcher.can_record()?;
        let mut before = None;
        match &self.phase {
            Phase::Serving { core, .. } if !core.has_ended() => {
                let Some(why) = self.alone() else {
                    return self.renew(because).await;
                };
                before = core.parts().cloned();
                self.warn_of_the_end(because, &why);
                self.beside.tally.restarts += 1;
            }
            _ => {}
        }
        let Some(mut applied) = self.take_applied().await else {
            return Err(Error::NotInitialized);
        };
        match applied
            .launch(&self.launcher, READY_DEADLINE, Launch::Restart)
            .await
        {
            Ok(core) => {
                self.serve(core, applied).await;
                Ok(())
            }
            Err(failure) => {
                match before.filter(|parts| self.launcher.set_parts_if_others(parts)) {
                    Some(_) => self.go_back_to_old_parts(applied, &failure).await,
                    None => self.come_back_now(applied),
                }
                Err(failure.into())
            }
        }
    }

    async fn go_back_to_old_parts(&mut self, mut applied: Applied, failure: &core::Error) {
        tracing::warn!(error = %failure, "no core starts from what it is made of now, going back to what it was made of");
        let launched = applied.launch(&self.launcher, READY_DEADLINE, Launch::Back);
        match launched.await {
            Ok(core) => self.serve(core, applied).await,
            Err(error) => {
                tracing::error!(%error, "nor from what it was made of");
                self.come_back_now(applied);
            }
        }
    }

    fn warn_of_the_end(&mut self, because: &str, why: &str) {
        tracing::warn!(
            because,
            why,
            "the core is started anew, and every connection ends: no second one can be started beside it"
        );
        self.takes(&format!("the core is started anew ({because}; {why})"));
    }

    pub(super) async fn add_rule(&mut self, rule: &Rule, reset: bool) -> Result<(), Error> {
        let launcher = Arc::clone(&self.launcher);
        let (core, applied, _) = self.serving()?;
        if !reset {
            return routing::add_rule(&launcher, core, applied, rule).await;
        }
        match routing::replace_rules(&launcher, core, applied, rule).await {
            Ok(()) => Ok(()),
            Err((error, Left::Unchanged)) => Err(error),
            Err((error, Left::Unknown)) => {
                tracing::warn!(%error, "nobody knows which rules the core has, so another one gets those of before");
                self.fresh_core("nobody knows which rules the core has")
                    .await?;
                Err(error)
            }
        }
    }
}
