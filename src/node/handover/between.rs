//! The steps of a hand-over between two real cores.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::TcpStream;

use crate::node::Error;
use crate::node::applied::Applied;
use crate::node::harvesting::source;
use crate::node::last_good::LastGood;
use crate::usage::harvest::Harvester;
use crate::xray::client;
use crate::xray::config::{Endpoint, Place};
use crate::xray::core::{self, Coming, Core, InboundSocket, Launcher};
use crate::xray::handover::Mode;
use crate::xray::handover::groups::{Group, Groups, Protocol};
use crate::xray::handover::inbounds::{Leaving, Listening};
use crate::xray::handover::journal::{Drained, Journal};
use crate::xray::handover::procedure::{Noted, Side, World};
use crate::xray::handover::sockets::{self, Listener};
use crate::xray::handover::steering::Lender;

/// How long a new core may take to be ready: so long, and so long for every thousand users.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_PER_THOUSAND: Duration = Duration::from_millis(50);
/// How often its sockets are looked at while it opens them.
const LOOK: Duration = Duration::from_millis(5);
/// A core whose sockets have not changed for so long has opened what it opens.
const STILL: Duration = Duration::from_secs(2);
/// How long a core that listens may take to accept a connection of ours.
const ACCEPTS: Duration = Duration::from_secs(1);
/// So many ports are tried by a connection; those of a range are all alike.
const TRIED: usize = 64;

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

/// Where a core listens, and how its sockets can be had; nothing where nobody may look.
#[derive(Default)]
struct Sockets {
    lender: Option<Lender>,
    listeners: Vec<Listener>,
}

impl Sockets {
    /// Those of a core with these inbounds.
    fn of(pid: i32, inbounds: &[Endpoint]) -> Self {
        let listeners = match sockets::listeners(pid, |port| is_inbound(inbounds, port)) {
            Ok(mut listeners) => {
                listeners.retain(|listener| is_inbound(inbounds, listener.group.address.port()));
                listeners
            }
            Err(error) => {
                tracing::warn!(pid, %error, "nobody may see where this core listens");
                Vec::new()
            }
        };
        Self {
            lender: Lender::new(pid).ok(),
            listeners,
        }
    }

    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.listeners.iter().map(|one| one.group).collect();
        groups.dedup();
        groups
    }

    /// The one socket in a group. Of two, nobody knows which place is whose.
    fn only(&self, group: &Group) -> Option<&Listener> {
        let mut same = self.listeners.iter().filter(|one| one.group == *group);
        let first = same.next();
        same.next().is_none().then_some(first)?
    }
}

/// The groups that a process listens in on these ports; none where nobody may look.
pub(in crate::node) fn groups_of(pid: i32, is_inbound: impl Fn(u16) -> bool) -> Vec<Group> {
    let listeners = sockets::listeners(pid, &is_inbound).unwrap_or_default();
    let mut groups: Vec<Group> = listeners
        .iter()
        .map(|listener| listener.group)
        .filter(|group| is_inbound(group.address.port()))
        .collect();
    groups.dedup();
    groups
}

/// Whether one of these inbounds listens on a port.
pub(in crate::node) fn is_inbound(inbounds: &[Endpoint], port: u16) -> bool {
    inbounds.iter().any(|inbound| match &inbound.place {
        Place::Ports(ports) => ports.is_empty() || ports.iter().any(|range| range.contains(&port)),
        Place::Path(_) | Place::Abstract(_) | Place::Nowhere => false,
    })
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
        if !listens(coming, &inbounds, deadline).await? {
            return Err(coming.not_ready(patience).await.into());
        }
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

/// Which of these processes takes a connection of ours to each of these groups, by those that can be tried;
/// `None` where nobody takes it.
pub(in crate::node) async fn takers(groups: Vec<Group>, pids: &[i32]) -> Vec<(Group, Option<i32>)> {
    let tried = groups
        .into_iter()
        .filter(|group| group.protocol == Protocol::Tcp)
        .take(TRIED);
    let connections = join_all(tried.map(connect)).await;
    let mut open: Vec<_> = connections.into_iter().flatten().collect();
    let mut found = Vec::new();
    let deadline = Instant::now() + ACCEPTS;
    while let Some((group, from, _)) = open.last() {
        let taker =
            tokio::task::block_in_place(|| sockets::taker(pids, *from, group.address.port()));
        if taker.is_none() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        found.push((*group, taker));
        open.pop();
    }
    found
}

async fn connect(group: Group) -> Option<(Group, SocketAddr, TcpStream)> {
    for address in reach(group.address) {
        let connecting = tokio::time::timeout(ACCEPTS, TcpStream::connect(address));
        if let Ok(Ok(stream)) = connecting.await {
            return Some((group, stream.local_addr().ok()?, stream));
        }
    }
    tracing::debug!(address = %group.address, "nobody can try from here who takes what comes in");
    None
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

/// Where a listener can be reached from this machine. One on all addresses of IPv6 has those of IPv4, too.
fn reach(address: SocketAddr) -> Vec<SocketAddr> {
    let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
    let ips = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![v4],
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v4, Ipv6Addr::LOCALHOST.into()],
        ip => vec![ip],
    };
    let port = address.port();
    ips.into_iter().map(|ip| (ip, port).into()).collect()
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

/// Waits until every port is open that the configuration names. An API may answer before that.
async fn listens(
    coming: &Coming,
    inbounds: &[Endpoint],
    deadline: Instant,
) -> Result<bool, core::Error> {
    let pid = coming.record().process.pid;
    let mut before = Vec::new();
    let mut changed = Instant::now();
    loop {
        let looked = Instant::now();
        let found = tokio::task::block_in_place(|| {
            sockets::listeners(pid, |port| is_inbound(inbounds, port))
        });
        let Ok(now) = found else {
            // Nobody may look; the API has answered.
            return Ok(true);
        };
        if now == before {
            let closed = closed_ports(inbounds, &now);
            if closed.is_empty() {
                return Ok(true);
            }
            if changed.elapsed() >= STILL {
                tracing::warn!(
                    pid,
                    ?closed,
                    "the new core does not listen on these ports, and does nothing about it any more"
                );
                return Ok(true);
            }
        } else {
            changed = Instant::now();
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        before = now;
        let pause = LOOK.max(looked.elapsed());
        coming.unless_it_ends(tokio::time::sleep(pause)).await?;
    }
}

/// Some of the ports that should be open and are not.
fn closed_ports(inbounds: &[Endpoint], listeners: &[Listener]) -> Vec<u16> {
    let open: HashSet<u16> = listeners
        .iter()
        .map(|one| one.group.address.port())
        .collect();
    let named = inbounds.iter().filter_map(|inbound| match &inbound.place {
        Place::Ports(ports) => Some(ports.iter().cloned().flatten()),
        Place::Path(_) | Place::Abstract(_) | Place::Nowhere => None,
    });
    let closed = named.flatten().filter(|port| !open.contains(port));
    closed.take(10).collect()
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
