//! What becomes of a configuration whose core has died.

use std::time::Duration;

use super::Driver;
use crate::node::endurance::Verdict;
use crate::node::phase::{CoreEvent, Phase};
use crate::node::standing::Because;
use crate::telemetry::metrics::Launch;
use crate::xray::core::READY_DEADLINE;

impl Driver {
    pub(super) async fn on_core(&mut self, event: CoreEvent) {
        if let CoreEvent::Ended { how, .. } = &event
            && self.return_to_the_old_core(how).await
        {
            return;
        }
        let Some(mut applied) = self.take_applied().await else {
            return;
        };
        let (ran, how, because) = match event {
            CoreEvent::Ended { how, ran } => {
                let ran_for = format!("{how}, after {} s", ran.as_secs());
                self.history.end("the core ended by itself", ran_for, None);
                let line = format!("xray process exited unexpectedly: {how}");
                self.launcher.logs.push(&line);
                tracing::error!(how, ran_s = ran.as_secs(), "the core ended unexpectedly");
                (ran, how, Because::Ended)
            }
            CoreEvent::RetryDue => match applied
                .launch(&self.launcher, READY_DEADLINE, Launch::Again)
                .await
            {
                Ok(core) => {
                    return self.serve(core, applied).await;
                }
                Err(error) => {
                    tracing::error!(%error, "the core can't be started again");
                    (Duration::ZERO, error.to_string(), Because::NotStarted)
                }
            },
        };
        self.phase = match self.endurance.failed(ran, rand::random()) {
            Verdict::Again { wait, failures } => {
                let wait_ms = wait.as_millis();
                tracing::info!(failures, wait_ms, "starting the core again");
                Phase::Down {
                    applied,
                    retry: tokio::time::Instant::now() + wait,
                    because,
                }
            }
            Verdict::Back { to, failures } => {
                let line = format!(
                    "the new configuration failed {failures} times, going back to the one before: {how}"
                );
                self.launcher.logs.push(&line);
                tracing::error!(
                    failures,
                    "the new configuration fails, going back to the one before"
                );
                if let Some(parts) = to.parts
                    && self
                        .launcher
                        .set_parts_if_others(&self.launcher.parts().with_files_of(&parts))
                {
                    tracing::error!(binary = %parts.binary.display(), "and to what its core was made of");
                }
                Phase::Down {
                    applied: to.applied.with_users_of(&applied),
                    retry: tokio::time::Instant::now(),
                    because,
                }
            }
            Verdict::GiveUp { failures } => {
                let line = format!("the core failed {failures} times and stays down: {how}");
                self.launcher.logs.push(&line);
                tracing::error!(
                    failures,
                    how,
                    "the core stays down until a panel starts the node"
                );
                Phase::GaveUp {
                    applied,
                    why: line.into(),
                }
            }
        };
        self.publish();
    }
}
