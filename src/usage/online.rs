//! Who is online, by the last harvest.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::proto::xray::app::stats::command::UserStat;

/// From where somebody is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: String,
    /// When its latest connection began, Unix seconds.
    pub latest: i64,
    /// Since when a harvest has seen it there every time, Unix seconds.
    pub since: i64,
}

/// Somebody who is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlineUser {
    /// Who.
    pub email: String,
    /// From where.
    pub addresses: Vec<Address>,
}

/// Everybody who was online at a moment.
#[derive(Debug)]
pub(super) struct Online {
    at: Instant,
    users: HashMap<String, Vec<Address>>,
}

impl Online {
    pub(super) fn new(users: &[UserStat], before: Option<&Self>) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
        let since = |email: &str, ip: &str| {
            let addresses = before?.users.get(email)?.iter();
            let mut same = addresses.filter(|address| address.ip == ip);
            same.next().map(|address| address.since)
        };
        let users = users.iter().map(|user| {
            let addresses = user.ips.iter().map(|address| Address {
                ip: address.ip.clone(),
                latest: address.last_seen,
                since: since(&user.email, &address.ip).unwrap_or(now),
            });
            (user.email.clone(), addresses.collect())
        });
        Self {
            at: Instant::now(),
            users: users.collect(),
        }
    }

    pub(super) fn is_fresh(&self, not_older_than: Duration) -> bool {
        self.at.elapsed() <= not_older_than
    }

    pub(super) fn addresses(&self, email: &str) -> Option<&[Address]> {
        self.users.get(email).map(Vec::as_slice)
    }

    pub(super) fn emails(&self) -> impl Iterator<Item = &String> {
        self.users.keys()
    }

    pub(super) fn users(&self) -> Vec<OnlineUser> {
        let mut users: Vec<OnlineUser> = self
            .users
            .iter()
            .map(|(email, addresses)| OnlineUser {
                email: email.clone(),
                addresses: addresses.clone(),
            })
            .collect();
        users.sort_by(|a, b| a.email.cmp(&b.email));
        users
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::xray::app::stats::command::OnlineIpEntry;

    #[test]
    fn an_address_is_there_since_it_was_seen_first() {
        let user = |ips: &[&str]| UserStat {
            email: "1".to_owned(),
            ips: ips
                .iter()
                .map(|ip| OnlineIpEntry {
                    ip: (*ip).to_owned(),
                    last_seen: 5,
                })
                .collect(),
            traffic: None,
        };
        let mut first = Online::new(&[user(&["192.0.2.1"])], None);
        for address in first.users.get_mut("1").unwrap() {
            address.since = 7;
        }
        let second = Online::new(&[user(&["192.0.2.1", "192.0.2.2"])], Some(&first));
        let [old, new] = second.addresses("1").unwrap() else {
            panic!("{second:?}")
        };
        assert_eq!((old.since, old.latest), (7, 5));
        assert!(new.since > 7);
        assert!(second.addresses("2").is_none());
    }
}
