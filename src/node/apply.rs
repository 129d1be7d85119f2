//! User changes made in a core over its API, and the roster kept true to what the core has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;

use super::Error;
use super::applied::Applied;
use super::last_good::LastGood;
use super::plan::{UserChanges, UserOp};
use super::roster::Roster;
use crate::xray::account::Account;
use crate::xray::client::{self, Client};
use crate::xray::config::Inbound;

/// How many user changes are on their way to the core at once.
const IN_FLIGHT: usize = 64;
/// How many failed users one error names.
const NAMED: usize = 10;

/// Tells the core, and notes in the roster what it confirmed: after an error the roster still says
/// what the core has, so the next change mends it. The disk hears of it first.
pub(super) async fn change_users(
    client: &Client,
    applied: &mut Applied,
    last_good: &mut LastGood,
    changes: UserChanges,
) -> Result<(), Error> {
    last_good.intend(&changes);
    let Applied {
        skeleton,
        roster,
        unanswered,
        ..
    } = applied;
    let mut off = Vec::new();
    let inbounds: Vec<&Inbound> = skeleton.inbounds().collect();
    let core = Core {
        client,
        silent: AtomicBool::new(false),
    };
    let core = &core;
    let mut failures = Failures::default();
    for phase in [changes.first, changes.then] {
        let mut attempts = futures_util::stream::iter(phase)
            .map(|op| {
                let inbound = inbounds.iter().find(|inbound| inbound.tag == *op.inbound());
                async move {
                    let outcome = match inbound {
                        Some(inbound) => core.perform(inbound, &op).await,
                        None => Outcome::NotMade("the core has no such inbound".to_owned()),
                    };
                    (op, outcome)
                }
            })
            .buffer_unordered(IN_FLIGHT);
        while let Some((op, outcome)) = attempts.next().await {
            let user = (Arc::clone(op.inbound()), op.email().clone());
            let answered = !matches!(outcome, Outcome::Unknown(_));
            if let Some(reason) = note(roster, &op, outcome) {
                failures.add(&op, &reason);
            } else {
                unanswered.remove(&user);
                continue;
            }
            if answered {
                off.push(user);
            } else {
                // The disk goes on saying what is wanted, and so does the next core.
                unanswered.insert(user, op.wanted().cloned());
            }
        }
    }
    last_good.correct(roster, off.iter());
    failures.into_result()
}

/// What the core has after an attempt.
enum Outcome {
    /// What was asked for.
    Made,
    /// What it had before.
    NotMade(String),
    /// The user not at all.
    Absent(String),
    /// Nobody knows.
    Unknown(String),
}

/// Returns why it failed, if it did.
fn note(roster: &mut Roster, op: &UserOp, outcome: Outcome) -> Option<String> {
    match (op, outcome) {
        (
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
            },
            Outcome::Made,
        ) => {
            roster.put(inbound, email, Some(account.clone()));
            None
        }
        (UserOp::Remove { inbound, email }, Outcome::Made) => {
            roster.take(inbound, email);
            None
        }
        (op, Outcome::Absent(reason)) => {
            roster.take(op.inbound(), op.email());
            Some(reason)
        }
        (op, Outcome::Unknown(reason)) => {
            roster.put(op.inbound(), op.email(), None);
            Some(reason)
        }
        (_, Outcome::NotMade(reason)) => Some(reason),
    }
}

struct Core<'a> {
    client: &'a Client,
    /// Set when the core has left a question unanswered: what has not been tried by then is not
    /// tried, or a list of users would take a deadline for every few of them.
    silent: AtomicBool,
}

impl Core<'_> {
    async fn perform(&self, inbound: &Inbound, op: &UserOp) -> Outcome {
        if self.silent.load(Ordering::Relaxed) {
            return Outcome::NotMade("not tried, because xray does not answer".to_owned());
        }
        match op {
            UserOp::Add { email, account, .. } => self.add(inbound, email.as_str(), account).await,
            UserOp::Remove { email, .. } => match self.remove(inbound, email.as_str()).await {
                Ok(()) => Outcome::Made,
                Err(error) => self.failed(&error),
            },
            UserOp::Replace {
                old,
                email,
                account,
                ..
            } => {
                if let Err(error) = self.remove(inbound, old.as_str()).await {
                    return self.failed(&error);
                }
                match self.add(inbound, email.as_str(), account).await {
                    Outcome::NotMade(reason) => Outcome::Absent(reason),
                    outcome => outcome,
                }
            }
        }
    }

    async fn add(&self, inbound: &Inbound, email: &str, account: &Account) -> Outcome {
        let mut result = self.client.add_user(inbound, email, account).await;
        if let Err(client::Error::Refused(reason)) = &result
            && reason.to_ascii_lowercase().contains("already exists")
        {
            // The core knows more than we do; from now on it has this account.
            result = match self.remove(inbound, email).await {
                Ok(()) => self.client.add_user(inbound, email, account).await,
                Err(error) => Err(error),
            };
        }
        match result {
            Ok(()) => Outcome::Made,
            Err(error) => self.failed(&error),
        }
    }

    /// A user who is not there is removed.
    async fn remove(&self, inbound: &Inbound, email: &str) -> Result<(), client::Error> {
        match self.client.remove_user(&inbound.tag, email).await {
            Err(client::Error::NotFound(_)) => Ok(()),
            result => result,
        }
    }

    /// Without an answer the change may have been made, or be made yet: a core that was stopped for a
    /// moment does what it was asked when it goes on. So nobody knows until the next change.
    fn failed(&self, error: &client::Error) -> Outcome {
        let client::Error::NoAnswer(_) = error else {
            return Outcome::NotMade(error.to_string());
        };
        self.silent.store(true, Ordering::Relaxed);
        Outcome::Unknown(error.to_string())
    }
}

/// Which changes were not made, the first of them by name.
#[derive(Default)]
struct Failures {
    named: Vec<String>,
    more: usize,
}

impl Failures {
    fn add(&mut self, op: &UserOp, reason: &str) {
        if self.named.len() < NAMED {
            self.named.push(format!(
                "user {}: inbound {:?}: {reason}",
                op.email(),
                op.inbound()
            ));
        } else {
            self.more += 1;
        }
    }

    fn into_result(self) -> Result<(), Error> {
        let named = self.named.join("; ");
        match self.more {
            0 if named.is_empty() => Ok(()),
            0 => Err(Error::Failed(named)),
            more => Err(Error::Failed(format!("{named}; and {more} more changes"))),
        }
    }
}
