//! Who has control, and how long what nobody controls serves on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Driver;
use crate::node::Error;
use crate::node::change::Outcome;
use crate::node::control::Control;
use crate::node::phase::Phase;
use crate::node::session::Session;

impl Driver {
    /// Ends the session. The core goes with it only where no grace is wanted.
    pub(super) async fn stop(&mut self) -> Outcome {
        if self.session.take().is_none() {
            // What serves without a session, after a restart of the machine, is stopped, too.
            if !matches!(self.phase, Phase::Idle) {
                self.last_good.set_stopped(true);
                self.linger_until.get_or_insert_with(Instant::now);
                self.linger_on();
            }
            return Err(Error::NotInitialized);
        }
        let grace = self.grace.get();
        self.last_good.set_stopped(true);
        if grace.is_zero() {
            tracing::info!("the panel stopped the node");
            self.stop_core().await;
        } else {
            tracing::info!(
                grace_s = grace.as_secs(),
                "the panel stopped the node; connections go on for a while, in case it comes back"
            );
            self.linger_until = Instant::now().checked_add(grace);
            self.write_control();
            self.publish();
        }
        Ok(None)
    }

    /// A panel that tries to come back is still there, though it does not get in.
    pub(super) fn linger_on(&mut self) {
        if self.session.is_none() && self.linger_until.is_some() {
            let grace = Instant::now().checked_add(self.grace.get());
            self.linger_until = self.linger_until.max(grace);
            self.write_control();
            self.publish();
        }
    }

    pub(super) fn begin_session(&mut self, keep_alive: Option<Duration>) -> Uuid {
        let id = Uuid::new_v4();
        self.session = Some(Arc::new(Session::new(id, keep_alive, Instant::now())));
        self.linger_until = None;
        self.last_good.set_stopped(false);
        self.write_control();
        self.publish();
        id
    }

    pub(super) fn write_control(&self) {
        let control = Control::of(self.session.as_deref(), self.linger_until);
        control.write(&self.launcher.runtime_dir);
    }

    pub(super) async fn end_service(&mut self) {
        self.linger_until = None;
        self.last_good.set_stopped(true);
        self.last_good.forget_if_it_is_wrong();
        self.stop_core().await;
        self.write_control();
    }

    pub(super) async fn on_tick(&mut self, now: Instant) {
        let expired = self.session.as_ref();
        if expired.is_some_and(|session| session.has_expired(now)) {
            tracing::warn!("the panel has been silent for the whole keep_alive, stopping the core");
            self.session = None;
            self.end_service().await;
        } else if self.session.is_none() && self.linger_until.is_some_and(|until| now >= until) {
            tracing::info!("no panel came back, stopping the core");
            self.end_service().await;
        }
        self.guard_memory(now).await;
        let ran = self.runs_for();
        self.endurance.has_run_for(ran);
        if self.last_good.wants_saving(now) {
            if matches!(self.phase, Phase::Idle) {
                self.last_good.forget();
            } else {
                self.save();
            }
        }
        tokio::task::block_in_place(|| self.last_good.sync());
    }
}
