//! The ports that cores share, and which of them gets what comes in. Whoever opens a port, leaves one, or
//! leads connections from one core to another does it alone: behind one lock.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::ports::{groups_of, is_inbound, takers};
use crate::xray::config::Endpoint;
use crate::xray::core::Core;
use crate::xray::handover::groups::{Group, Groups};
use crate::xray::handover::sockets::{self, Listener};
use crate::xray::handover::steering::Lender;

/// Who shares which port.
#[derive(Debug, Default)]
pub(in crate::node) struct SharedPorts {
    pub(in crate::node) groups: Groups,
    /// The core that gets what comes in, and its process.
    serving: Option<(Uuid, i32)>,
}

impl SharedPorts {
    /// As an earlier daemon left them.
    pub(in crate::node) fn new(groups: Groups) -> Self {
        Self {
            groups,
            serving: None,
        }
    }

    /// This core serves, and no others than these are alive.
    pub(in crate::node) fn serves(&mut self, core: &Core, inbounds: &[Endpoint], alive: &[Uuid]) {
        self.groups.only(alive);
        self.serving = Some((core.id(), core.pid()));
        if self.groups.of(core.id()).is_empty() {
            let groups = groups_of(core.pid(), |port| is_inbound(inbounds, port));
            self.groups.set(core.id(), &groups);
        }
        self.steer_to_the_one_that_serves();
    }

    /// A core has left its ports, but these. One that leaves moves another one to its place.
    pub(in crate::node) fn left(&mut self, core: Uuid, still: &[Group]) {
        self.groups.set(core, still);
        self.steer_to_the_one_that_serves();
    }

    /// Leads connections to the core that serves where the last daemon may have left them to another one.
    /// The order in which the kernel has those that share a port may be another one than we believe, when
    /// several have ended while nobody looked: so it is tried. `others` are the processes of the others.
    pub(in crate::node) async fn find_the_one_that_serves(
        &self,
        others: impl Iterator<Item = i32>,
    ) {
        let Some((core, pid)) = self.serving else {
            return;
        };
        let pids: Vec<i32> = std::iter::once(pid).chain(others).collect();
        for (group, taker) in takers(self.groups.shared(core), &pids).await {
            if taker == Some(pid) {
                continue;
            }
            for place in 0..self.groups.size(&group) {
                steer(pid, vec![(group, place)]);
                if let [(_, Some(taker))] = takers(vec![group], &pids).await.as_slice()
                    && *taker == pid
                {
                    break;
                }
            }
        }
    }

    /// On all of its ports, also on those that it has for itself: the next core that opens one of them gets
    /// nothing until it is ready.
    fn steer_to_the_one_that_serves(&self) {
        let Some((core, pid)) = self.serving else {
            return;
        };
        let places = self.groups.of(core).into_iter();
        let places = places.filter_map(|group| Some((group, self.groups.place(&group, core)?)));
        steer(pid, places.collect());
    }
}

/// Leads whatever comes in to these places in groups of which that process is one.
fn steer(pid: i32, places: Vec<(Group, u32)>) {
    let ports: HashSet<u16> = places
        .iter()
        .map(|(group, _)| group.address.port())
        .collect();
    let (Ok(listeners), Ok(lender)) = (
        sockets::listeners(pid, |port| ports.contains(&port)),
        Lender::new(pid),
    ) else {
        return;
    };
    let mut by_group: HashMap<Group, Vec<Listener>> = HashMap::new();
    for listener in listeners {
        by_group.entry(listener.group).or_default().push(listener);
    }
    for (group, place) in places {
        // Of two, nobody knows which place is whose, and the configuration wants both.
        let Some([listener]) = by_group.get(&group).map(Vec::as_slice) else {
            continue;
        };
        if let Err(error) = lender.steer(listener, place) {
            tracing::debug!(address = %group.address, %error, "the kernel does not steer here");
        }
    }
}
