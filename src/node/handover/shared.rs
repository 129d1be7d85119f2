//! The ports that cores share, and which of them gets what comes in. Whoever opens a port, leaves one, or
//! leads connections from one core to another does it alone: behind one lock.

use uuid::Uuid;

use super::ports::{groups_of, is_inbound, takers};
use crate::xray::config::Endpoint;
use crate::xray::core::Core;
use crate::xray::handover::groups::{Group, Groups};
use crate::xray::handover::sockets;
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
                steer(pid, &group, place);
                if let [(_, Some(taker))] = takers(vec![group], &pids).await.as_slice()
                    && *taker == pid
                {
                    break;
                }
            }
        }
    }

    fn steer_to_the_one_that_serves(&self) {
        let Some((core, pid)) = self.serving else {
            return;
        };
        for group in self.groups.shared(core) {
            if let Some(place) = self.groups.place(&group, core) {
                steer(pid, &group, place);
            }
        }
    }
}

/// Leads whatever comes in to this place in a group, of which that process is one.
fn steer(pid: i32, group: &Group, place: u32) {
    let port = group.address.port();
    let listeners = sockets::listeners(pid, |other| other == port).unwrap_or_default();
    let listener = listeners.iter().find(|listener| listener.group == *group);
    if let (Some(listener), Ok(lender)) = (listener, Lender::new(pid))
        && let Err(error) = lender.steer(listener, place)
    {
        tracing::debug!(address = %group.address, %error, "the kernel does not steer here");
    }
}
