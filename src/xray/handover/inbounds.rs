//! What becomes of each inbound of a core that makes way. Pure.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::Form;
use super::groups::{Group, Protocol};
use crate::xray::config::{Endpoint, Place, Transport};

/// How the old core is to leave its inbounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Tags whose listeners have to close at once, because nothing else leads connections away from them.
    pub at_once: Vec<String>,
    /// Tags whose listeners get nothing any more: they close when the last handshake is over.
    pub later: Vec<String>,
    /// Tags whose listeners stay until the core ends, because its connections would end with them.
    pub stays: Vec<String>,
    /// Ports on which its connections are, to know when the last one has ended.
    pub ports: Vec<RangeInclusive<u16>>,
    /// A listener that has to close can't: only the end of the core closes it.
    pub has_to_end: bool,
}

impl Leaving {
    /// In which form new connections were led away from it.
    #[must_use]
    pub fn form(&self) -> Form {
        match (
            self.at_once.is_empty(),
            self.later.is_empty() && self.stays.is_empty(),
        ) {
            (true, _) if !self.has_to_end => Form::Steered,
            (_, true) => Form::Plain,
            _ => Form::Partly,
        }
    }

    /// Its listeners are closed.
    pub fn close(&mut self) {
        self.at_once.clear();
        self.later.clear();
    }
}

/// What can't live through it, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The inbound.
    pub tag: String,
    /// What becomes of its connections.
    pub what: String,
}

/// Where two cores listen, and where new connections can be led from one to the other.
#[derive(Clone, Copy, Debug)]
pub struct Listening<'a> {
    /// The inbounds of the old one.
    pub inbounds: &'a [Endpoint],
    /// Where the old one listens; empty where nobody may look.
    pub old: &'a [Group],
    /// Where the new one does.
    pub new: &'a [Group],
    /// Where the new one gets everything.
    pub steered: &'a BTreeSet<Group>,
}

impl Listening<'_> {
    /// How the old core leaves.
    #[must_use]
    pub fn leaving(&self) -> Leaving {
        let mut leaving = Leaving {
            ports: self.inbounds.iter().flat_map(ports).collect(),
            ..Leaving::default()
        };
        for inbound in self.inbounds {
            let swapped = self.has_to_close(inbound);
            if swapped && inbound.tag.is_empty() {
                leaving.has_to_end = true;
            } else if swapped {
                leaving.at_once.push(inbound.tag.clone());
            } else if inbound.transport == Transport::Grpc {
                leaving.stays.push(inbound.tag.clone());
            } else if !inbound.tag.is_empty() {
                leaving.later.push(inbound.tag.clone());
            }
        }
        leaving
    }

    /// What can't live through it. A datagram session belongs to the socket that gets its datagrams.
    #[must_use]
    pub fn lost(&self) -> Vec<Lost> {
        let lost = self.inbounds.iter().filter_map(|inbound| {
            let what = match inbound.transport {
                Transport::Datagrams(name) => format!("{name} sessions hang until their clients give them up (hysteria: the idle timeout of QUIC, 30 s unless set)"),
                Transport::Both => "datagram sessions end".to_owned(),
                Transport::PacketUp => "xhttp packet-up connections stall when they open their next upload".to_owned(),
                Transport::Grpc if self.has_to_close(inbound) => "gRPC connections end together with their listener, which could not be led around".to_owned(),
                Transport::Grpc | Transport::Stream => return None,
            };
            Some(Lost { tag: inbound.tag.clone(), what })
        });
        lost.collect()
    }

    fn has_to_close(&self, inbound: &Endpoint) -> bool {
        match &inbound.place {
            // Another core has a socket of its own below the same name.
            Place::Path(_) | Place::Nowhere => false,
            // It was closed before the new one was started.
            Place::Abstract(_) => true,
            Place::Ports(_) if self.old.is_empty() => true,
            Place::Ports(_) => self
                .old
                .iter()
                .filter(|group| is_of(group, inbound))
                .any(|group| self.keeps_connections(group)),
        }
    }

    /// Whether the old socket gets connections that the new core should have.
    fn keeps_connections(&self, group: &Group) -> bool {
        if self.new.contains(group) {
            return !self.steered.contains(group);
        }
        self.new.iter().any(|other| {
            other.protocol == group.protocol
                && other.address.port() == group.address.port()
                && (other.address.ip().is_unspecified() || group.address.ip().is_unspecified())
        })
    }
}

fn ports(inbound: &Endpoint) -> Vec<RangeInclusive<u16>> {
    match &inbound.place {
        Place::Ports(ports) if ports.is_empty() => vec![1..=u16::MAX],
        Place::Ports(ports) => ports.clone(),
        Place::Path(_) | Place::Abstract(_) | Place::Nowhere => Vec::new(),
    }
}

/// Whether a socket is one of this inbound.
fn is_of(group: &Group, inbound: &Endpoint) -> bool {
    let carries = match group.protocol {
        Protocol::Tcp => !matches!(inbound.transport, Transport::Datagrams(_)),
        Protocol::Udp => matches!(inbound.transport, Transport::Datagrams(_) | Transport::Both),
    };
    carries
        && ports(inbound)
            .iter()
            .any(|range| range.contains(&group.address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound(tag: &str, port: u16, transport: Transport) -> Endpoint {
        Endpoint {
            tag: tag.to_owned(),
            place: Place::Ports(vec![port..=port]),
            transport,
        }
    }

    fn tcp(address: &str) -> Group {
        Group {
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
        }
    }

    fn udp(address: &str) -> Group {
        Group {
            protocol: Protocol::Udp,
            ..tcp(address)
        }
    }

    fn leaving(inbounds: &[Endpoint], old: &[Group], new: &[Group], steered: &[Group]) -> Leaving {
        let steered = steered.iter().copied().collect();
        let listening = Listening {
            inbounds,
            old,
            new,
            steered: &steered,
        };
        listening.leaving()
    }

    #[test]
    fn what_is_steered_closes_later_and_grpc_with_its_core() {
        let inbounds = [
            inbound("raw", 1, Transport::Stream),
            inbound("grpc", 2, Transport::Grpc),
            inbound("gone", 3, Transport::Stream),
        ];
        let old = [tcp("0.0.0.0:1"), tcp("0.0.0.0:2"), tcp("0.0.0.0:3")];
        let new = &old[..2];
        let found = leaving(&inbounds, &old, new, new);
        assert_eq!(found.at_once, [""; 0]);
        assert_eq!(found.later, ["raw", "gone"]);
        assert_eq!(found.stays, ["grpc"]);
        assert_eq!(found.ports, [1..=1, 2..=2, 3..=3]);
        assert!(!found.has_to_end);
    }

    #[test]
    fn what_can_not_be_steered_closes_at_once() {
        let inbounds = [
            inbound("a", 1, Transport::Stream),
            inbound("b", 2, Transport::Grpc),
        ];
        let old = [tcp("0.0.0.0:1"), tcp("0.0.0.0:2")];
        let plain = leaving(&inbounds, &old, &old, &[]);
        assert_eq!(
            (&*plain.at_once, plain.form()),
            (&["a".to_owned(), "b".to_owned()][..], Form::Plain)
        );
        assert_eq!(leaving(&inbounds, &old, &old, &old).form(), Form::Steered);
        assert_eq!(
            leaving(&inbounds, &old, &old, &old[..1]).form(),
            Form::Partly
        );
        assert_eq!(leaving(&inbounds, &[], &[], &[]).at_once, ["a", "b"]);
        let nameless = [inbound("", 1, Transport::Stream)];
        assert!(leaving(&nameless, &old, &old, &[]).has_to_end);
    }

    #[test]
    fn one_address_and_all_addresses_are_two_groups() {
        let inbounds = [inbound("a", 1, Transport::Stream)];
        let one = [tcp("127.0.0.1:1")];
        let all = [tcp("[::]:1")];
        let other = [tcp("127.0.0.2:1")];
        assert_eq!(leaving(&inbounds, &one, &all, &[]).at_once, ["a"]);
        assert_eq!(leaving(&inbounds, &all, &one, &[]).at_once, ["a"]);
        assert_eq!(leaving(&inbounds, &one, &other, &[]).later, ["a"]);
    }

    #[test]
    fn what_is_lost_is_named() {
        let inbounds = [
            inbound("h", 1, Transport::Datagrams("hysteria")),
            inbound("g", 2, Transport::Grpc),
            inbound("s", 3, Transport::Stream),
            inbound("x", 4, Transport::PacketUp),
        ];
        let old = [udp("0.0.0.0:1"), tcp("0.0.0.0:2")];
        let names = |steered: &[Group]| -> Vec<String> {
            let steered = steered.iter().copied().collect();
            let listening = Listening {
                inbounds: &inbounds,
                old: &old,
                new: &old,
                steered: &steered,
            };
            listening.lost().into_iter().map(|lost| lost.tag).collect()
        };
        assert_eq!(names(&old), ["h", "x"]);
        assert_eq!(names(&old[..1]), ["h", "g", "x"]);
    }
}
