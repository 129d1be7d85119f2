//! From the core that serves to another one beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use super::Driver;
use super::beside::Before;
use crate::host;
use crate::node::Error;
use crate::node::applied::{Applied, Former};
use crate::node::handover::{Between, Drain, Means, SharedPorts, Successor};
use crate::node::phase::Phase;
use crate::telemetry::metrics::Launch;
use crate::xray::config::Place;
use crate::xray::core::Core;
use crate::xray::handover::Mode;
use crate::xray::handover::journal::Drained;
use crate::xray::handover::{procedure, sockets};
use crate::xray::parts::Parts;

/// How many cores drain at once; for one more the one with the fewest connections ends.
const DRAINING: usize = 2;

impl Driver {
    /// Why no second core can be started beside the one that serves; `None` when it can.
    pub(super) fn alone(&self) -> Option<String> {
        let Phase::Serving { core, applied } = &self.phase else {
            return Some("no core serves".to_owned());
        };
        let mut inbounds = applied.skeleton.endpoints().map(|inbound| inbound.place);
        if inbounds.any(|place| matches!(place, Place::Nowhere)) {
            return Some("only one core can have the TUN device".to_owned());
        }
        if core.parts().is_none() && applied.skeleton.unix_sockets().next().is_some() {
            return Some(
                "an older daemon started it, on unix sockets that only one can have".to_owned(),
            );
        }
        if self.beside.policy.mode == Mode::Off {
            return Some("HANDOVER=off".to_owned());
        }
        if sockets::user_of(core.pid()).is_some_and(|user| user != nix::unistd::geteuid().as_raw())
        {
            return Some("it runs as another user, who would not share its ports".to_owned());
        }
        let needs = core.memory().map(|bytes| bytes + bytes / 3)?;
        let has = host::memory_to_spare()?;
        (has < needs).then(|| {
            format!(
                "a second core would need {} MiB of memory, and {} MiB are left",
                needs >> 20,
                has >> 20
            )
        })
    }

    /// Starts a core beside the one that serves and leads new connections to it. After an error the old
    /// one serves on as if nothing had been.
    pub(super) async fn hand_over(
        &mut self,
        (applied, tried): (Applied, Duration),
        because: &str,
    ) -> Result<(), Error> {
        let mut ports = self.make_room().await;
        let began = Instant::now();
        let Self {
            phase,
            launcher,
            harvester,
            last_good,
            keep_alive,
            beside,
            ..
        } = self;
        let Phase::Serving {
            core: old,
            applied: before,
        } = phase
        else {
            return Err(Error::CoreNotStarted);
        };
        tracing::info!(
            because,
            pid = old.pid(),
            "handing over to a new core beside the one that serves"
        );
        let means = Means {
            launcher,
            harvester,
            last_good,
            keep_alive: *keep_alive,
            groups: &mut ports.groups,
            journal: &mut beside.journal,
            mode: beside.policy.mode,
        };
        let successor = Successor {
            applied,
            core: None,
            tried,
        };
        let mut between = Between::new(means, (old, before), successor);
        let handed_over = procedure::hand_over(&mut between).await;
        let (Successor { applied, core, .. }, drained) = between.into_parts();
        drop(ports);
        self.launcher
            .metrics
            .launched(Launch::Handover, handed_over.is_ok());
        let (Some(core), Ok(())) = (core, &handed_over) else {
            tracing::warn!("the new core does not take over, the one that serves was left alone");
            self.beside.tally.refused += 1;
            self.publish();
            return handed_over.and(Err(Error::CoreNotStarted));
        };
        let form = drained.leaving.form();
        self.beside.tally.note(form);
        self.takes(&format!(
            "handed over to a new core, {} ({because})",
            form.name()
        ));
        tracing::info!(
            because,
            form = form.name(),
            took_ms = began.elapsed().as_millis(),
            pid = core.pid(),
            "new connections go to the new core"
        );
        self.succeed(core, applied, drained).await;
        Ok(())
    }

    /// Waits until the cores that drain have closed their listeners, and ends one of them where there is no
    /// room for one more. While what is returned here is kept, none of them leaves a port.
    async fn make_room(&mut self) -> OwnedMutexGuard<SharedPorts> {
        loop {
            let open = self.beside.drains.iter().any(|drain| !drain.is_closed());
            let full = self.beside.drains.len() >= DRAINING;
            if !open && full {
                self.end_the_emptiest();
            }
            if open || full {
                if let Some(event) = self.from_drains.recv().await {
                    self.on_drain(event).await;
                }
                continue;
            }
            let ports = Arc::clone(&self.beside.ports).lock_owned().await;
            let Ok(event) = self.from_drains.try_recv() else {
                return ports;
            };
            drop(ports);
            self.on_drain(event).await;
        }
    }

    /// Of the cores that drain, the one with the fewest connections ends.
    fn end_the_emptiest(&self) {
        let drains = self.beside.drains.iter();
        let count =
            |drain: &&Drain| tokio::task::block_in_place(|| drain.count()).unwrap_or(usize::MAX);
        if let Some(drain) = drains.min_by_key(count) {
            drain.ask_to_end("there is room for two cores that drain");
        }
    }

    /// The new core serves, and the one that did drains.
    pub(super) async fn succeed(&mut self, core: Core, applied: Applied, drained: Drained) {
        let ran = self.runs_for();
        self.launcher.write_record(core.record());
        if let Phase::Serving {
            core: old,
            applied: before,
        } = std::mem::replace(&mut self.phase, Phase::Idle)
        {
            let gone = before.roster.gone_in(&applied.roster);
            self.beside.before = Some(Before {
                core: old.id(),
                former: Former {
                    applied: before,
                    parts: old.parts().cloned(),
                },
                ran,
            });
            tracing::info!(
                pid = old.pid(),
                timeout_s = self.beside.policy.drain_timeout.as_secs(),
                "the old core drains: it keeps its connections until they end"
            );
            let drain = self.drain(old, drained);
            self.beside.drains.push(drain);
            // Also in those that have been draining for longer.
            self.cut(&gone);
        }
        self.serve(core, applied).await;
        self.last_good.forget_next();
    }

    /// The same configuration on a core of its own, when nobody asked for another one.
    pub(super) async fn renew(&mut self, because: &str) -> Result<(), Error> {
        let Phase::Serving { applied, .. } = &self.phase else {
            return Err(Error::CoreNotStarted);
        };
        let again = applied.again();
        self.hand_over((again, Duration::ZERO), because).await
    }

    /// Later cores are made of these parts. The one that serves makes way for one that is, where it is made
    /// of others; when that one does not get ready, the parts of before stay.
    pub(super) async fn take_parts(&mut self, parts: Parts) -> Result<(), Error> {
        let before = self.launcher.parts();
        self.launcher.set_parts(parts);
        let Phase::Serving { core, .. } = &self.phase else {
            // Nothing can be tried but whether it is an Xray at all.
            if let Err(error) = self.launcher.version().await
                && !before.is_same_binary(&self.launcher.parts())
            {
                self.launcher.set_parts(before);
                return Err(error.into());
            }
            let differ = before.differences(&self.launcher.parts());
            let waits = matches!(self.phase, Phase::Down { .. } | Phase::GaveUp { .. });
            if waits && !differ.is_empty() {
                self.takes(&format!(
                    "the core is started again ({})",
                    differ.join(", ")
                ));
                self.try_again_now().await;
            }
            return Ok(());
        };
        let now = self.launcher.parts();
        let differ = match core.parts() {
            Some(parts) => parts.differences(&now),
            None => vec!["an older daemon started it".to_owned()],
        };
        if differ.is_empty() {
            return Ok(());
        }
        let because = differ.join(", ");
        if let Some(why) = self.alone() {
            tracing::warn!(
                because,
                why,
                "the core that serves stays as it is until it is started anew, because no other one can be started beside it"
            );
            self.takes(&format!(
                "the core that serves stays until it is started anew ({because}; {why})"
            ));
            return Ok(());
        }
        let renewed = match self.launcher.version().await {
            Ok(version) => {
                tracing::info!(because, %version, "the core is to be made of other parts");
                self.renew(&because).await
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &renewed {
            tracing::error!(%error, because, "the core that serves stays as it is");
            self.launcher.set_parts(before);
        }
        renewed
    }
}
