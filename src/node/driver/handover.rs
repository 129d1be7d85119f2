//! From the core that serves to another one beside it, and what becomes of those that made way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use uuid::Uuid;

use super::Driver;
use crate::host;
use crate::node::Error;
use crate::node::applied::Applied;
use crate::node::apply::change_users;
use crate::node::handover::{
    Between, Drain, Event, GivenBack, Means, Successor, What, groups_of, is_inbound, takers,
};
use crate::node::phase::Phase;
use crate::node::plan;
use crate::node::user::Email;
use crate::usage::book::Epoch;
use crate::xray::config::{Endpoint, Place};
use crate::xray::core::{Core, Parts};
use crate::xray::handover::groups::{Group, Groups};
use crate::xray::handover::journal::{Drained, Journal};
use crate::xray::handover::procedure;
use crate::xray::handover::sockets;
use crate::xray::handover::steering::Lender;
use crate::xray::handover::{Mode, Policy, Tally};

/// How many cores drain at once; for one more the one with the fewest connections ends.
const DRAINING: usize = 2;
/// How many words of cores that drain wait for the driver.
pub(super) const EVENTS: usize = 16;

/// The cores beside the one that serves.
pub(super) struct Beside {
    pub(super) policy: Policy,
    pub(super) journal: Journal,
    pub(super) groups: Groups,
    pub(super) drains: Vec<Drain>,
    pub(super) events: mpsc::Sender<Event>,
    /// Whoever leaves a port, or leads connections from one core to another, does it alone.
    ports: Arc<Mutex<()>>,
    /// What served before, as long as its core could serve again.
    pub(super) before: Option<Before>,
    pub(super) tally: Tally,
}

impl Beside {
    pub(super) fn new(
        policy: Policy,
        journal: Journal,
        groups: Groups,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            policy,
            journal,
            groups,
            drains: Vec::new(),
            events,
            ports: Arc::default(),
            before: None,
            tally: Tally::default(),
        }
    }
}

/// What served before, and for how long it had.
pub(super) struct Before {
    core: Uuid,
    applied: Applied,
    ran: Duration,
}

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
        let _ports = self.make_room().await;
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
            groups: &mut beside.groups,
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
        let (Some(core), Ok(())) = (core, &handed_over) else {
            tracing::warn!("the new core does not take over, the one that serves was left alone");
            self.beside.tally.refused += 1;
            return handed_over.and(Err(Error::CoreNotStarted));
        };
        let form = drained.leaving.form();
        self.beside.tally.note(form);
        tracing::info!(
            because,
            form = form.name(),
            took_ms = began.elapsed().as_millis(),
            pid = core.pid(),
            "new connections go to the new core"
        );
        self.succeed(core, applied, drained);
        Ok(())
    }

    /// Waits until the cores that drain have closed their listeners, and ends one of them where there is no
    /// room for one more. While what is returned here is kept, none of them leaves a port.
    async fn make_room(&mut self) -> OwnedMutexGuard<()> {
        loop {
            let open = self.beside.drains.iter().any(|drain| !drain.is_closed());
            let full = self.beside.drains.len() >= DRAINING;
            if !open && full {
                self.end_the_emptiest();
            }
            if open || full {
                if let Some(event) = self.from_drains.recv().await {
                    self.on_drain(event);
                }
                continue;
            }
            let ports = Arc::clone(&self.beside.ports).lock_owned().await;
            while let Ok(event) = self.from_drains.try_recv() {
                self.on_drain(event);
            }
            return ports;
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
    pub(super) fn succeed(&mut self, core: Core, applied: Applied, drained: Drained) {
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
                applied: before,
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
        self.serve(core, applied);
        self.last_good.forget_next();
    }

    /// Cores that a daemon before this one let drain.
    pub(super) fn go_on_draining(&mut self, found: Vec<(Core, Drained)>, gone: &[String]) {
        for (core, drained) in found {
            let drain = self.drain(core, drained);
            self.beside.drains.push(drain);
        }
        self.cut(gone);
        self.write_journal();
        self.harvester.only(self.alive());
    }

    /// Leads connections to the core that serves where the last daemon may have left them to another one. The
    /// order in which the kernel has those that share a port may be another one than we believe, when several
    /// have ended while nobody looked: so it is tried.
    pub(super) async fn find_the_one_that_serves(&mut self) {
        let Phase::Serving { core, .. } = &self.phase else {
            return;
        };
        let (pid, shared) = (core.pid(), self.beside.groups.shared(core.id()));
        if shared.is_empty() || self.beside.policy.mode != Mode::Auto {
            return;
        }
        self.steer_to_the_one_that_serves();
        let drains = self.beside.drains.iter().map(|drain| drain.pid);
        let pids: Vec<i32> = std::iter::once(pid).chain(drains).collect();
        for (group, taker) in takers(shared, &pids).await {
            if taker == Some(pid) {
                continue;
            }
            for place in 0..self.beside.groups.size(&group) {
                self.steer(&group, Some(place));
                if let [(_, Some(taker))] = takers(vec![group], &pids).await.as_slice()
                    && *taker == pid
                {
                    break;
                }
            }
        }
    }

    fn drain(&self, core: Core, drained: Drained) -> Drain {
        let means = (Arc::clone(&self.launcher), Arc::clone(&self.harvester));
        let driver = (self.beside.events.clone(), Arc::clone(&self.beside.ports));
        let timeout = self.beside.policy.drain_timeout;
        Drain::begin(core, drained, means, timeout, driver)
    }

    pub(super) fn on_drain(&mut self, Event { core, what }: Event) {
        match what {
            What::Closed => {
                if let Some(Before { applied, ran, .. }) =
                    self.beside.before.take_if(|before| before.core == core)
                {
                    self.endurance.replaced(applied, ran);
                }
                self.left_its_ports(core);
            }
            What::Ended => self.forget(core),
        }
    }

    /// A core that drains has closed its listeners.
    fn left_its_ports(&mut self, core: Uuid) {
        let mut drains = self.beside.drains.iter_mut();
        let Some(drain) = drains.find(|drain| drain.source.epoch == core) else {
            return;
        };
        drain.drained.leaving.close();
        let ports = drain.drained.leaving.ports.clone();
        let groups = groups_of(drain.pid, |port| {
            ports.iter().any(|range| range.contains(&port))
        });
        self.beside.groups.set(core, &groups);
        self.steer_to_the_one_that_serves();
        self.write_journal();
    }

    /// A core that drained is gone.
    fn forget(&mut self, core: Uuid) {
        if let Some(Before { applied, ran, .. }) =
            self.beside.before.take_if(|before| before.core == core)
        {
            self.endurance.replaced(applied, ran);
        }
        self.beside
            .drains
            .retain(|drain| drain.source.epoch != core);
        self.beside.groups.remove(core);
        self.steer_to_the_one_that_serves();
        self.write_journal();
        self.harvester.only(self.alive());
        self.publish();
    }

    /// One that leaves a group moves another one to its place.
    pub(super) fn steer_to_the_one_that_serves(&self) {
        if let Phase::Serving { core, .. } = &self.phase
            && self.beside.policy.mode == Mode::Auto
        {
            for group in self.beside.groups.shared(core.id()) {
                self.steer(&group, self.beside.groups.place(&group, core.id()));
            }
        }
    }

    /// Leads whatever comes in to this place in a group.
    fn steer(&self, group: &Group, place: Option<u32>) {
        let Phase::Serving { core, .. } = &self.phase else {
            return;
        };
        let port = group.address.port();
        let listeners = sockets::listeners(core.pid(), |other| other == port);
        let listeners = listeners.unwrap_or_default();
        let listener = listeners.iter().find(|listener| listener.group == *group);
        if let (Some(place), Some(listener), Ok(lender)) =
            (place, listener, Lender::new(core.pid()))
            && let Err(error) = lender.steer(listener, place)
        {
            tracing::warn!(address = %group.address, %error, "connections may go to a core that drains");
        }
    }

    /// The core that serves has opened its ports, or has just been found.
    pub(super) fn know_its_ports(&mut self) {
        self.beside.groups.only(&self.alive());
        if let Phase::Serving { core, applied } = &self.phase
            && self.beside.groups.of(core.id()).is_empty()
        {
            let inbounds: Vec<Endpoint> = applied.skeleton.endpoints().collect();
            let groups = groups_of(core.pid(), |port| is_inbound(&inbounds, port));
            self.beside.groups.set(core.id(), &groups);
            self.steer_to_the_one_that_serves();
        }
    }

    pub(super) fn write_journal(&mut self) {
        let journal = &mut self.beside.journal;
        journal.draining = self
            .beside
            .drains
            .iter()
            .map(|drain| drain.drained.clone())
            .collect();
        journal.groups.clone_from(&self.beside.groups);
        if let Err(error) = journal.write(&self.launcher.runtime_dir) {
            tracing::error!(%error, "the next daemon will end the cores that drain");
        }
    }

    /// The core that served before serves again, where the one that followed it died at once: nobody but
    /// those who were with that one is cut.
    pub(super) async fn return_to_the_old_core(&mut self, how: &str) -> bool {
        let Some(before) = self.beside.before.take() else {
            return false;
        };
        let mut drains = self.beside.drains.iter();
        let Some(place) = drains.position(|drain| drain.source.epoch == before.core) else {
            return false;
        };
        let drain = self.beside.drains.remove(place);
        let Some(GivenBack { core: old, gone }) = drain.give_back().await else {
            self.beside.drains.insert(place, drain);
            self.endurance.replaced(before.applied, before.ran);
            return false;
        };
        tracing::error!(
            how,
            pid = old.pid(),
            "the new core died at once, the one before serves again"
        );
        let Phase::Serving {
            core: dead,
            applied: failed,
        } = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return false;
        };
        self.setbacks
            .note(Arc::clone(&failed.skeleton), how.to_owned(), Instant::now());
        if let Err(error) = old.show_sockets() {
            tracing::warn!(%error, "a unix socket of an inbound leads nowhere");
        }
        let mut applied = before.applied;
        for email in &gone {
            applied.roster.forget(&Email::from(email.as_str()));
        }
        let mut wanted = applied.roster.clone();
        wanted.take_over(&failed.roster);
        // In this order: a daemon that dies in between is followed by one that finds this core.
        let keep_alive = self.keep_alive;
        tokio::task::block_in_place(|| self.last_good.save(old.id(), &applied, keep_alive));
        self.launcher.write_record(old.record());
        self.beside.journal.serving = None;
        self.write_journal();
        dead.stop().await;
        let changes = plan::replace_all(&applied.roster, &wanted);
        let made = change_users(old.client(), &mut applied, &mut self.last_good, changes).await;
        if let Err(error) = made {
            tracing::error!(%error, "not all users of the core are as they should be; the panel's next list puts that right");
        }
        self.serve(old, applied);
        true
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

    /// Every core that is alive.
    pub(super) fn alive(&self) -> Vec<Epoch> {
        let serving = match &self.phase {
            Phase::Serving { core, .. } => Some(core.id()),
            _ => None,
        };
        let drains = self.beside.drains.iter().map(|drain| drain.source.epoch);
        serving.into_iter().chain(drains).collect()
    }

    /// Ends the cores that drain.
    pub(super) async fn end_drains(&mut self, why: &'static str) {
        self.beside.before = None;
        let drains = std::mem::take(&mut self.beside.drains);
        futures_util::future::join_all(drains.iter().map(|drain| drain.end(why))).await;
        for drain in drains {
            self.beside.groups.remove(drain.source.epoch);
        }
        self.write_journal();
    }

    /// Users who are served nowhere any more are cut in the cores that drain, too.
    pub(super) fn cut(&self, gone: &[String]) {
        for drain in &self.beside.drains {
            drain.cut(gone);
        }
    }
}
