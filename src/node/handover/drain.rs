//! A core that has made way: it keeps its connections until they end.

use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::cut::{Cutter, Gone};
use super::ports::groups_of;
use super::shared::SharedPorts;
use crate::node::harvesting::source;
use crate::node::state;
use crate::usage::harvest::{Harvester, Source};
use crate::xray::client::{self, Client};
use crate::xray::core::{Core, Launcher};
use crate::xray::handover::journal::Drained;
use crate::xray::handover::sockets;

/// The last handshakes with its listeners are over then. Closing one resets those that are under way.
const SETTLED: Duration = Duration::from_secs(3);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// It has drained when it was seen without a connection so often.
const SEEN_EMPTY: u32 = 2;
/// For each second of looking there are so many without,
const SHARE: u32 = 50;
/// but no more than this.
const LONGEST: Duration = Duration::from_secs(5);
/// How many orders wait at most.
const ORDERS: usize = 8;

/// The driver's side of one.
#[derive(Debug)]
pub(in crate::node) struct Drain {
    pub(in crate::node) source: Source,
    pub(in crate::node) pid: i32,
    pub(in crate::node) drained: Drained,
    /// How many connections it had at the last look.
    pub(in crate::node) connections: Arc<AtomicUsize>,
    /// The unix sockets that its inbounds listen on.
    sockets: Vec<PathBuf>,
    gone: Arc<Gone>,
    orders: mpsc::Sender<Order>,
    _task: JoinSet<()>,
}

/// Something that the driver has to know.
#[derive(Debug)]
pub(in crate::node) struct Event {
    pub(in crate::node) core: Uuid,
    pub(in crate::node) what: What,
}

#[derive(Debug)]
pub(in crate::node) enum What {
    /// It listens no more where others listen.
    Closed,
    /// The process is gone.
    Ended,
}

enum Order {
    /// It shall serve again, if it still can.
    GiveBack(oneshot::Sender<GivenBack>),
    /// It shall end, for this reason.
    End(&'static str, Option<oneshot::Sender<()>>),
}

/// A core that serves again.
pub(in crate::node) struct GivenBack {
    pub(in crate::node) core: Core,
    /// Users who were taken from it while it drained.
    pub(in crate::node) gone: BTreeSet<String>,
}

impl Drain {
    /// Lets a core drain for `timeout` at most. What is to be known of it goes to `events`.
    pub(in crate::node) fn begin(
        core: Core,
        drained: Drained,
        (launcher, harvester): (Arc<Launcher>, Arc<Harvester>),
        timeout: Duration,
        (events, ports): (mpsc::Sender<Event>, Arc<Mutex<SharedPorts>>),
    ) -> Self {
        let source = source(&core);
        let gone = Arc::new(Gone::default());
        let ports_of_it = drained.leaving.ports.clone();
        let cutter = Cutter::new(
            launcher,
            &core,
            source.clone(),
            ports_of_it,
            Arc::clone(&gone),
        );
        let mut cutting = JoinSet::new();
        cutting.spawn(cutter.run());
        let connections = Arc::new(AtomicUsize::new(0));
        let (orders, waiting) = mpsc::channel(ORDERS);
        let pid = core.pid();
        let sockets: Vec<PathBuf> = core.own_sockets().map(PathBuf::from).collect();
        let since = drained.since();
        let draining = Draining {
            gone: Arc::clone(&gone),
            cutting,
            core,
            source: source.clone(),
            drained: drained.clone(),
            harvester,
            until: since.checked_add(timeout),
            since,
            connections: Arc::clone(&connections),
            sockets: sockets.clone(),
            events,
            ports,
            empty: 0,
            pause: Duration::ZERO,
            next_harvest: Instant::now(),
        };
        let mut task = JoinSet::new();
        task.spawn(draining.run(waiting));
        Self {
            source,
            pid,
            drained,
            connections,
            sockets,
            gone,
            orders,
            _task: task,
        }
    }

    /// What everybody may know of it.
    pub(in crate::node) fn view(&self) -> state::Draining {
        state::Draining {
            source: self.source.clone(),
            pid: self.pid,
            since: self.drained.since(),
            connections: Arc::clone(&self.connections),
        }
    }

    /// These users are served nowhere any more, so what they have here ends, too.
    pub(in crate::node) fn cut(&self, emails: &[String]) {
        self.gone.add(emails);
    }

    /// The core, to serve again; `None` when any of its listeners is closed by now.
    pub(in crate::node) async fn give_back(&self) -> Option<GivenBack> {
        let (reply, core) = oneshot::channel();
        self.orders.send(Order::GiveBack(reply)).await.ok()?;
        core.await.ok()
    }

    /// Ends it now, after its last harvest; returns when it has ended.
    pub(in crate::node) async fn end(&self, why: &'static str) {
        let (reply, ended) = oneshot::channel();
        if self.orders.send(Order::End(why, Some(reply))).await.is_ok() {
            drop(ended.await);
        }
    }

    /// The same without waiting for it.
    pub(in crate::node) fn ask_to_end(&self, why: &'static str) {
        // Where it has no room for one more order it has been asked already.
        drop(self.orders.try_send(Order::End(why, None)));
    }

    /// Whether its listeners are closed.
    pub(in crate::node) fn is_closed(&self) -> bool {
        let leaving = &self.drained.leaving;
        leaving.at_once.is_empty() && leaving.later.is_empty() && !leaving.has_to_end
    }

    /// How many are connected to it now; `None` where nobody may look.
    pub(in crate::node) fn count(&self) -> Option<usize> {
        count(self.pid, &self.drained.leaving.ports, &self.sockets).ok()
    }
}

fn count(pid: i32, ports: &[RangeInclusive<u16>], sockets: &[PathBuf]) -> io::Result<usize> {
    let is_inbound = |port| ports.iter().any(|range| range.contains(&port));
    let connections = sockets::connections(pid, is_inbound)?;
    Ok(connections.len() + sockets::unix_connections(pid, sockets)?)
}

/// Closes inbounds; returns whether all of them are closed. A core that hangs is not waited for long.
async fn close(client: &Client, pid: i32, tags: &[String]) -> bool {
    let closing = tags.iter().map(|tag| async move {
        let mut closed = client.remove_inbound(tag).await;
        if matches!(closed, Err(client::Error::NoAnswer(_))) {
            closed = client.remove_inbound(tag).await;
        }
        match closed {
            // It was closed by a daemon that is gone.
            Ok(()) | Err(client::Error::NotFound(_)) => true,
            Err(error) => {
                tracing::warn!(pid, inbound = tag, %error, "the old core does not close this inbound");
                false
            }
        }
    });
    join_all(closing).await.into_iter().all(|closed| closed)
}

struct Draining {
    core: Core,
    source: Source,
    drained: Drained,
    gone: Arc<Gone>,
    cutting: JoinSet<()>,
    harvester: Arc<Harvester>,
    since: Instant,
    /// `None` for never.
    until: Option<Instant>,
    connections: Arc<AtomicUsize>,
    sockets: Vec<PathBuf>,
    events: mpsc::Sender<Event>,
    ports: Arc<Mutex<SharedPorts>>,
    empty: u32,
    /// How long it has to be between two looks, so that they cost little.
    pause: Duration,
    next_harvest: Instant,
}

impl Draining {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let at_once = std::mem::take(&mut self.drained.leaving.at_once);
        let leaving = &self.drained.leaving;
        let open = leaving.stays.iter().chain(&leaving.later).cloned();
        self.gone.set_open(open.collect());
        let mut whole = at_once.is_empty();
        let (client, pid) = (self.core.client().clone(), self.core.pid());
        let closed = close(&client, pid, &at_once).await;
        if !closed || self.drained.leaving.has_to_end {
            return self
                .finish("a listener of it can't be closed in another way")
                .await;
        }
        let mut closed = false;
        let mut next = self.since + SETTLED;
        loop {
            let order = tokio::select! {
                biased;
                how = self.core.ended() => {
                    tracing::warn!(pid = self.core.pid(), how, "the old core ended before its connections did");
                    return self.gone().await;
                }
                order = orders.recv() => order,
                () = tokio::time::sleep_until(next.into()) => {
                    if closed {
                        if let Some(why) = self.look().await {
                            return self.finish(why).await;
                        }
                    } else {
                        (closed, whole) = (true, false);
                        self.leave().await;
                    }
                    next = Instant::now() + LOOK.max(self.pause);
                    continue;
                }
            };
            match order {
                Some(Order::GiveBack(reply)) if whole => {
                    self.cutting.shutdown().await;
                    self.gone.unblock(self.core.client()).await;
                    let gone = self.gone.everybody();
                    let core = self.core;
                    drop(reply.send(GivenBack { core, gone }));
                    return;
                }
                Some(Order::GiveBack(_)) => {}
                Some(Order::End(why, reply)) => {
                    self.finish(why).await;
                    if let Some(reply) = reply {
                        reply.send(()).ok();
                    }
                    return;
                }
                // The driver has left, and its successor goes on.
                None => return,
            }
        }
    }

    /// Closes the listeners that nobody needs any more.
    async fn leave(&mut self) {
        let mut ports = self.ports.lock().await;
        let later = std::mem::take(&mut self.drained.leaving.later);
        self.gone.set_open(self.drained.leaving.stays.clone());
        let pid = self.core.pid();
        if close(self.core.client(), pid, &later).await && !later.is_empty() {
            let inbounds = later.len();
            tracing::info!(pid, inbounds, "the old core has closed its listeners");
        }
        let of_it = &self.drained.leaving.ports;
        let still = groups_of(pid, |port| of_it.iter().any(|range| range.contains(&port)));
        ports.left(self.core.id(), &still);
        drop(ports);
        tell(&self.events, self.core.id(), What::Closed).await;
    }

    /// Returns why it shall end now, if it shall.
    async fn look(&mut self) -> Option<&'static str> {
        let now = Instant::now();
        if now >= self.next_harvest {
            let wait = match self.harvester.harvest(&self.source).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::debug!(pid = self.core.pid(), %error, "the core that drains is not read");
                    LOOK
                }
            };
            self.next_harvest = now + wait;
        }
        let began = Instant::now();
        match self.count().await {
            Some(0) => self.empty += 1,
            _ => self.empty = 0,
        }
        // One that seems to be empty is looked at again soon.
        self.pause = match self.empty {
            0 => began.elapsed().saturating_mul(SHARE).min(LONGEST),
            _ => LOOK,
        };
        if self.empty >= SEEN_EMPTY {
            return Some("it has drained");
        }
        let over = self.until.is_some_and(|until| now >= until);
        over.then_some("DRAIN_TIMEOUT is over")
    }

    /// How many are connected; `None` where nobody may look.
    async fn count(&self) -> Option<usize> {
        let (pid, ports) = (self.core.pid(), self.drained.leaving.ports.clone());
        let sockets = self.sockets.clone();
        let looked = tokio::task::spawn_blocking(move || count(pid, &ports, &sockets));
        let count = looked.await.ok()?.ok()?;
        self.connections.store(count, Ordering::Relaxed);
        Some(count)
    }

    async fn finish(mut self, why: &'static str) {
        self.cutting.shutdown().await;
        let (pid, after_s) = (self.core.pid(), self.since.elapsed().as_secs());
        match self.count().await {
            Some(0) => tracing::info!(
                pid,
                after_s,
                why,
                "the old core ends, nobody is connected to it"
            ),
            Some(connections) => tracing::warn!(
                pid,
                after_s,
                connections,
                why,
                "the old core ends together with its connections"
            ),
            None => tracing::info!(pid, after_s, why, "the old core ends"),
        }
        self.harvester.last(&self.source).await;
        self.gone().await;
    }

    async fn gone(self) {
        let core = self.core.id();
        let mut ports = self.ports.lock().await;
        self.core.stop().await;
        ports.left(core, &[]);
        drop(ports);
        tell(&self.events, core, What::Ended).await;
    }
}

async fn tell(events: &mpsc::Sender<Event>, core: Uuid, what: What) {
    // A driver that has left needs to know nothing.
    drop(events.send(Event { core, what }).await);
}
