//! Which Xray this is, and what that version can do.

use std::fmt;
use std::str::FromStr;

/// Something that a version does not have.
#[derive(Clone, Copy, Debug)]
pub struct Lack {
    /// The first version that has it.
    pub since: Version,
    /// What that costs, in a few words.
    pub costs: &'static str,
}

const LACKS: [Lack; 6] = [
    Lack {
        since: Version::new(24, 11, 5),
        costs: "nobody can be seen online",
    },
    Lack {
        since: Version::new(26, 1, 13),
        costs: "who is online is not known without a panel's question, and usage is read less often",
    },
    Lack {
        since: Version::new(26, 3, 23),
        costs: "there are no hysteria users, and a long connection counts as online for 20 s only",
    },
    Lack {
        since: Version::new(26, 4, 13),
        costs: "reading usage costs more of the processor's time with many users online",
    },
    Lack {
        since: Version::new(26, 5, 3),
        costs: "the node's way to the core is an inbound and a rule of its own in the configuration",
    },
    Lack {
        since: Version::new(26, 10, 10),
        costs: "inbounds are not counted where there is a hysteria inbound, and replacing all rules needs another core",
    },
];

/// An Xray release, `year.month.day` since 24.9 and `1.8.x` before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// The release `major.minor.patch`.
    #[must_use]
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Reads the first line of what `xray version` prints: `Xray 26.3.27 (Xray, Penetrates ...`.
    #[must_use]
    pub fn from_banner(output: &str) -> Option<Self> {
        let mut words = output.lines().next()?.split_whitespace();
        (words.next()? == "Xray").then_some(())?;
        words.next()?.parse().ok()
    }

    /// What newer ones have, the oldest of it first.
    pub fn lacks(self) -> impl Iterator<Item = Lack> {
        LACKS.into_iter().filter(move |lack| self < lack.since)
    }

    /// Whether `api.listen` takes a unix socket. Older cores get a dokodemo door on one instead.
    #[must_use]
    pub fn listens_on_unix_socket(self) -> bool {
        self >= Self::new(26, 5, 3)
    }

    /// Whether a set of rules is replaced by another in one step, and stays when that one is refused.
    /// Older cores have a moment without any rule, and keep none after a refusal.
    #[must_use]
    pub fn replaces_rules_at_once(self) -> bool {
        self >= Self::new(26, 10, 10)
    }

    /// Whether users of a hysteria inbound are counted while inbounds are counted too. 26.3.27 counts
    /// and shows such users not at all then; 26.10.10 does, and the releases between were not tried.
    #[must_use]
    pub fn counts_hysteria_users_beside_inbounds(self) -> bool {
        self >= Self::new(26, 10, 10)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        // Builds may carry a suffix: 26.4.1-rc1.
        let digits = |part: &str| {
            let end = part
                .find(|char: char| !char.is_ascii_digit())
                .unwrap_or(part.len());
            part.get(..end).unwrap_or_default().parse().map_err(drop)
        };
        let mut next = || digits(numbers.next().ok_or(())?);
        Ok(Self::new(next()?, next()?, next()?))
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn the_banner_of_a_release_and_of_a_custom_build() {
        let release = "Xray 26.3.27 (Xray, Penetrates Everything.) 9f8c8f5 (go1.26.1 linux/amd64)\nA unified platform\n";
        assert_eq!(Version::from_banner(release), Some(Version::new(26, 3, 27)));
        let custom = "Xray 1.8.24 (Xray, Penetrates Everything.) Custom (go1.22 linux/amd64)";
        assert_eq!(Version::from_banner(custom), Some(Version::new(1, 8, 24)));
    }

    #[test]
    fn other_programs_are_not_xray() {
        let candidate = "Xray 26.4.1-rc1 (Xray) Custom";
        assert_eq!(
            Version::from_banner(candidate),
            Some(Version::new(26, 4, 1))
        );
        for output in ["", "V2Ray 5.1.0 (V2Fly)", "Xray", "Xray x.y.z", "Xray 26.3"] {
            assert_eq!(Version::from_banner(output), None, "{output:?}");
        }
    }

    #[test]
    fn unix_sockets_came_with_26_5_3() {
        assert!(!Version::new(26, 3, 27).listens_on_unix_socket());
        assert!(!Version::new(1, 8, 24).listens_on_unix_socket());
        assert!(Version::new(26, 5, 3).listens_on_unix_socket());
        assert!(Version::new(26, 10, 10).listens_on_unix_socket());
    }
}
