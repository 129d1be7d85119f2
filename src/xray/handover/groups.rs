//! Which cores share a port, in the order that the kernel has them in. Pure.
//!
//! Sockets that listen on one address with `SO_REUSEPORT` are a group: an array to which each one is
//! added at the end, and from which one that leaves is taken by putting the last one in its place. A
//! program that steers names a socket by its place in that array (Linux, `net/core/sock_reuseport.c`).

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The sockets on one address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Group {
    /// Connections or datagrams.
    pub protocol: Protocol,
    /// Where they listen.
    pub address: SocketAddr,
}

/// What comes in at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// The cores in each group, in the kernel's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(Group, Vec<Uuid>)>", into = "Vec<(Group, Vec<Uuid>)>")]
pub struct Groups(HashMap<Group, Vec<Uuid>>);

impl From<Vec<(Group, Vec<Uuid>)>> for Groups {
    fn from(groups: Vec<(Group, Vec<Uuid>)>) -> Self {
        Self(groups.into_iter().collect())
    }
}

impl From<Groups> for Vec<(Group, Vec<Uuid>)> {
    fn from(groups: Groups) -> Self {
        groups.0.into_iter().collect()
    }
}

impl Groups {
    /// This core listens in these groups, and in no other: it joins those where it was not, and leaves
    /// those where it is no longer.
    pub fn set(&mut self, core: Uuid, groups: &[Group]) {
        self.0.retain(|group, cores| {
            if !groups.contains(group) {
                leave(cores, core);
            }
            !cores.is_empty()
        });
        for group in groups {
            let cores = self.0.entry(*group).or_default();
            if !cores.contains(&core) {
                cores.push(core);
            }
        }
    }

    /// This core has ended.
    pub fn remove(&mut self, core: Uuid) {
        self.set(core, &[]);
    }

    /// No other cores than these are alive.
    pub fn only(&mut self, alive: &[Uuid]) {
        let gone: Vec<Uuid> = self
            .0
            .values()
            .flatten()
            .filter(|core| !alive.contains(core))
            .copied()
            .collect();
        for core in gone {
            self.remove(core);
        }
    }

    /// How many cores are in a group.
    #[must_use]
    pub fn size(&self, group: &Group) -> u32 {
        let cores = self.0.get(group).map_or(0, Vec::len);
        u32::try_from(cores).unwrap_or(u32::MAX)
    }

    /// The place of a core's socket in a group.
    #[must_use]
    pub fn place(&self, group: &Group, core: Uuid) -> Option<u32> {
        let cores = self.0.get(group)?;
        let place = cores.iter().position(|other| *other == core)?;
        u32::try_from(place).ok()
    }

    /// The groups of a core.
    #[must_use]
    pub fn of(&self, core: Uuid) -> Vec<Group> {
        let mut groups: Vec<Group> = self
            .0
            .iter()
            .filter(|(_, cores)| cores.contains(&core))
            .map(|(group, _)| *group)
            .collect();
        groups.sort();
        groups
    }

    /// The groups that this core shares with others.
    #[must_use]
    pub fn shared(&self, core: Uuid) -> Vec<Group> {
        let mut groups = self.of(core);
        groups.retain(|group| self.0.get(group).is_some_and(|cores| cores.len() > 1));
        groups
    }
}

fn leave(cores: &mut Vec<Uuid>, core: Uuid) {
    if let Some(place) = cores.iter().position(|other| *other == core) {
        cores.swap_remove(place);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(port: u16) -> Group {
        Group {
            protocol: Protocol::Tcp,
            address: ([0, 0, 0, 0], port).into(),
        }
    }

    fn core(number: u8) -> Uuid {
        Uuid::from_u128(u128::from(number))
    }

    #[test]
    fn the_last_one_takes_the_place_of_the_one_that_leaves() {
        let mut groups = Groups::default();
        for number in 0..3 {
            groups.set(core(number), &[group(1)]);
        }
        groups.remove(core(0));
        assert_eq!(groups.place(&group(1), core(2)), Some(0));
        assert_eq!(groups.place(&group(1), core(1)), Some(1));
        assert_eq!(groups.place(&group(1), core(0)), None);
        assert_eq!(groups.shared(core(1)), [group(1)]);
        groups.remove(core(2));
        assert_eq!(groups.shared(core(1)), []);
        assert_eq!(groups.of(core(1)), [group(1)]);
        let written = serde_json::to_string(&groups).unwrap();
        assert_eq!(serde_json::from_str::<Groups>(&written).unwrap(), groups);
        groups.only(&[core(7)]);
        assert_eq!(groups, Groups::default());
    }

    /// The kernel's way, as an array for each port.
    #[derive(Default)]
    struct Kernel(HashMap<Group, [Option<Uuid>; 8]>);

    impl Kernel {
        fn listen(&mut self, core: Uuid, group: Group) {
            let sockets = self.0.entry(group).or_default();
            if !sockets.contains(&Some(core)) {
                let free = sockets.iter().position(Option::is_none).unwrap();
                sockets[free] = Some(core);
            }
        }

        fn close(&mut self, core: Uuid, group: Group) {
            let sockets = self.0.entry(group).or_default();
            let Some(place) = sockets.iter().position(|other| *other == Some(core)) else {
                return;
            };
            let last = sockets.iter().rposition(Option::is_some).unwrap();
            sockets[place] = sockets[last];
            sockets[last] = None;
        }
    }

    proptest! {
        #[test]
        fn the_lists_are_the_kernels(steps in proptest::collection::vec((0..5_u8, proptest::collection::btree_set(0..4_u16, 0..4)), 0..40)) {
            let (mut groups, mut kernel) = (Groups::default(), Kernel::default());
            for (number, ports) in steps {
                let listens: Vec<Group> = ports.into_iter().map(group).collect();
                for port in 0..4 {
                    if listens.contains(&group(port)) {
                        kernel.listen(core(number), group(port));
                    } else {
                        kernel.close(core(number), group(port));
                    }
                }
                groups.set(core(number), &listens);
                for port in 0..4 {
                    let sockets = kernel.0.get(&group(port)).copied().unwrap_or_default();
                    for number in 0..5 {
                        let place = sockets.iter().position(|other| *other == Some(core(number)));
                        prop_assert_eq!(groups.place(&group(port), core(number)), place.map(|place| u32::try_from(place).unwrap()));
                    }
                }
            }
        }
    }
}
