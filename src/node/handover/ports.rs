//! The ports of a core: where it listens, whether all of them are open, and who takes what comes in.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::net::TcpStream;

use crate::xray::config::{Endpoint, Place};
use crate::xray::core::{self, Coming};
use crate::xray::handover::groups::{Group, Protocol};
use crate::xray::handover::sockets::{self, Listener};
use crate::xray::handover::steering::Lender;

/// How often the sockets of a core are looked at while it opens them, or takes a connection.
const LOOK: Duration = Duration::from_millis(5);
/// A core whose sockets have not changed for so long has opened what it opens.
const STILL: Duration = Duration::from_secs(2);
/// How long a core that listens may take to accept a connection of ours.
const ACCEPTS: Duration = Duration::from_secs(1);
/// So many ports are tried by a connection; those of a range are all alike.
const TRIED: usize = 64;

/// Where a core listens, and how its sockets can be had; nothing where nobody may look.
#[derive(Default)]
pub(super) struct Sockets {
    pub(super) lender: Option<Lender>,
    listeners: Vec<Listener>,
}

impl Sockets {
    /// Those of a core with these inbounds.
    pub(super) fn of(pid: i32, inbounds: &[Endpoint]) -> Self {
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

    pub(super) fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = self.listeners.iter().map(|one| one.group).collect();
        groups.dedup();
        groups
    }

    /// The one socket in a group. Of two, nobody knows which place is whose.
    pub(super) fn only(&self, group: &Group) -> Option<&Listener> {
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

/// Which of these processes takes a connection of ours to each of these groups, by those that can be tried;
/// `None` where nobody takes it.
pub(super) async fn takers(groups: Vec<Group>, pids: &[i32]) -> Vec<(Group, Option<i32>)> {
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

/// Waits until every port is open that the configuration names: an API may answer before that, and a core may
/// live on without a port that somebody else has (gRPC).
pub(super) async fn listens(
    coming: &Coming,
    inbounds: &[Endpoint],
    deadline: Instant,
) -> Result<(), core::Error> {
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
            return Ok(());
        };
        if now == before {
            let closed = closed(inbounds, &now);
            if closed.is_empty() {
                return Ok(());
            }
            if changed.elapsed() >= STILL || Instant::now() >= deadline {
                // Of a range an inbound may take some ports only.
                let shut: Vec<&str> = closed
                    .iter()
                    .filter(|(_, partly)| !partly)
                    .map(|(inbound, _)| inbound.as_str())
                    .collect();
                if shut.is_empty() {
                    tracing::warn!(
                        pid,
                        ?closed,
                        "the new core does not listen on all ports of these inbounds"
                    );
                    return Ok(());
                }
                return Err(coming.does_not_listen(&shut.join(", ")).await);
            }
        } else {
            changed = Instant::now();
        }
        before = now;
        let pause = LOOK.max(looked.elapsed());
        coming.unless_it_ends(tokio::time::sleep(pause)).await?;
    }
}

/// The inbounds with a port that should be open and is not; and whether another port of theirs is.
fn closed(inbounds: &[Endpoint], listeners: &[Listener]) -> Vec<(String, bool)> {
    let open: HashSet<u16> = listeners
        .iter()
        .map(|one| one.group.address.port())
        .collect();
    let mut closed = Vec::new();
    for inbound in inbounds {
        let Place::Ports(ports) = &inbound.place else {
            continue;
        };
        let all = || ports.iter().cloned().flatten();
        if let Some(port) = all().find(|port| !open.contains(port)) {
            let partly = all().any(|port| open.contains(&port));
            closed.push((format!("{:?} on port {port}", inbound.tag), partly));
        }
    }
    closed
}
