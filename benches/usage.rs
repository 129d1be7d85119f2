//! What a harvest costs beside the plain call of Xray's API that it makes, in turn, on the same core.
//!
//! `make bench` builds the release binary and runs this. It prints the table that docs/guarantees.md shows.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a benchmark prints, and fails loudly"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use raynode::usage::harvest::{Harvester, Source};
use raynode::usage::ledger::Ledger;
use raynode::usage::{Policy, Unsure};
use raynode::xray::client::Client;
use raynode::xray::version::Version;
use uuid::Uuid;

use support::node::xray_version;
use support::users::{id, numbered};
use support::xray::vless_config;
use support::{Echo, NodeProcess, Panel, ports, vless};

const NODE: &str = env!("CARGO_BIN_EXE_raynode");
const ROUNDS: usize = 9;
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// What a harvest may take compared with the plain call.
const TIMES: f64 = 1.5;

fn main() {
    // `cargo test --benches` asks for a list of tests; there is none.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(bench());
}

async fn bench() {
    let (year, month, day) = xray_version();
    println!("\nXray {year}.{month}.{day}, median of {ROUNDS} rounds\n");
    println!(
        "| users with traffic | plain `QueryStats` | harvest, nobody moved anything | harvest, 1 % did | harvest, all did | target |\n| --- | --- | --- | --- | --- | --- |"
    );
    for size in SIZES {
        let core = Core::start(size).await;
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy {
            harvest_interval: Duration::from_secs(2),
            retention: Duration::from_secs(86_400),
            reply: 64 << 20,
            unsure: Unsure::Settle,
        };
        let harvester = Harvester::new(
            Ledger::open(folder.path(), policy),
            Duration::from_secs(2),
            Arc::default(),
        );
        let source = core.source();
        harvester.sweep(&source).await.unwrap();
        let [mut plain, mut idle, mut few, mut all] = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            plain.push(timed(core.client.counters("")).await);
            idle.push(timed(harvester.sweep(&source)).await);
            core.use_something(size / 100).await;
            few.push(timed(harvester.sweep(&source)).await);
            // To a ledger another core's counters are all new.
            let other = core.source();
            all.push(timed(harvester.sweep(&other)).await);
            harvester.ledger().only_epochs(vec![source.epoch]);
            // What is known of a core that is gone goes with the next harvest.
            harvester.sweep(&source).await.unwrap();
        }
        let [plain, idle, few, all] = [plain, idle, few, all].map(median);
        let met = idle <= TIMES * plain && few <= TIMES * plain + 10.0;
        println!(
            "| {size} | {plain:.1} ms | {idle:.1} ms, {:.2}x | {few:.1} ms, {:.2}x | {all:.1} ms | {TIMES}x: {} |",
            idle / plain,
            few / plain,
            if met { "met" } else { "**missed**" }
        );
    }
}

/// A core whose users have used something.
struct Core {
    client: Client,
    inbound: u16,
    echo: Echo,
    _node: NodeProcess,
}

impl Core {
    async fn start(users: usize) -> Self {
        // The node itself is to keep still meanwhile.
        let node = NodeProcess::start_with(NODE, &[("HARVEST_INTERVAL", "60s")]);
        let inbound = ports::free();
        let panel = Panel::of(&node);
        let all = numbered(0..users, &["vless"]);
        panel.start(&vless_config(inbound), &all).await.unwrap();
        let core = Self {
            client: node.core_api(),
            inbound,
            echo: Echo::start().await,
            _node: node,
        };
        core.use_something(users).await;
        core
    }

    fn source(&self) -> Source {
        let (major, minor, patch) = xray_version();
        Source {
            epoch: Uuid::new_v4(),
            client: self.client.clone(),
            version: Version::new(major, minor, patch),
        }
    }

    async fn use_something(&self, users: usize) {
        let (inbound, echo) = (self.inbound, self.echo.address);
        futures_util::stream::iter(0..users)
            .map(|user| {
                let (from, id) = (vless::address(user), id(&user.to_string()));
                vless::echo_from(from, inbound, id, echo, 10)
            })
            .buffer_unordered(64)
            .for_each(async |used| used.unwrap())
            .await;
    }
}

async fn timed<T, E: std::fmt::Debug>(call: impl Future<Output = Result<T, E>>) -> f64 {
    let began = Instant::now();
    call.await.unwrap();
    began.elapsed().as_secs_f64() * 1000.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
