//! What is counted, and how Xray names it.

use crate::xray::config::{API_INBOUND, API_TAG, PLACEHOLDER};

/// What bytes are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A user, by e-mail.
    User,
    /// An inbound, by tag.
    Inbound,
    /// An outbound, by tag.
    Outbound,
}

impl Kind {
    /// All of them, each at the place that its number names.
    pub const ALL: [Self; 3] = [Self::User, Self::Inbound, Self::Outbound];

    /// The first part of a counter's name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    /// What a caller calls the name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "email",
            Self::Inbound | Self::Outbound => "tag",
        }
    }

    /// Whether the node added this to the core.
    pub(super) fn is_ours(self, name: &str) -> bool {
        match self {
            Self::User => name == PLACEHOLDER,
            Self::Inbound => name == API_INBOUND,
            Self::Outbound => name == API_TAG,
        }
    }
}

/// Which way the bytes went, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
}

/// Bytes both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the client.
    pub up: u64,
    /// To the client.
    pub down: u64,
}

impl Bytes {
    /// Whether there are none.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.up == 0 && self.down == 0
    }

    /// Both ways together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.up.saturating_add(self.down)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.up = self.up.saturating_add(other.up);
        self.down = self.down.saturating_add(other.down);
    }

    pub(super) fn take(&mut self, other: Self) {
        self.up = self.up.saturating_sub(other.up);
        self.down = self.down.saturating_sub(other.down);
    }

    pub(super) fn one_way(&mut self, direction: Direction) -> &mut u64 {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

/// One of something for all users, one for all inbounds and one for all outbounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByKind<T>([T; 3]);

impl<T> ByKind<T> {
    /// What `of` says of each.
    pub(super) fn each(of: impl FnMut(Kind) -> T) -> Self {
        Self(Kind::ALL.map(of))
    }

    /// That of a kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &T {
        let Self([users, inbounds, outbounds]) = self;
        match kind {
            Kind::User => users,
            Kind::Inbound => inbounds,
            Kind::Outbound => outbounds,
        }
    }

    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut T {
        let Self([users, inbounds, outbounds]) = self;
        match kind {
            Kind::User => users,
            Kind::Inbound => inbounds,
            Kind::Outbound => outbounds,
        }
    }
}

impl ByKind<Bytes> {
    pub(super) fn add_one_way(&mut self, kind: Kind, direction: Direction, count: u64) {
        let bytes = self.of_mut(kind).one_way(direction);
        *bytes = bytes.saturating_add(count);
    }
}

/// One counter of a core as it was read: bytes since that core started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// Of what.
    pub kind: Kind,
    /// E-mail or tag.
    pub name: &'a str,
    /// Which way.
    pub direction: Direction,
    /// Bytes.
    pub value: u64,
}

impl<'a> Reading<'a> {
    /// Reads `user>>>7>>>traffic>>>uplink`. Counters of the node's own doing and of another form are passed
    /// over, and so is a value below zero.
    #[must_use]
    pub fn parse(counter: &'a str, value: i64) -> Option<Self> {
        let mut parts = counter.split(">>>");
        let kind = match parts.next()? {
            "user" => Kind::User,
            "inbound" => Kind::Inbound,
            "outbound" => Kind::Outbound,
            _ => return None,
        };
        let name = parts.next().filter(|name| !name.is_empty())?;
        if parts.next()? != "traffic" {
            return None;
        }
        let direction = match parts.next()? {
            "uplink" => Direction::Up,
            "downlink" => Direction::Down,
            _ => return None,
        };
        if parts.next().is_some() || kind.is_ours(name) {
            return None;
        }
        Some(Self {
            kind,
            name,
            direction,
            value: u64::try_from(value).ok()?,
        })
    }
}

/// The two counters of one name.
#[must_use]
pub fn names(kind: Kind, name: &str) -> [String; 2] {
    ["uplink", "downlink"].map(|way| format!("{}>>>{name}>>>traffic>>>{way}", kind.word()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_by_its_name() {
        let reading = Reading::parse("user>>>7>>>traffic>>>uplink", 5).unwrap();
        assert_eq!(
            (reading.kind, reading.name, reading.direction, reading.value),
            (Kind::User, "7", Direction::Up, 5)
        );
        let [_, down] = names(Kind::Outbound, "direct");
        let reading = Reading::parse(&down, 0).unwrap();
        assert_eq!(
            (reading.kind, reading.name, reading.direction),
            (Kind::Outbound, "direct", Direction::Down)
        );
    }

    #[test]
    fn other_names_are_passed_over() {
        for name in [
            "user>>>7>>>online",
            "user>>>>>>traffic>>>uplink",
            "user>>>7>>>traffic>>>sideways",
            "user>>>a>>>b>>>traffic>>>uplink",
            "user>>>7>>>traffic>>>uplink>>>more",
            "balancer>>>7>>>traffic>>>uplink",
            "",
        ] {
            assert_eq!(Reading::parse(name, 5), None, "{name}");
        }
        assert_eq!(Reading::parse("user>>>7>>>traffic>>>uplink", -1), None);
    }

    #[test]
    fn what_the_node_adds_is_nobodys_traffic() {
        for name in [
            "inbound>>>API_INBOUND",
            "outbound>>>API",
            "user>>>raynode-placeholder",
        ] {
            let name = format!("{name}>>>traffic>>>uplink");
            assert_eq!(Reading::parse(&name, 5), None, "{name}");
        }
        assert!(
            Reading::parse("user>>>API>>>traffic>>>uplink", 5).is_some(),
            "a user of that name"
        );
    }
}
