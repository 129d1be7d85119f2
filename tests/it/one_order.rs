//! Changes that come at the same time are made one after the other, whatever happens to the daemon
//! meanwhile: what the core has in the end is what some order of them gives.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use tonic::{Code, Status};

use crate::NODE;
use crate::support::users::user;
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, ports, times};

/// Users of the test, by number.
const USERS: std::ops::Range<u8> = 0..6;

#[derive(Clone, Debug)]
enum Op {
    /// With one of two configurations.
    Start(BTreeSet<u8>, bool),
    Stop,
    Put(u8),
    Take(u8),
    Replace(BTreeSet<u8>),
}

/// What a call brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Done,
    Refused,
    /// The daemon died: it was done, or not, or to the half that can be told apart.
    Nothing,
}

/// The node as far as this test looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    session: bool,
    users: BTreeSet<u8>,
}

impl Model {
    /// What an order of the calls may lead to, each with what its caller heard.
    fn after(&self, calls: &[(Op, Heard)]) -> Vec<Self> {
        let mut ends = vec![self.clone()];
        for (op, heard) in calls {
            ends = ends
                .into_iter()
                .flat_map(|model| model.step(op, *heard))
                .collect();
        }
        ends
    }

    fn step(self, op: &Op, heard: Heard) -> Vec<Self> {
        let done = self.clone().done(op);
        match (heard, done) {
            (Heard::Done, Some(done)) => vec![done],
            (Heard::Refused | Heard::Nothing, None) => vec![self],
            (Heard::Done, None) | (Heard::Refused, Some(_)) => Vec::new(),
            (Heard::Nothing, Some(done)) => {
                // The users of a Start are there before its session is.
                let half = Self {
                    session: self.session,
                    users: done.users.clone(),
                };
                vec![self, half, done]
            }
        }
    }

    /// `None` when it is refused.
    fn done(mut self, op: &Op) -> Option<Self> {
        match op {
            Op::Start(users, _) => {
                self.session = true;
                self.users.clone_from(users);
            }
            _ if !self.session => return None,
            Op::Stop => self.session = false,
            Op::Put(number) => drop(self.users.insert(*number)),
            Op::Take(number) => drop(self.users.remove(number)),
            Op::Replace(users) => self.users.clone_from(users),
        }
        Some(self)
    }
}

fn orders(calls: &[(Op, Heard)]) -> Vec<Vec<(Op, Heard)>> {
    if calls.is_empty() {
        return vec![Vec::new()];
    }
    (0..calls.len())
        .flat_map(|first| {
            let mut rest = calls.to_vec();
            let one = rest.remove(first);
            orders(&rest).into_iter().map(move |mut order| {
                order.insert(0, one.clone());
                order
            })
        })
        .collect()
}

async fn perform(panel: &Panel, configs: &[Value; 2], op: &Op) -> Heard {
    let listed = |users: &BTreeSet<u8>| -> Vec<_> {
        users
            .iter()
            .map(|number| user(&number.to_string(), &["vless"]))
            .collect()
    };
    let result: Result<(), Status> = match op {
        Op::Start(users, other) => panel
            .start(&configs[usize::from(*other)], &listed(users))
            .await
            .map(drop),
        Op::Stop => panel.stop().await,
        Op::Put(number) => panel.sync_user(user(&number.to_string(), &["vless"])).await,
        Op::Take(number) => panel.sync_user(user(&number.to_string(), &[])).await,
        Op::Replace(users) => panel.sync_all(&listed(users)).await,
    };
    match result {
        Ok(()) => Heard::Done,
        Err(status) if status.message() == "backend not initialized" => Heard::Refused,
        Err(status) => {
            assert!(
                matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
                ),
                "{op:?}: {status}"
            );
            Heard::Nothing
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let set = || proptest::collection::btree_set(USERS, 0..5);
    prop_oneof![
        3 => (set(), proptest::bool::weighted(0.2)).prop_map(|(users, other)| Op::Start(users, other)),
        1 => Just(Op::Stop),
        3 => USERS.prop_map(Op::Put),
        3 => USERS.prop_map(Op::Take),
        2 => set().prop_map(Op::Replace),
    ]
}

/// What there is at the moment, where that can be seen.
async fn look(node: &NodeProcess, panel: &Panel) -> Option<Model> {
    if node.cores().len() != 1 {
        return None;
    }
    node.core();
    let users = node.core_api().users("vless").await.ok()?;
    Some(Model {
        session: panel.info().await.started,
        users: users
            .iter()
            .map(|user| user.email.parse().unwrap())
            .collect(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_at_once_ends_as_some_order_of_it() {
    let rounds = times(40, 400);
    let mut node = NodeProcess::start_with(NODE, &[("STOP_GRACE", "1h")]);
    let mut panel = Panel::of(&node);
    let base = vless_config(ports::free());
    let mut other = base.clone();
    other["log"]["loglevel"] = "error".into();
    let configs = [base, other];
    panel.start(&configs[0], &[]).await.unwrap();
    let mut model = Model {
        session: true,
        users: BTreeSet::new(),
    };
    let mut random = TestRunner::new(ProptestConfig::default());
    let calls = proptest::collection::vec(op(), 3);
    let fate = (proptest::bool::weighted(0.3), 0..60_u64);
    for round in 0..rounds {
        let ops = calls.new_tree(&mut random).unwrap().current();
        let (dies, after) = fate.new_tree(&mut random).unwrap().current();
        let under_way: Vec<_> = ops
            .iter()
            .cloned()
            .map(|op| {
                // Each on a connection of its own.
                let (panel, configs) = (Panel::of(&node), configs.clone());
                tokio::spawn(async move {
                    let heard = perform(&panel, &configs, &op).await;
                    (op, heard)
                })
            })
            .collect();
        if dies {
            tokio::time::sleep(Duration::from_millis(after)).await;
            node.kill();
            node.launch();
            panel = Panel::of(&node);
        }
        let mut heard = Vec::new();
        for call in under_way {
            heard.push(call.await.unwrap());
        }
        // The next daemon answers when it has finished what the last one had begun.
        panel.info().await;
        let possible: Vec<Model> = orders(&heard)
            .iter()
            .flat_map(|order| model.after(order))
            .collect();
        // A core that comes up answers a moment before its node says that it serves.
        let deadline = Instant::now() + Duration::from_secs(20);
        let found = loop {
            let found = look(&node, &panel).await;
            match found {
                Some(found) if possible.contains(&found) => break found,
                found if Instant::now() > deadline => panic!(
                    "round {round}, killed: {dies}: from {model:?} by {heard:?} to {found:?}: {}",
                    node.log()
                ),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        model = found;
    }
}
