//! What becomes of cores that have made way.

use std::sync::Arc;

use super::Driver;
use super::beside::Before;
use crate::node::handover::{Drain, Event, What};
use crate::node::phase::Phase;
use crate::usage::book::Epoch;
use crate::xray::config::Endpoint;
use crate::xray::core::Core;
use crate::xray::handover::journal::Drained;

impl Driver {
    /// Cores that a daemon before this one let drain.
    pub(super) async fn go_on_draining(&mut self, found: Vec<(Core, Drained)>, gone: &[String]) {
        for (core, drained) in found {
            let drain = self.drain(core, drained);
            self.beside.drains.push(drain);
        }
        self.cut(gone);
        self.harvester.only(self.alive());
        self.tell_who_serves().await;
        let drains = self.beside.drains.iter().map(|drain| drain.pid);
        let ports = self.beside.ports.lock().await;
        ports.find_the_one_that_serves(drains).await;
        drop(ports);
        self.write_journal().await;
    }

    pub(super) async fn tell_who_serves(&self) {
        if let Phase::Serving { core, applied } = &self.phase {
            let inbounds: Vec<Endpoint> = applied.skeleton.endpoints().collect();
            let mut ports = self.beside.ports.lock().await;
            ports.serves(core, &inbounds, &self.alive());
        }
    }

    pub(super) fn drain(&self, core: Core, drained: Drained) -> Drain {
        let means = (Arc::clone(&self.launcher), Arc::clone(&self.harvester));
        let driver = (self.beside.events.clone(), Arc::clone(&self.beside.ports));
        let timeout = self.beside.policy.drain_timeout;
        Drain::begin(core, drained, means, timeout, driver)
    }

    pub(super) async fn on_drain(&mut self, Event { core, what }: Event) {
        if let Some(Before { former, ran, .. }) =
            self.beside.before.take_if(|before| before.core == core)
        {
            self.endurance.replaced(former, ran);
        }
        let drains = &mut self.beside.drains;
        match what {
            What::Closed => {
                if let Some(drain) = drains.iter_mut().find(|drain| drain.source.epoch == core) {
                    drain.drained.leaving.close();
                }
            }
            What::Ended => {
                drains.retain(|drain| drain.source.epoch != core);
                self.harvester.only(self.alive());
                self.publish();
            }
        }
        self.write_journal().await;
    }

    pub(super) async fn write_journal(&mut self) {
        let groups = self.beside.ports.lock().await.groups.clone();
        let journal = &mut self.beside.journal;
        journal.draining = self
            .beside
            .drains
            .iter()
            .map(|drain| drain.drained.clone())
            .collect();
        journal.groups = groups;
        if let Err(error) = journal.write(&self.launcher.runtime_dir) {
            tracing::error!(%error, "the next daemon will end the cores that drain");
        }
    }

    /// Every core that is alive.
    pub(super) fn alive(&self) -> Vec<Epoch> {
        let serving = match &self.phase {
            Phase::Serving { core, .. } => Some(core.id()),
            _ => None,
        };
        let drains = self.beside.drains.iter().map(|drain| drain.source.epoch);
        serving.into_iter().chain(drains).collect()
    }

    /// Users who are served nowhere any more are cut in the cores that drain, too.
    pub(super) fn cut(&self, gone: &[String]) {
        for drain in &self.beside.drains {
            drain.cut(gone);
        }
    }
}
