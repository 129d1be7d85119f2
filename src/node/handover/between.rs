//! The steps of a hand-over between two real cores.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ports::{Sockets, listens, takers};
use crate::node::Error;
use crate::node::applied::Applied;
use crate::node::harvesting::source;
use crate::node::last_good::LastGood;
use crate::usage::harvest::Harvester;
use crate::xray::client;
use crate::xray::config::{Endpoint, Place};
use crate::xray::core::{self, Coming, Core, InboundSocket, Launcher};
use crate::xray::handover::Mode;
use crate::xray::handover::groups::{Group, Groups};
use crate::xray::handover::inbounds::{Leaving, Listening};
use crate::xray::handover::journal::{Drained, Journal};
use crate::xray::handover::procedure::{Noted, Side, World};

/// How long a new core may take to be ready: so long, and so long for every thousand users.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_PER_THOUSAND: Duration = Duration::from_millis(50);

/// What a hand-over is made with, besides the two cores.
pub(in crate::node) struct Means<'a> {
    pub(in crate::node) launcher: &'a Launcher,
    pub(in crate::node) harvester: &'a Harvester,
    pub(in crate::node) last_good: &'a mut LastGood,
    pub(in crate::node) keep_alive: Option<Duration>,
    pub(in crate::node) groups: &'a mut Groups,
    pub(in crate::node) journal: &'a mut Journal,
    pub(in crate::node) mode: Mode,
}

/// The core that shall serve, and what it is given.
pub(in crate::node) struct Successor {
    pub(in crate::node) applied: Applied,
    pub(in crate::node) core: Option<Core>,
    /// How long it took to try its configuration, which is all of a start but the listening.
    pub(in crate::node) tried: Duration,
}

/// Two cores, one of which makes way.
pub(in crate::node) struct Between<'a> {
    means: Means<'a>,
    old: &'a Core,
    before: &'a Applied,
    /// A unix socket could not be given its name.
    unshown: Option<core::Error>,
    old_inbounds: Vec<Endpoint>,
    old_sockets: Sockets,
    new: Successor,
    new_sockets: Sockets,
    coming: Option<Coming>,
    /// Where the new one gets whatever comes in.
    steered: BTreeSet<Group>,
    leaving: Leaving,
}

impl<'a> Between<'a> {
    /// From `old`, which has `before`, to a core that has `new`.
    pub(in crate::node) fn new(
        means: Means<'a>,
        (old, before): (&'a Core, &'a Applied),
        new: Successor,
    ) -> Self {
        let old_inbounds: Vec<Endpoint> = before.skeleton.endpoints().collect();
        let old_sockets = Sockets::of(old.pid(), &old_inbounds);
        means.groups.set(old.id(), &old_sockets.groups());
        let mut between = Self {
            means,
            old,
            before,
            unshown: None,
            old_inbounds,
            old_sockets,
            new,
            new_sockets: Sockets::default(),
            coming: None,
            steered: BTreeSet::new(),
            leaving: Leaving::default(),
        };
        between.look_at_new();
        between
    }

    /// The new core with what it has, and how the old one leaves.
    pub(in crate::node) fn into_parts(self) -> (Successor, Drained) {
        (
            self.new,
            Drained::new(self.old.record().clone(), self.leaving),
        )
    }

    fn look_at_new(&mut self) {
        if let Some(core) = &self.new.core {
            let inbounds: Vec<Endpoint> = self.new.applied.skeleton.endpoints().collect();
            self.new_sockets = Sockets::of(core.pid(), &inbounds);
            let groups = self.new_sockets.groups();
            self.means.groups.set(core.id(), &groups);
        }
    }

    /// Steers one group; whether the kernel does it.
    fn steer(&self, group: &Group, to: Side) -> bool {
        let (core, sockets) = match (to, &self.new.core) {
            (Side::Old, _) => (self.old.id(), &self.old_sockets),
            (Side::New, Some(core)) => (core.id(), &self.new_sockets),
            (Side::New, None) => return false,
        };
        let place = self.means.groups.place(group, core);
        let (Some(place), Some(listener), Some(lender)) =
            (place, sockets.only(group), &sockets.lender)
        else {
            return false;
        };
        match lender.steer(listener, place) {
            Ok(()) => true,
            Err(error) => {
                let address = group.address;
                tracing::debug!(%address, %error, "the kernel does not steer here");
                false
            }
        }
    }

    async fn start(&mut self) -> Result<(), Error> {
        let skeleton = Arc::clone(&self.new.applied.skeleton);
        let inbounds: Vec<Endpoint> = skeleton.endpoints().collect();
        let known = |inbound: &&Endpoint| {
            !self
                .old_inbounds
                .iter()
                .any(|old| old.place == inbound.place)
        };
        for inbound in inbounds.iter().filter(known) {
            if let Place::Path(path) = &inbound.place {
                InboundSocket::is_free(path).await?;
            }
        }
        self.free_names(&inbounds).await?;
        let Self { means, new, .. } = self;
        new.applied.settle_unanswered();
        let coming = means
            .launcher
            .bring_up(&skeleton, &new.applied.roster)
            .await?;
        let coming = self.coming.insert(coming);
        means.journal.next = Some(coming.record().clone());
        means.journal.flipping = false;
        write(means)?;
        let users = new.applied.roster.len();
        let thousands = u32::try_from(users / 1000).unwrap_or(u32::MAX);
        let patience =
            PATIENCE + PATIENCE_PER_THOUSAND.saturating_mul(thousands) + 3 * self.new.tried;
        let deadline = Instant::now() + patience;
        coming.ready(patience).await?;
        listens(coming, &inbounds, deadline).await?;
        let Some(coming) = self.coming.take() else {
            return Err(Error::ShuttingDown);
        };
        let core = self.new.core.insert(coming.into_core()?);
        let unlike = ask(core, &self.new.applied).await?;
        if let Some(unlike) = unlike {
            return Err(Error::Failed(unlike));
        }
        self.new.applied.override_balancers(core).await;
        self.look_at_new();
        Ok(())
    }

    /// A socket with a name and no file can be had once: the old core has to give it up first.
    async fn free_names(&mut self, inbounds: &[Endpoint]) -> Result<(), Error> {
        let given_up: Vec<String> = self
            .old_inbounds
            .iter()
            .filter(|old| matches!(old.place, Place::Abstract(_)))
            .filter(|old| inbounds.iter().any(|new| new.place == old.place))
            .map(|old| old.tag.clone())
            .collect();
        if given_up.is_empty() {
            return Ok(());
        }
        // First, so that the next daemon opens them again where this one can't.
        self.means.journal.given_up.clone_from(&given_up);
        write(&self.means)?;
        for tag in given_up {
            tracing::warn!(
                inbound = tag,
                "nobody can connect to this inbound until the new core is ready: two cores can't share a socket without a file"
            );
            if let Err(error) = self.old.client().remove_inbound(&tag).await {
                tracing::warn!(inbound = tag, %error, "the old core does not give its socket up");
            }
        }
        Ok(())
    }

    /// The new one does not take over what the old one has closed for it.
    async fn take_names_back(&mut self) {
        let tags = std::mem::take(&mut self.means.journal.given_up);
        open_again(self.means.launcher, self.old, self.before, &tags).await;
    }

    /// Makes sure by connections of ours that the new core takes what is steered to it. Where it does not,
    /// the old one has to close its listener.
    async fn try_steered(&mut self) -> Result<(), Error> {
        let Some(new) = &self.new.core else {
            return Ok(());
        };
        let steered = self.steered.iter().copied().collect();
        for (group, taker) in takers(steered, &[new.pid(), self.old.pid()]).await {
            if new.has_ended() {
                return Err(ended(new).await);
            }
            if taker != Some(new.pid()) {
                tracing::warn!(address = %group.address, taker, "new connections do not go to the new core here, the old one closes its listener");
                self.steered.remove(&group);
            }
        }
        Ok(())
    }
}

impl World for Between<'_> {
    type Error = Error;

    async fn note(&mut self, noted: Noted) -> Result<(), Error> {
        let journal = &mut *self.means.journal;
        match noted {
            Noted::Nothing => {
                journal.next = None;
                journal.flipping = false;
            }
            Noted::Flipping => {
                let Some(new) = &self.new.core else {
                    return Err(Error::CoreNotStarted);
                };
                let keep_alive = self.means.keep_alive;
                let saved = tokio::task::block_in_place(|| {
                    self.means
                        .last_good
                        .save_next(new.id(), &self.new.applied, keep_alive)
                });
                saved.map_err(|source| core::Error::Io {
                    path: self.means.launcher.runtime_dir.clone(),
                    source,
                })?;
                journal.next = Some(new.record().clone());
                journal.flipping = true;
            }
            Noted::Draining => {
                let Some(new) = &self.new.core else {
                    return Err(Error::CoreNotStarted);
                };
                let listening = Listening {
                    inbounds: &self.old_inbounds,
                    old: &self.old_sockets.groups(),
                    new: &self.new_sockets.groups(),
                    steered: &self.steered,
                };
                self.leaving = listening.leaving();
                for lost in listening.lost() {
                    tracing::warn!(
                        inbound = lost.tag,
                        what = lost.what,
                        "this can't live through a hand-over"
                    );
                }
                let drained = Drained::new(self.old.record().clone(), self.leaving.clone());
                let before = journal.clone();
                journal.serving = Some(new.record().clone());
                journal.next = None;
                journal.flipping = false;
                journal.given_up.clear();
                journal.draining.push(drained);
                journal.groups.clone_from(self.means.groups);
                let written = write(&self.means);
                if written.is_err() {
                    *self.means.journal = before;
                }
                return written;
            }
        }
        write(&self.means)
    }

    async fn turn(&mut self, to: Side) {
        let groups = match to {
            Side::Old => self.old_sockets.groups(),
            Side::New => self.new_sockets.groups(),
        };
        let old = self.old_sockets.groups();
        let shared = groups.into_iter().filter(|group| old.contains(group));
        let steers = self.means.mode == Mode::Auto;
        self.steered = shared
            .filter(|group| steers && self.steer(group, to))
            .collect();
        let shown = match (to, &self.new.core) {
            (Side::New, Some(new)) => new.show_sockets(),
            _ => self.old.show_sockets(),
        };
        self.unshown = shown.err();
        if let Some(error) = &self.unshown {
            tracing::warn!(%error, "a unix socket of an inbound does not get its name");
        }
    }

    async fn bring_up(&mut self) -> Result<(), Error> {
        self.start().await
    }

    async fn harvest(&mut self) {
        self.means.harvester.last(&source(self.old)).await;
    }

    async fn check(&mut self) -> Result<(), Error> {
        if let Some(error) = self.unshown.take() {
            return Err(error.into());
        }
        self.try_steered().await?;
        let Some(new) = &self.new.core else {
            return Err(Error::CoreNotStarted);
        };
        if new.has_ended() {
            return Err(ended(new).await);
        }
        new.client().sys_stats().await.map_err(Error::Read)?;
        Ok(())
    }

    async fn discard(&mut self) {
        self.coming = None;
        if let Some(core) = self.new.core.take() {
            self.means.groups.remove(core.id());
            core.kill().await;
        }
        self.take_names_back().await;
    }
}

fn write(means: &Means<'_>) -> Result<(), Error> {
    let folder = &means.launcher.runtime_dir;
    means.journal.write(folder).map_err(|source| {
        core::Error::Io {
            path: folder.join("handover.json"),
            source,
        }
        .into()
    })
}

async fn ended(core: &Core) -> Error {
    core::Error::Refused(core.ended().await).into()
}

/// Opens inbounds again that a core had closed for one that does not come.
pub(in crate::node) async fn open_again(
    launcher: &Launcher,
    core: &Core,
    applied: &Applied,
    tags: &[String],
) {
    if tags.is_empty() {
        return;
    }
    let opened = launcher.open_inbounds(core, &applied.skeleton, &applied.roster, tags);
    match opened.await {
        Ok(()) => tracing::info!(?tags, "the old core has its sockets again"),
        Err(error) => {
            tracing::error!(?tags, %error, "the old core does not open these inbounds again; a fresh core does");
        }
    }
}

/// Whether the new core has the users that it was given; what it has instead, where not.
async fn ask(core: &Core, applied: &Applied) -> Result<Option<String>, Error> {
    for (tag, users) in applied.roster.inbounds() {
        let count = match core.client().user_count(tag).await {
            Ok(count) => count,
            Err(client::Error::Unsupported(_)) => continue,
            Err(error) => return Err(Error::Read(error)),
        };
        // An empty Shadowsocks 2022 inbound has one who can't be anybody.
        let given = users.users.values().flatten().count();
        if count < given {
            return Ok(Some(format!(
                "the new core has {count} users on inbound {tag:?} instead of {given}"
            )));
        }
    }
    Ok(None)
}
