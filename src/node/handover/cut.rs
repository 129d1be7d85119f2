//! Ends what removed users have in a core that drains.
//!
//! They get no new stream there: a rule leads them nowhere, also out of a multiplexed connection that is
//! open; but behind a rule that matches everything it does nothing. The connections of an address that
//! nobody else uses in that core are ended; where users share an address nobody can tell whose a connection
//! is, and ending a neighbour's would be worse.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::usage::harvest::{Source, TELLS_USERS_STATS};
use crate::xray::client::{self, Client};
use crate::xray::core::{Address, Core, Launcher};
use crate::xray::handover::destroy::Destroyer;
use crate::xray::handover::sockets;

/// The tag of each rule begins so.
const RULE: &str = "raynode-gone";
/// There is no such outbound, so whoever is led there is refused.
const NOWHERE: &str = "raynode-nowhere";
/// So many users are in one rule, which has to fit into 4 MiB.
const IN_A_RULE: usize = 10_000;
/// Of so many users the addresses are asked for.
const ASKED: usize = 2000;
/// How many users are taken from the core at once.
const IN_FLIGHT: usize = 64;

/// Who is to be cut, for as long as nobody has begun to.
#[derive(Debug, Default)]
pub(super) struct Gone {
    waiting: Mutex<BTreeSet<String>>,
    more: Notify,
    /// Everybody who was cut.
    cut: Mutex<BTreeSet<String>>,
    /// The rules that block them.
    rules: Mutex<Vec<String>>,
    /// The inbounds that the core still has.
    open: Mutex<Vec<String>>,
}

impl Gone {
    pub(super) fn add(&self, emails: &[String]) {
        if !emails.is_empty() {
            lock(&self.waiting).extend(emails.iter().cloned());
            self.more.notify_one();
        }
    }

    pub(super) fn set_open(&self, tags: Vec<String>) {
        *lock(&self.open) = tags;
    }

    /// Everybody who was cut or is about to be.
    pub(super) fn everybody(&self) -> BTreeSet<String> {
        let waiting = lock(&self.waiting).clone();
        waiting.union(&lock(&self.cut)).cloned().collect()
    }

    /// Takes the rules away that block them: the core is to serve again.
    pub(super) async fn unblock(&self, client: &Client) {
        let rules = std::mem::take(&mut *lock(&self.rules));
        for rule in rules {
            if let Err(error) = client.remove_rule(&rule).await {
                tracing::warn!(rule, %error, "users who were removed stay blocked in this core");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Cutter {
    launcher: Arc<Launcher>,
    core: Source,
    address: Address,
    pid: i32,
    ports: Vec<RangeInclusive<u16>>,
    gone: Arc<Gone>,
    /// The last rule, as long as it has room for more.
    last: Option<(String, BTreeSet<String>)>,
}

impl Cutter {
    pub(super) fn new(
        launcher: Arc<Launcher>,
        core: &Core,
        source: Source,
        ports: Vec<RangeInclusive<u16>>,
        gone: Arc<Gone>,
    ) -> Self {
        Self {
            launcher,
            core: source,
            address: core.address(),
            pid: core.pid(),
            ports,
            gone,
            last: None,
        }
    }

    /// Cuts whoever is to be cut, for as long as nobody drops it.
    pub(super) async fn run(mut self) {
        loop {
            self.gone.more.notified().await;
            let emails = std::mem::take(&mut *lock(&self.gone.waiting));
            if emails.is_empty() {
                continue;
            }
            lock(&self.gone.cut).extend(emails.iter().cloned());
            self.cut(emails).await;
        }
    }

    async fn cut(&mut self, emails: BTreeSet<String>) {
        let (pid, users) = (self.pid, emails.len());
        let addresses = self.addresses_of(&emails).await;
        let ended = self.end_connections(addresses).await;
        let emails: Vec<String> = emails.into_iter().collect();
        for some in emails.chunks(IN_A_RULE) {
            self.block(some).await;
        }
        self.remove(&emails).await;
        tracing::info!(
            pid,
            users,
            connections = ended,
            "removed users are cut in the core that drains, too"
        );
    }

    /// From the inbounds that it still has.
    async fn remove(&self, emails: &[String]) {
        let tags = lock(&self.gone.open).clone();
        for tag in &tags {
            for some in emails.chunks(IN_FLIGHT) {
                let mut removals = Vec::with_capacity(some.len());
                for email in some {
                    removals.push(self.remove_from(tag, email));
                }
                join_all(removals).await;
            }
        }
    }

    async fn remove_from(&self, tag: &str, email: &str) {
        match self.core.client.remove_user(tag, email).await {
            Ok(()) | Err(client::Error::NotFound(_)) => {}
            Err(error) => {
                tracing::debug!(pid = self.pid, email, %error, "a removed user keeps his account in the core that drains");
            }
        }
    }

    /// One rule for many: a new one with all of them takes the place of the last one.
    async fn block(&mut self, emails: &[String]) {
        let last = self.last.take();
        let last = last.filter(|(_, users)| users.len() + emails.len() <= IN_A_RULE);
        let mut users: BTreeSet<String> =
            last.iter().flat_map(|(_, users)| users).cloned().collect();
        // Xray would take the rest of such a name for a pattern.
        users.extend(
            emails
                .iter()
                .filter(|email| !email.starts_with("regexp:"))
                .cloned(),
        );
        let tag = format!("{RULE}-{}", Uuid::new_v4().simple());
        let rule = json!({
            "type": "field", "ruleTag": tag, "user": users, "outboundTag": NOWHERE,
        });
        // Known before it is there: whoever takes the rules away takes this one, too.
        lock(&self.gone.rules).push(tag.clone());
        if let Err(error) = self.launcher.append_rules_at(&self.address, &[rule]).await {
            tracing::warn!(pid = self.pid, %error, "removed users may open streams in multiplexed connections of the core that drains");
            self.last = last;
            return;
        }
        if let Some((before, _)) = last {
            drop(self.core.client.remove_rule(&before).await);
            lock(&self.gone.rules).retain(|rule| *rule != before);
        }
        self.last = Some((tag, users));
    }

    /// The addresses that these users have for themselves.
    async fn addresses_of(&self, emails: &BTreeSet<String>) -> HashSet<IpAddr> {
        let Some(online) = self.online().await else {
            return HashSet::new();
        };
        let cut = lock(&self.gone.cut).clone();
        let (leaving, staying): (Vec<_>, Vec<_>) = online
            .into_iter()
            .partition(|(email, _)| emails.contains(email) || cut.contains(email));
        let staying: HashSet<IpAddr> = staying.into_iter().flat_map(|(_, ips)| ips).collect();
        let leaving = leaving.into_iter().flat_map(|(_, ips)| ips);
        leaving.filter(|ip| !staying.contains(ip)).collect()
    }

    /// Who is connected to this core, from where; `None` where it does not tell.
    async fn online(&self) -> Option<HashMap<String, Vec<IpAddr>>> {
        let ips = |texts: Vec<String>| texts.iter().filter_map(|ip| ip.parse().ok()).collect();
        if self.core.version >= TELLS_USERS_STATS {
            // Not by the last harvest: whom that has not seen yet may be the one who is to be cut.
            let users = self.core.client.users_stats().await.ok()?;
            let users = users.into_iter().map(|user| {
                let addresses = user.ips.into_iter().map(|address| address.ip);
                (user.email, ips(addresses.collect()))
            });
            return Some(users.collect());
        }
        let names = self.core.client.online_users().await.ok()?;
        if names.len() > ASKED {
            return None;
        }
        let mut online = HashMap::new();
        for name in names {
            let addresses = self.core.client.online_addresses(&name).await;
            let addresses = addresses.unwrap_or_default().into_iter().map(|(ip, _)| ip);
            online.insert(name, ips(addresses.collect()));
        }
        Some(online)
    }

    /// Returns how many ended.
    async fn end_connections(&self, addresses: HashSet<IpAddr>) -> usize {
        if addresses.is_empty() {
            return 0;
        }
        let (pid, ports) = (self.pid, self.ports.clone());
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
}
