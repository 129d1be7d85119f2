//! From what runs to what is wanted: which steps, in which order. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::roster::{InboundUsers, Reason, Refused, Roster, account_for, check_email};
use super::user::{Email, Malformed, User};
use crate::xray::account::{Account, Secret};
use crate::xray::config::{RuleSteps, Skeleton};

/// What a Start asks for.
#[derive(Debug)]
pub(super) struct Desired {
    /// The configuration without its users.
    pub(super) skeleton: Arc<Skeleton>,
    /// The users.
    pub(super) roster: Roster,
}

/// The lowest rung of the ladder that leads to what is wanted.
#[derive(Debug)]
pub(super) enum Plan {
    /// It runs already.
    Nothing,
    /// Only users differ: tell the core over its API. No connection ends.
    Users(UserChanges),
    /// Routing rules came behind the others or went, and users may differ, too: tell the core over
    /// its API. No connection ends.
    Rules {
        /// How the rules change.
        steps: RuleSteps,
        /// How the users do.
        changes: UserChanges,
    },
    /// Only another core can run it.
    Another {
        /// The parts of the configuration that differ.
        because: Vec<String>,
    },
}

/// One change of one user on one inbound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UserOp {
    /// The core does not have him.
    Add {
        /// Tag of the inbound.
        inbound: Arc<str>,
        /// The user.
        email: Email,
        /// His account.
        account: Account,
    },
    /// The core has him, or may have him.
    Remove {
        /// Tag of the inbound.
        inbound: Arc<str>,
        /// The user, spelled as the core knows him.
        email: Email,
    },
    /// The core has him with another account or spelling: remove, then add.
    Replace {
        /// Tag of the inbound.
        inbound: Arc<str>,
        /// The user, spelled as the core knows him.
        old: Email,
        /// The user, spelled as he is wanted.
        email: Email,
        /// His account.
        account: Account,
    },
}

impl UserOp {
    /// Tag of the inbound.
    #[must_use]
    pub(super) fn inbound(&self) -> &Arc<str> {
        match self {
            Self::Add { inbound, .. }
            | Self::Remove { inbound, .. }
            | Self::Replace { inbound, .. } => inbound,
        }
    }

    /// The account that he is to have; `None` for him who leaves.
    #[must_use]
    pub(super) fn wanted(&self) -> Option<&Account> {
        match self {
            Self::Add { account, .. } | Self::Replace { account, .. } => Some(account),
            Self::Remove { .. } => None,
        }
    }

    /// The user.
    #[must_use]
    pub(super) fn email(&self) -> &Email {
        match self {
            Self::Add { email, .. } | Self::Remove { email, .. } | Self::Replace { email, .. } => {
                email
            }
        }
    }
}

/// Changes that may run at the same time within a phase; the second phase starts when the first is
/// over.
///
/// Xray finds a user by his secret, and removing him removes the secret even where another user has
/// taken it over meanwhile. So whoever holds a secret that another user is about to get goes first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct UserChanges {
    /// Who leaves, and who has to make room.
    pub(super) first: Vec<UserOp>,
    /// Who comes or changes.
    pub(super) then: Vec<UserOp>,
}

impl UserChanges {
    /// Whether there is nothing to do.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.then.is_empty()
    }

    /// Who leaves an inbound, spelled as the core knows him.
    #[must_use]
    pub(super) fn removed(&self) -> Vec<Email> {
        let ops = self.first.iter().chain(&self.then);
        ops.filter_map(|op| match op {
            UserOp::Remove { email, .. } => Some(email.clone()),
            UserOp::Add { .. } | UserOp::Replace { .. } => None,
        })
        .collect()
    }

    /// How many changes there are.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.first.len() + self.then.len()
    }
}

/// The way from a running skeleton and roster to the wanted ones.
#[must_use]
pub(super) fn plan(skeleton: &Skeleton, roster: &Roster, wanted: &Desired) -> Plan {
    if *skeleton != *wanted.skeleton {
        return match skeleton.rule_steps(&wanted.skeleton) {
            Some(steps) => Plan::Rules {
                steps,
                changes: replace_all(roster, &wanted.roster),
            },
            None => Plan::Another {
                because: skeleton.differences(&wanted.skeleton),
            },
        };
    }
    let changes = replace_all(roster, &wanted.roster);
    if changes.is_empty() {
        Plan::Nothing
    } else {
        Plan::Users(changes)
    }
}

/// From one roster to another on the same inbounds: whoever is not in the second one leaves.
#[must_use]
pub(super) fn replace_all(current: &Roster, wanted: &Roster) -> UserChanges {
    let mut changes = Changes::default();
    for (tag, inbound) in current.inbounds() {
        let wanted_users = wanted.inbound(tag).map(|inbound| &inbound.users);
        for email in inbound.users.keys() {
            if wanted_users.is_none_or(|users| !users.contains_key(email)) {
                changes.remove(tag, email);
            }
        }
        for (email, account) in wanted_users.into_iter().flatten() {
            if let Some(account) = account {
                changes.want(tag, inbound, email, account);
            }
        }
    }
    changes.in_order(current)
}

/// Only the listed users change: each gets the accounts that he names and loses all others. A user
/// without inbounds is removed everywhere; who is not listed stays.
///
/// With `all_or_nothing`, one refused user refuses the list. Otherwise the users before the first
/// refused one are done, as if each had come alone.
///
/// The second part of the result is who was refused, and why.
pub(super) fn update(
    current: &Roster,
    users: impl Iterator<Item = Result<User, Malformed>>,
    all_or_nothing: bool,
) -> (UserChanges, Result<(), Refused>) {
    let mut listed = Listed::default();
    let mut refused = Refused::none();
    for user in users {
        let listing = match user {
            Ok(user) if all_or_nothing && listed.accounts.contains_key(&user.email) => {
                Err((user.email, Reason::ListedTwice))
            }
            Ok(user) => accounts_of(current, &user)
                .map_err(|reason| (user.email.clone(), reason))
                .map(|accounts| listed.put(user.email, accounts)),
            Err(malformed) => Err((Email::from(""), Reason::Malformed(malformed.to_string()))),
        };
        if let Err((email, reason)) = listing {
            refused.add(&email, reason);
            if !all_or_nothing {
                break;
            }
        }
    }
    if all_or_nothing {
        for (_, email, reason) in listed.shared_secrets(current) {
            refused.add(&email, reason);
        }
    } else {
        listed.cut_at_shared_secrets(current, &mut refused);
    }
    if all_or_nothing && !refused.is_empty() {
        return (UserChanges::default(), refused.into_result());
    }

    let mut changes = Changes::default();
    for (tag, inbound) in current.inbounds() {
        for (email, accounts) in &listed.accounts {
            match accounts.get(tag) {
                Some(account) => changes.want(tag, inbound, email, account),
                None => {
                    if let Some((spelled, _)) = inbound.users.get_key_value(email) {
                        changes.remove(tag, spelled);
                    }
                }
            }
        }
    }
    (changes.in_order(current), refused.into_result())
}

fn accounts_of(current: &Roster, user: &User) -> Result<HashMap<Arc<str>, Account>, Reason> {
    check_email(&user.email)?;
    let mut accounts = HashMap::new();
    for (tag, inbound) in current.inbounds() {
        if user.inbounds.iter().any(|named| **named == **tag)
            && let Some(account) = account_for(tag, inbound.protocol, user)?
        {
            accounts.insert(Arc::clone(tag), account);
        }
    }
    Ok(accounts)
}

/// The users of one update in the order in which they came, with the accounts that they are to have.
#[derive(Default)]
struct Listed {
    accounts: HashMap<Email, HashMap<Arc<str>, Account>>,
    order: Vec<Email>,
}

impl Listed {
    /// The last word on a user counts, and the last spelling of his name.
    fn put(&mut self, email: Email, accounts: HashMap<Arc<str>, Account>) {
        self.take(&email);
        self.order.push(email.clone());
        self.accounts.insert(email, accounts);
    }

    fn take(&mut self, email: &Email) {
        if self.accounts.remove(email).is_some() {
            self.order.retain(|listed| listed != email);
        }
    }

    /// Cuts the list before the first user who would get a secret that somebody else has or gets
    /// before him. A secret may move from one listed user to another; but a user who is cut off
    /// keeps his, so this goes on until nobody else is.
    fn cut_at_shared_secrets(&mut self, current: &Roster, refused: &mut Refused) {
        while let Some((place, email, reason)) = self.shared_secrets(current).into_iter().next() {
            refused.add(&email, reason);
            for behind in self.order.split_off(place) {
                self.accounts.remove(&behind);
            }
        }
    }

    /// Who would get a secret that somebody else has or gets before him, and his place in the list.
    fn shared_secrets(&self, current: &Roster) -> Vec<(usize, Email, Reason)> {
        let mut wanted: HashMap<(&Arc<str>, Secret), &Email> = HashMap::new();
        let mut shared = Vec::new();
        for (place, email) in self.order.iter().enumerate() {
            for (tag, account) in self.accounts.get(email).into_iter().flatten() {
                let secret = account.secret();
                let first = *wanted.entry((tag, secret)).or_insert(email);
                let keeper = self
                    .keeper(current, tag, secret)
                    .filter(|keeper| *keeper != email);
                if let Some(other) = keeper.or((first != email).then_some(first)) {
                    let (inbound, other) = (Arc::clone(tag), other.clone());
                    shared.push((
                        place,
                        email.clone(),
                        Reason::SharedSecret { inbound, other },
                    ));
                    break;
                }
            }
        }
        shared
    }

    /// Who has the secret now and still has it after the update.
    fn keeper<'a>(&self, current: &'a Roster, tag: &str, secret: Secret) -> Option<&'a Email> {
        let holder = current.inbound(tag)?.holders.get(&secret)?;
        let keeps_it = match self.accounts.get(holder) {
            None => true,
            Some(accounts) => accounts
                .get(tag)
                .is_some_and(|account| account.secret() == secret),
        };
        keeps_it.then_some(holder)
    }
}

/// Changes in the making, not yet in order.
#[derive(Default)]
struct Changes(Vec<UserOp>);

impl Changes {
    fn remove(&mut self, tag: &Arc<str>, email: &Email) {
        self.0.push(UserOp::Remove {
            inbound: Arc::clone(tag),
            email: email.clone(),
        });
    }

    fn want(&mut self, tag: &Arc<str>, current: &InboundUsers, email: &Email, account: &Account) {
        let (inbound, email, account) = (Arc::clone(tag), email.clone(), account.clone());
        match current.users.get_key_value(&email) {
            None => self.0.push(UserOp::Add {
                inbound,
                email,
                account,
            }),
            Some((spelled, Some(has))) if *has == account && spelled.as_str() == email.as_str() => {
            }
            Some((old, _)) => {
                self.0.push(UserOp::Replace {
                    inbound,
                    old: old.clone(),
                    email,
                    account,
                });
            }
        }
    }

    fn in_order(self, current: &Roster) -> UserChanges {
        let in_the_way = self.holders_in_the_way(current);
        let mut changes = UserChanges::default();
        for op in self.0 {
            match op {
                UserOp::Remove { .. } => changes.first.push(op),
                UserOp::Add { .. } => changes.then.push(op),
                UserOp::Replace {
                    inbound,
                    old,
                    email,
                    account,
                } => {
                    // Whose account nobody knows may hold a secret that another one is to get.
                    let unknown = current
                        .inbound(&inbound)
                        .is_some_and(|users| matches!(users.users.get(&old), Some(None)));
                    if unknown || in_the_way.contains(&(Arc::clone(&inbound), old.clone())) {
                        changes.first.push(UserOp::Remove {
                            inbound: Arc::clone(&inbound),
                            email: old,
                        });
                        changes.then.push(UserOp::Add {
                            inbound,
                            email,
                            account,
                        });
                    } else {
                        changes.then.push(UserOp::Replace {
                            inbound,
                            old,
                            email,
                            account,
                        });
                    }
                }
            }
        }
        changes
    }

    /// Who holds a secret that another user is about to get.
    fn holders_in_the_way(&self, current: &Roster) -> HashSet<(Arc<str>, Email)> {
        self.0
            .iter()
            .filter_map(|op| match op {
                UserOp::Add {
                    inbound,
                    email,
                    account,
                }
                | UserOp::Replace {
                    inbound,
                    email,
                    account,
                    ..
                } => {
                    let holder = current.inbound(inbound)?.holders.get(&account.secret())?;
                    (holder != email).then(|| (Arc::clone(inbound), holder.clone()))
                }
                UserOp::Remove { .. } => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
