//! Ends what removed users have in a core that drains.
//!
//! They get no new stream there: a rule leads them nowhere, also out of a multiplexed connection that is
//! open. The connections of an address that nobody else uses in that core are ended; where users share an
//! address nobody can tell whose a connection is, and ending a neighbour's would be worse.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::json;

use crate::node::harvesting::source;
use crate::usage::harvest::{Harvester, TELLS_USERS_STATS};
use crate::xray::client;
use crate::xray::core::{Core, Launcher};
use crate::xray::handover::destroy::Destroyer;
use crate::xray::handover::sockets;

/// The tag of the rule, with a number: each one replaces the one before.
const RULE: &str = "raynode-gone";
/// There is no such outbound, so whoever is led there is refused.
const NOWHERE: &str = "raynode-nowhere";
/// Of so many users the addresses are asked for.
const ASKED: usize = 2000;

pub(super) struct Cutter {
    launcher: Arc<Launcher>,
    harvester: Arc<Harvester>,
    /// Everybody who was cut.
    gone: HashSet<String>,
    rules: u32,
}

impl Cutter {
    pub(super) fn new(launcher: Arc<Launcher>, harvester: Arc<Harvester>) -> Self {
        Self {
            launcher,
            harvester,
            gone: HashSet::new(),
            rules: 0,
        }
    }

    /// Cuts users who are served nowhere any more. `tags` are the inbounds that the core still has.
    pub(super) async fn cut(
        &mut self,
        core: &Core,
        emails: Vec<String>,
        tags: &[String],
        ports: &[RangeInclusive<u16>],
    ) {
        let pid = core.pid();
        for email in &emails {
            for tag in tags {
                match core.client().remove_user(tag, email).await {
                    Ok(()) | Err(client::Error::NotFound(_)) => {}
                    Err(error) => {
                        tracing::debug!(pid, email, %error, "a removed user keeps his account in the core that drains");
                    }
                }
            }
        }
        let count = emails.len();
        let addresses = self.addresses_of(core, &emails).await;
        self.gone.extend(emails);
        self.block(core).await;
        let ended = end_connections(pid, addresses, ports).await;
        tracing::info!(
            pid,
            users = count,
            connections = ended,
            "removed users are cut in the core that drains, too"
        );
    }

    /// One rule for all of them: the old one goes when the new one is there.
    async fn block(&mut self, core: &Core) {
        let users: Vec<&String> = self.gone.iter().collect();
        let before = format!("{RULE}-{}", self.rules);
        self.rules += 1;
        let rule = json!({
            "type": "field",
            "ruleTag": format!("{RULE}-{}", self.rules),
            "user": users,
            "outboundTag": NOWHERE,
        });
        match self.launcher.append_rules(core, &[rule]).await {
            Ok(()) if self.rules > 1 => drop(core.client().remove_rule(&before).await),
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(pid = core.pid(), %error, "removed users may open streams in multiplexed connections of the core that drains");
            }
        }
    }

    /// The addresses that these users have for themselves.
    async fn addresses_of(&self, core: &Core, emails: &[String]) -> HashSet<IpAddr> {
        let Some(online) = self.online(core).await else {
            return HashSet::new();
        };
        let (leaving, staying): (Vec<_>, Vec<_>) = online
            .into_iter()
            .partition(|(email, _)| emails.contains(email) || self.gone.contains(email));
        let staying: HashSet<IpAddr> = staying.into_iter().flat_map(|(_, ips)| ips).collect();
        let leaving = leaving.into_iter().flat_map(|(_, ips)| ips);
        leaving.filter(|ip| !staying.contains(ip)).collect()
    }

    /// Who is connected to this core, from where; `None` where it does not tell.
    async fn online(&self, core: &Core) -> Option<HashMap<String, Vec<IpAddr>>> {
        let ips = |texts: Vec<String>| texts.iter().filter_map(|ip| ip.parse().ok()).collect();
        if core.version() >= TELLS_USERS_STATS {
            let users = self.harvester.online(&source(core)).await.ok()?;
            let users = users.into_iter().map(|user| {
                let addresses = user.addresses.into_iter().map(|address| address.ip);
                (user.email, ips(addresses.collect()))
            });
            return Some(users.collect());
        }
        let names = core.client().online_users().await.ok()?;
        if names.len() > ASKED {
            return None;
        }
        let mut online = HashMap::new();
        for name in names {
            let addresses = core.client().online_addresses(&name).await;
            let addresses = addresses.unwrap_or_default().into_iter().map(|(ip, _)| ip);
            online.insert(name, ips(addresses.collect()));
        }
        Some(online)
    }
}

/// Returns how many ended.
async fn end_connections(
    pid: i32,
    addresses: HashSet<IpAddr>,
    ports: &[RangeInclusive<u16>],
) -> usize {
    if addresses.is_empty() {
        return 0;
    }
    let ports = ports.to_vec();
    let ending = tokio::task::spawn_blocking(move || -> io::Result<usize> {
        let is_inbound = |port| ports.iter().any(|range| range.contains(&port));
        let destroyer = Destroyer::new()?;
        let mut ended = 0;
        for connection in sockets::connections(pid, is_inbound)? {
            if addresses.contains(&connection.peer.ip().to_canonical()) {
                destroyer.destroy(&connection)?;
                ended += 1;
            }
        }
        Ok(ended)
    });
    match ending.await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => {
            tracing::warn!(pid, %error, "open connections of removed users last until the old core ends; ending them needs CAP_NET_ADMIN");
            0
        }
        Err(_) => 0,
    }
}
