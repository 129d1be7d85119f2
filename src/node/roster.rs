//! The users that are served, by inbound.
//!
//! A roster says what the core has: an entry is added when the core confirmed the user and removed
//! when the core confirmed that he is gone. Where the core gave no answer the entry has no account:
//! the core may or may not serve that user, and the next change settles it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::user::{Email, User, Users};
use crate::xray::account::{self, Account, Protocol, Secret};
use crate::xray::config::{Accounts, Inbound};

/// How many refused users one error names.
const NAMED: usize = 10;

/// Who is served where.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    inbounds: HashMap<Arc<str>, InboundUsers>,
    /// How many users there are, each counted once.
    people: usize,
}

#[derive(Clone, Debug)]
pub(super) struct InboundUsers {
    pub(super) protocol: Protocol,
    pub(super) users: HashMap<Email, Option<Account>>,
    pub(super) holders: HashMap<Secret, Email>,
}

/// Why users can't be served, by name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", describe(.named, *.more))]
pub struct Refused {
    named: Vec<(Email, Reason)>,
    more: usize,
}

/// What is wrong with one user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    #[error("email is required")]
    NoEmail,
    #[error("the e-mail contains \">>>\", which would split his traffic counters")]
    Separator,
    #[error("the e-mail is in the list twice (upper and lower case do not count)")]
    ListedTwice,
    #[error("inbound {inbound:?}: {source}")]
    Account {
        inbound: Arc<str>,
        source: account::Error,
    },
    #[error("inbound {inbound:?}: he has the same secret as user {other}")]
    SharedSecret { inbound: Arc<str>, other: Email },
    #[error("{0}")]
    Malformed(String),
}

impl Refused {
    pub(super) fn none() -> Self {
        Self {
            named: Vec::new(),
            more: 0,
        }
    }

    pub(super) fn add(&mut self, email: &Email, reason: Reason) {
        if self.named.len() < NAMED {
            self.named.push((email.clone(), reason));
        } else {
            self.more += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Whether the only trouble is a user without an e-mail, for which panels know a text.
    #[must_use]
    pub fn is_only_a_missing_email(&self) -> bool {
        self.more == 0 && matches!(self.named.as_slice(), [(_, Reason::NoEmail)])
    }

    /// Nobody, or the error.
    pub(super) fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

fn describe(named: &[(Email, Reason)], more: usize) -> String {
    let mut text = named
        .iter()
        .map(|(email, reason)| match reason {
            Reason::NoEmail | Reason::Malformed(_) => reason.to_string(),
            _ => format!("user {email}: {reason}"),
        })
        .collect::<Vec<_>>()
        .join("; ");
    if more > 0 {
        text.push_str("; and ");
        text.push_str(&more.to_string());
        text.push_str(" more users");
    }
    text
}

impl Roster {
    /// Nobody, on these inbounds.
    pub fn empty<'a>(inbounds: impl Iterator<Item = &'a Inbound>) -> Self {
        let inbounds = inbounds
            .map(|inbound| {
                (
                    Arc::clone(&inbound.tag),
                    InboundUsers::new(inbound.protocol),
                )
            })
            .collect();
        Self {
            inbounds,
            people: 0,
        }
    }

    /// Everybody in the list, on the inbounds that he names.
    ///
    /// # Errors
    /// When a user can't be served or stands in the way of another one, each by name.
    pub fn new<'a>(
        inbounds: impl Iterator<Item = &'a Inbound>,
        users: Users,
    ) -> Result<Self, Refused> {
        let mut roster = Self::empty(inbounds);
        let mut refused = Refused::none();
        let mut seen = HashSet::new();
        for user in users {
            match user {
                Ok(user) if !seen.insert(user.email.clone()) => {
                    refused.add(&user.email, Reason::ListedTwice);
                }
                Ok(user) => {
                    if let Err(reason) = roster.admit(&user) {
                        refused.add(&user.email, reason);
                    }
                }
                Err(malformed) => {
                    refused.add(&Email::from(""), Reason::Malformed(malformed.to_string()));
                }
            }
        }
        refused.into_result()?;
        Ok(roster)
    }

    fn admit(&mut self, user: &User) -> Result<(), Reason> {
        check_email(&user.email)?;
        for tag in &user.inbounds {
            let Some((tag, inbound)) = self.inbounds.get_key_value(&**tag) else {
                continue;
            };
            let tag = Arc::clone(tag);
            let Some(account) = account_for(&tag, inbound.protocol, user)? else {
                continue;
            };
            let holder = inbound.holders.get(&account.secret());
            if let Some(other) = holder.filter(|other| **other != user.email) {
                return Err(Reason::SharedSecret {
                    inbound: tag,
                    other: other.clone(),
                });
            }
            self.put(&tag, &user.email, Some(account));
        }
        Ok(())
    }

    /// Whether the user is on any inbound.
    pub(super) fn has(&self, email: &Email) -> bool {
        let mut inbounds = self.inbounds.values();
        inbounds.any(|inbound| inbound.users.contains_key(email))
    }

    /// How many accounts there are, on all inbounds together.
    pub(super) fn len(&self) -> usize {
        self.inbounds
            .values()
            .map(|inbound| inbound.users.len())
            .sum()
    }

    /// How many users there are, each counted once.
    pub(super) fn people(&self) -> usize {
        self.people
    }

    /// Whether the user is on another inbound than this one.
    fn is_elsewhere(&self, tag: &str, email: &Email) -> bool {
        let mut inbounds = self.inbounds.iter();
        inbounds.any(|(other, inbound)| **other != *tag && inbound.users.contains_key(email))
    }

    /// Who is served here and not there, spelled as here.
    pub(super) fn gone_in(&self, other: &Self) -> Vec<String> {
        let emails = |roster: &Self| -> HashSet<Email> {
            let inbounds = roster.inbounds.values();
            inbounds
                .flat_map(|inbound| inbound.users.keys().cloned())
                .collect()
        };
        let (mut here, there) = (emails(self), emails(other));
        here.retain(|email| !there.contains(email));
        here.iter().map(|email| email.as_str().to_owned()).collect()
    }

    pub(super) fn inbounds(&self) -> impl Iterator<Item = (&Arc<str>, &InboundUsers)> {
        self.inbounds.iter()
    }

    pub(super) fn inbound(&self, tag: &str) -> Option<&InboundUsers> {
        self.inbounds.get(tag)
    }

    /// The users of another roster, on those inbounds that both have alike. On those that it does not
    /// have, whoever is not in it at all is gone.
    pub(super) fn take_over(&mut self, other: &Self) {
        let known: HashSet<&Email> = other
            .inbounds
            .values()
            .flat_map(|inbound| inbound.users.keys())
            .collect();
        for (tag, inbound) in &mut self.inbounds {
            let same = other.inbounds.get(tag);
            if let Some(same) = same.filter(|same| same.protocol == inbound.protocol) {
                inbound.clone_from(same);
            } else {
                inbound.users.retain(|email, _| known.contains(email));
                inbound.holders.retain(|_, email| known.contains(email));
            }
        }
        let people: HashSet<&Email> = self
            .inbounds
            .values()
            .flat_map(|inbound| inbound.users.keys())
            .collect();
        self.people = people.len();
    }

    /// Notes what the core has now: that account, or (`None`) nobody knows which.
    pub(super) fn put(&mut self, tag: &str, email: &Email, account: Option<Account>) {
        self.take(tag, email);
        let Some(inbound) = self.inbounds.get_mut(tag) else {
            return;
        };
        if let Some(account) = &account {
            inbound.holders.insert(account.secret(), email.clone());
        }
        inbound.users.insert(email.clone(), account);
        if !self.is_elsewhere(tag, email) {
            self.people += 1;
        }
    }

    /// Notes that nobody knows whether the core still has the user.
    pub(super) fn doubt(&mut self, email: &Email) {
        let has = |(_, inbound): &(&Arc<str>, &InboundUsers)| inbound.users.contains_key(email);
        let tags: Vec<Arc<str>> = self
            .inbounds
            .iter()
            .filter(has)
            .map(|(tag, _)| Arc::clone(tag))
            .collect();
        for tag in tags {
            self.put(&tag, email, None);
        }
    }

    /// Notes that the core has the user no more.
    pub(super) fn take(&mut self, tag: &str, email: &Email) {
        let Some(inbound) = self.inbounds.get_mut(tag) else {
            return;
        };
        let Some(had) = inbound.users.remove(email) else {
            return;
        };
        if let Some(account) = had {
            let secret = account.secret();
            if inbound.holders.get(&secret) == Some(email) {
                inbound.holders.remove(&secret);
            }
        }
        if !self.is_elsewhere(tag, email) {
            self.people -= 1;
        }
    }
}

impl Accounts for Roster {
    /// Those that the core is known to have.
    fn on(&self, inbound: &Inbound) -> impl Iterator<Item = (&str, &Account)> {
        self.inbounds
            .get(&inbound.tag)
            .into_iter()
            .flat_map(|inbound| &inbound.users)
            .filter_map(|(email, account)| Some((email.as_str(), account.as_ref()?)))
    }
}

impl InboundUsers {
    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            users: HashMap::new(),
            holders: HashMap::new(),
        }
    }
}

pub(super) fn check_email(email: &Email) -> Result<(), Reason> {
    match email.as_str() {
        "" => Err(Reason::NoEmail),
        text if text.contains(">>>") => Err(Reason::Separator),
        _ => Ok(()),
    }
}

/// The account that the user gets on an inbound that he names.
pub(super) fn account_for(
    tag: &Arc<str>,
    protocol: Protocol,
    user: &User,
) -> Result<Option<Account>, Reason> {
    match Account::new(protocol, &user.credentials) {
        Ok(account) => Ok(account),
        Err(account::Error::VmessId) => {
            // Panels count on it: one such user must not keep all others from being served.
            tracing::warn!(user = %user.email, inbound = %tag, "the vmess id is not a UUID, the user is left out of this inbound");
            Ok(None)
        }
        Err(source) => Err(Reason::Account {
            inbound: Arc::clone(tag),
            source,
        }),
    }
}
