//! Who may connect, who does, and what was used.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::node::{Error, Node};
use crate::proto::raynode::v1::{
    Kind as Named, ListUsersRequest, OnlineAddress, Traffic, UsageTotal, UserEntry,
};
use crate::usage::counter::{Bytes, Kind};
use crate::usage::ledger::Total;

/// How long a core may take to tell who is online.
const PATIENCE: Duration = Duration::from_secs(3);

/// Everybody who is asked for, sorted by e-mail.
pub(super) async fn list(node: &Node, request: &ListUsersRequest) -> Result<Vec<UserEntry>, Error> {
    let online = async {
        let asked = match &*request.email {
            "" => tokio::time::timeout(PATIENCE, node.whoever_is_online()).await,
            email => tokio::time::timeout(PATIENCE, node.where_is(email)).await,
        };
        Ok(asked.ok().flatten().unwrap_or_default())
    };
    let (users, totals, online) = tokio::try_join!(node.users(), node.totals_of_now(), online)?;
    let mut online: HashMap<String, Vec<OnlineAddress>> = online
        .into_iter()
        .map(|user| {
            (
                user.email,
                user.addresses.into_iter().map(Into::into).collect(),
            )
        })
        .collect();
    let used: HashMap<Arc<str>, Total> = totals
        .into_iter()
        .filter(|total| total.kind == Kind::User)
        .map(|total| (Arc::clone(&total.name), total))
        .collect();
    let is_asked_for = |email: &str| {
        request.email.is_empty() || request.email.to_lowercase() == email.to_lowercase()
    };
    let entries = users
        .into_iter()
        .filter(|user| is_asked_for(&user.email))
        .map(|user| {
            let used = used.get(&user.email);
            let there = online.remove(&*user.email);
            UserEntry {
                online: there.is_some(),
                addresses: there.unwrap_or_default(),
                lifetime: used.map(|used| traffic(used.lifetime)),
                pending: used.map(|used| traffic(used.pending)),
                inbounds: user.inbounds.iter().map(ToString::to_string).collect(),
                email: user.email.to_string(),
            }
        });
    Ok(entries
        .filter(|entry| !request.online || entry.online)
        .collect())
}

/// What was used of a kind, sorted by name; of all of them where none is named.
pub(super) async fn usage(node: &Node, kind: Named) -> Result<Vec<UsageTotal>, Error> {
    let mut totals: Vec<UsageTotal> = node
        .totals_of_now()
        .await?
        .into_iter()
        .filter(|total| kind == Named::Unspecified || Named::from(total.kind) == kind)
        .map(|total| UsageTotal {
            kind: Named::from(total.kind).into(),
            name: total.name.to_string(),
            lifetime: Some(traffic(total.lifetime)),
            pending: Some(traffic(total.pending)),
        })
        .collect();
    totals.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    Ok(totals)
}

fn traffic(bytes: Bytes) -> Traffic {
    Traffic {
        uplink: bytes.up,
        downlink: bytes.down,
    }
}
