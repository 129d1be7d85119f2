//! User changes made in a core over its API, and the roster kept true to what the core has.

use futures_util::StreamExt;

use super::Error;
use super::plan::{UserChanges, UserOp};
use super::roster::Roster;
use crate::xray::account::Account;
use crate::xray::client::{self, Client};
use crate::xray::config::{Inbound, Skeleton};

/// How many user changes are on their way to the core at once.
const IN_FLIGHT: usize = 64;
/// How many failed users one error names.
const NAMED: usize = 10;

/// Tells the core, and notes in the roster what it confirmed: after an error the roster still says
/// what the core has.
pub(super) async fn change_users(
    client: &Client,
    skeleton: &Skeleton,
    roster: &mut Roster,
    changes: UserChanges,
) -> Result<(), Error> {
    let inbounds: Vec<&Inbound> = skeleton.inbounds().collect();
    let mut failed = Vec::new();
    for phase in [changes.first, changes.then] {
        let mut results = futures_util::stream::iter(phase)
            .map(|op| {
                let inbound = inbounds
                    .iter()
                    .copied()
                    .find(|inbound| inbound.tag == *op.inbound());
                async move {
                    let result = match inbound {
                        Some(inbound) => perform(client, inbound, &op).await,
                        None => Done::Failed(format!("inbound {:?} is not there", op.inbound())),
                    };
                    (op, result)
                }
            })
            .buffer_unordered(IN_FLIGHT);
        while let Some((op, result)) = results.next().await {
            if let Some(reason) = note(roster, &op, result) {
                failed.push(format!(
                    "user {}: inbound {:?}: {reason}",
                    op.email(),
                    op.inbound()
                ));
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let more = failed.len().saturating_sub(NAMED);
    failed.truncate(NAMED);
    let mut text = failed.join("; ");
    if more > 0 {
        text.push_str("; and ");
        text.push_str(&more.to_string());
        text.push_str(" more");
    }
    Err(Error::Failed(text))
}

/// What the core has after an attempt.
enum Done {
    /// What was asked for.
    All,
    /// The user is gone, and his new account was refused.
    OnlyRemoved(String),
    /// Nothing changed.
    Failed(String),
    /// Nobody knows.
    Unknown(String),
}

async fn perform(client: &Client, inbound: &Inbound, op: &UserOp) -> Done {
    match op {
        UserOp::Add { email, account, .. } => add(client, inbound, email.as_str(), account).await,
        UserOp::Remove { email, .. } => match remove(client, inbound, email.as_str()).await {
            Ok(()) => Done::All,
            Err(error) => failed(client, inbound, email.as_str(), error).await,
        },
        UserOp::Replace {
            old,
            email,
            account,
            ..
        } => {
            if let Err(error) = remove(client, inbound, old.as_str()).await {
                return failed(client, inbound, old.as_str(), error).await;
            }
            match add(client, inbound, email.as_str(), account).await {
                Done::Failed(reason) => Done::OnlyRemoved(reason),
                done => done,
            }
        }
    }
}

async fn add(client: &Client, inbound: &Inbound, email: &str, account: &Account) -> Done {
    let mut result = client.add_user(inbound, email, account).await;
    if let Err(client::Error::Refused(reason)) = &result
        && reason.to_ascii_lowercase().contains("already exists")
    {
        // The core knows more than we do; from now on it has this account.
        result = match remove(client, inbound, email).await {
            Ok(()) => client.add_user(inbound, email, account).await,
            Err(error) => Err(error),
        };
    }
    match result {
        Ok(()) => Done::All,
        Err(error) => failed(client, inbound, email, error).await,
    }
}

/// A user who is not there is removed.
async fn remove(client: &Client, inbound: &Inbound, email: &str) -> Result<(), client::Error> {
    match client.remove_user(inbound, email).await {
        Err(client::Error::NotFound(_)) => Ok(()),
        result => result,
    }
}

/// Without an answer the change may have been made or not: ask once, to know.
async fn failed(client: &Client, inbound: &Inbound, email: &str, error: client::Error) -> Done {
    match error {
        client::Error::NoAnswer(reason) => match client.has_user(inbound, email).await {
            Ok(false) => Done::OnlyRemoved(reason),
            Ok(true) | Err(_) => Done::Unknown(reason),
        },
        refused => Done::Failed(refused.to_string()),
    }
}

/// Returns why it failed, if it did.
fn note(roster: &mut Roster, op: &UserOp, done: Done) -> Option<String> {
    match (op, done) {
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
            Done::All,
        ) => {
            roster.put(inbound, email, Some(account.clone()));
            None
        }
        (UserOp::Remove { inbound, email }, Done::All) => {
            roster.take(inbound, email);
            None
        }
        (op, Done::OnlyRemoved(reason)) => {
            roster.take(op.inbound(), op.email());
            Some(reason)
        }
        (op, Done::Unknown(reason)) => {
            roster.put(op.inbound(), op.email(), None);
            Some(reason)
        }
        (_, Done::Failed(reason)) => Some(reason),
    }
}
