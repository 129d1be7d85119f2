//! A core makes way for another one, and nobody notices: streams are held and somebody connects all the
//! time while everything changes that a panel, or an operator, can change.

mod dying;
mod failing;
mod living_on;
mod parts;
mod unnoticed;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raynode::proto::raynode::v1::{ListCoresRequest, RenewCoreRequest};
use raynode::proto::service::{StatType, User};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::NODE;
use crate::support::node::{xray_binary, xray_version};
use crate::support::storm::{self, Outcome};
use crate::support::users::{self, id, numbered, user};
use crate::support::xray::{freedom, vless_inbound};
use crate::support::{
    Distance, Echo, Load, NodeProcess, Panel, Storm, Streams, XrayClient, eventually, panel, ports,
    times, tricky, vless,
};
use crate::transports::{self, Case};

/// Whoever makes a thousand connections a second does it alone.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A node with one inbound that everybody uses.
struct Place {
    node: NodeProcess,
    panel: Panel,
    config: Value,
    users: Vec<User>,
    port: u16,
    echo: Echo,
}

/// One rule and one inbound, on all addresses.
fn config(port: u16) -> Value {
    let mut inbound = vless_inbound("vless", port);
    inbound["listen"] = "0.0.0.0".into();
    json!({
        "log": { "loglevel": "warning" },
        "inbounds": [inbound],
        "outbounds": [freedom(), { "tag": "block", "protocol": "blackhole" }],
        "routing": { "rules": [
            { "ruleTag": "last", "domain": ["domain:invalid"], "outboundTag": "block" },
        ]},
    })
}

impl Place {
    async fn new(settings: &[(&str, &str)]) -> Self {
        Self::with(NodeProcess::start_with(NODE, settings), 3).await
    }

    async fn with(node: NodeProcess, users: usize) -> Self {
        let panel = Panel::of(&node);
        let port = ports::free();
        let place = Self {
            config: config(port),
            users: numbered(0..users, &["vless"]),
            echo: Echo::start().await,
            node,
            panel,
            port,
        };
        place.start(&place.config).await;
        place
    }

    async fn start(&self, config: &Value) {
        self.panel.start(config, &self.users).await.unwrap();
    }

    fn load(&self, per_second: u32, held: usize) -> Load {
        Load {
            at: storm::loopback(self.port),
            from: storm::NEAR,
            id: id("0"),
            target: self.echo.address,
            per_second,
            held,
        }
    }

    fn load_from(&self, distance: &Distance, per_second: u32, held: usize) -> Load {
        Load {
            at: SocketAddr::new(distance.here().into(), self.port),
            from: Ipv4Addr::UNSPECIFIED,
            ..self.load(per_second, held)
        }
    }

    /// Changes the configuration and returns the core that serves it.
    async fn hand_over(&self, config: &Value) -> i32 {
        let before = self.node.core();
        self.start(config).await;
        let after = self.node.core();
        assert_ne!(before, after, "another core serves");
        after
    }

    /// All that user 0 has used, as one who bills reads it.
    async fn billed(&self) -> (u64, u64) {
        let (mut up, mut down) = (0, 0);
        let stats = self.panel.stats(StatType::UsersStat, "", true).await;
        for stat in stats.unwrap() {
            assert_eq!(stat.name, "0");
            let value = u64::try_from(stat.value).unwrap();
            match stat.r#type.as_str() {
                "uplink" => up += value,
                _ => down += value,
            }
        }
        (up, down)
    }
}

/// What can differ between two configurations, one after the other.
fn changes(config: &Value) -> Vec<(&'static str, Value)> {
    let mut steps = Vec::new();
    let mut now = config.clone();
    let list = |value: &mut Value, path: &str| value.pointer_mut(path).unwrap().take();
    let mut inbounds = list(&mut now, "/inbounds").as_array().unwrap().clone();
    inbounds.push(vless_inbound("more", ports::free()));
    now["inbounds"] = inbounds.clone().into();
    steps.push(("an inbound more", now.clone()));
    inbounds[0]["sniffing"] = json!({ "enabled": true, "destOverride": ["http"] });
    now["inbounds"] = inbounds.clone().into();
    steps.push(("an inbound changed", now.clone()));
    inbounds.pop();
    now["inbounds"] = inbounds.into();
    steps.push(("an inbound less", now.clone()));
    let outbounds = now["outbounds"].as_array_mut().unwrap();
    outbounds.push(json!({ "tag": "other", "protocol": "freedom" }));
    steps.push(("an outbound more", now.clone()));
    let rules = now["routing"]["rules"].as_array_mut().unwrap();
    let first = json!({ "ruleTag": "first", "domain": ["domain:test"], "outboundTag": "block" });
    rules.insert(0, first);
    steps.push(("a rule before the others", now.clone()));
    now["log"]["loglevel"] = "error".into();
    steps.push(("the log level", now));
    steps
}

fn nobody_noticed(outcome: &Outcome, node: &NodeProcess) {
    assert_eq!(
        (outcome.failed, outcome.ended),
        (0, 0),
        "{outcome:?}: {}",
        story(node)
    );
}

/// What the node's log says, without what is only said for debugging.
fn story(node: &NodeProcess) -> String {
    let log = node.log();
    let lines = log.lines().filter(|line| !line.contains(" DEBUG "));
    lines.collect::<Vec<_>>().join("\n")
}

/// The line of the log that says that it is done.
const FLIPPED: &str = "new connections go to the new core";

fn said(node: &NodeProcess, what: &str) -> usize {
    node.log()
        .lines()
        .filter(|line| line.contains(what))
        .count()
}

/// Nothing more, and nothing less but what Xray itself does not count: of two connections of a user that begin
/// in the same instant at a fresh core, one goes uncounted in one direction.
async fn everything_is_billed_once(place: &Place, outcome: &Outcome) {
    const UNCOUNTED: u64 = 4 * storm::WORD as u64;
    let all = outcome.bytes;
    let (mut up, mut down) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while (up, down) != (all, all) && Instant::now() < deadline {
        let more = place.billed().await;
        up += more.0;
        down += more.1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let least = all - UNCOUNTED * said(&place.node, FLIPPED) as u64;
    for billed in [up, down] {
        assert!((least..=all).contains(&billed), "{up} and {down} of {all}");
    }
}

/// A node whose cores do `trick` when they are told to.
async fn with_a_trick(trick: &str, settings: &[(&str, &str)]) -> Place {
    let mut node = NodeProcess::prepare(NODE, settings);
    tricky::prepare(&mut node, trick);
    node.launch();
    Place::with(node, 3).await
}

/// A node whose Xray is named in its `.env`, so that another one can be named while it runs.
fn with_a_choice_of_xray() -> NodeProcess {
    let mut node = NodeProcess::prepare(NODE, &[]);
    node.unset("XRAY_EXECUTABLE_PATH");
    choose_xray(&node.folder().join(".env"), &xray_binary());
    node.launch();
    node
}

fn choose_xray(env: &Path, binary: &Path) {
    let line = format!("XRAY_EXECUTABLE_PATH={}\n", binary.display());
    std::fs::write(env, line).unwrap();
}

/// Another Xray than the one under test (`RAYNODE_TEST_OTHER_XRAY`), or a copy of that.
fn other_xray(node: &NodeProcess) -> PathBuf {
    std::env::var_os("RAYNODE_TEST_OTHER_XRAY").map_or_else(
        || {
            let copy = node.folder().join("other-xray");
            std::fs::copy(xray_binary(), &copy).unwrap();
            copy
        },
        PathBuf::from,
    )
}
