//! The node against its targets, in one run: beside a plain `xray run` on the same users, with the
//! same core on the same machine, one after the other in turn.
//!
//! `make bench` builds the release binary and runs this. It prints the table that README shows.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a benchmark prints, and fails loudly"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use raynode::proto::service::User;
use raynode::xray::account::{Account, Credentials};
use raynode::xray::client::Client;
use raynode::xray::config::{Accounts, Door, Inbound, Skeleton};
use raynode::xray::version::Version;

use support::node::{xray_binary, xray_version};
use support::panel::backend;
use support::users::{self, numbered};
use support::xray::vless_config;
use support::{NodeProcess, Panel, ports};

const NODE: &str = env!("CARGO_BIN_EXE_raynode");
const ROUNDS: usize = 5;
const SIZES: [usize; 3] = [0, 10_000, 100_000];
/// How many users one stream of `SyncUser` carries.
const STREAMED: usize = 20_000;
/// Memory is looked at when a change is over for so long.
const SETTLED: Duration = Duration::from_secs(3);

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
    let cores = std::thread::available_parallelism().unwrap();
    println!(
        "raynode {}, Xray {year}.{month}.{day}, {cores} processors, one VLESS inbound,",
        env!("CARGO_PKG_VERSION")
    );
    println!("panel, node and core on one machine, median of {ROUNDS} rounds\n");
    println!("| what | users | measured | target | |\n| --- | --- | --- | --- | --- |");

    let mut memory = vec![("idle".to_owned(), idle_memory(), 15.0)];
    for (size, limit, again_limit) in [
        (SIZES[0], Limit::More(50.0), 50.0),
        (SIZES[1], Limit::Times(1.3), 100.0),
        (SIZES[2], Limit::Times(1.5), 500.0),
    ] {
        let measured = starts(size).await;
        report_start(size, &measured, &limit);
        let times = measured.hand_over / measured.plain;
        let text = format!("{:.0} ms, {times:.2}x a plain start", measured.hand_over);
        // Trying the configuration is a start but for the listening, and then comes the start itself.
        let most = measured.plain.mul_add(3.0, 100.0);
        row(
            "a Start that hands over",
            size,
            &text,
            "3x, +100 ms",
            measured.hand_over <= most,
        );
        row(
            "the same Start again",
            size,
            &format!("{:.0} ms", measured.again),
            &format!("under {again_limit:.0} ms"),
            measured.again < again_limit,
        );
        match size {
            10_000 => memory.push((size.to_string(), measured.memory, 25.0)),
            100_000 => memory.push((size.to_string(), measured.memory, 80.0)),
            _ => {}
        }
    }
    let rate = sync_rate().await;
    row(
        "SyncUser in one stream",
        STREAMED,
        &format!("{rate:.0} users/s"),
        "10000 users/s",
        rate >= 10_000.0,
    );
    for (users, mib, target) in memory {
        let measured = format!("{mib:.1} MiB");
        println!(
            "| memory of the daemon (RSS) | {users} | {measured} | {target:.0} MiB | {} |",
            verdict(mib <= target)
        );
    }
}

/// What a Start may take compared with a plain start of the core.
enum Limit {
    /// So many milliseconds more.
    More(f64),
    /// So many times as long.
    Times(f64),
}

struct Starts {
    plain: f64,
    node: f64,
    again: f64,
    hand_over: f64,
    memory: f64,
}

fn report_start(size: usize, measured: &Starts, limit: &Limit) {
    let (plain, node) = (measured.plain, measured.node);
    let times = node / plain;
    let text = format!(
        "{node:.0} ms, plain `xray run` {plain:.0} ms: {times:.2}x, {:+.0} ms",
        node - plain
    );
    match limit {
        Limit::More(more) => row(
            "Start to reply",
            size,
            &text,
            &format!("+{more:.0} ms"),
            node - plain <= *more,
        ),
        Limit::Times(most) => row(
            "Start to reply",
            size,
            &text,
            &format!("{most}x"),
            times <= *most,
        ),
    }
}

fn row(what: &str, users: usize, measured: &str, target: &str, met: bool) {
    println!(
        "| {what} | {users} | {measured} | {target} | {} |",
        verdict(met)
    );
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// Starts a plain core and the node's on the same users, in turn.
async fn starts(size: usize) -> Starts {
    let users = numbered(0..size, &["vless"]);
    let (mut plain, mut node_times, mut again, mut memory) = (vec![], vec![], vec![], vec![]);
    let mut hand_overs = vec![];
    for _ in 0..ROUNDS {
        let config = vless_config(ports::free());
        plain.push(plain_start(&config, &users).await);

        let config = vless_config(ports::free());
        let node = NodeProcess::start_with(NODE, &[("LOG_LEVEL", "warn")]);
        let panel = Panel::of(&node);
        // The connection and its TLS handshake are no part of a Start.
        panel.info().await;
        let start = backend(&config, &users);
        node_times.push(timed(panel.start_backend(start.clone())).await);
        tokio::time::sleep(SETTLED).await;
        let after_first = node.memory_kib();
        again.push(timed(panel.start_backend(start)).await);
        tokio::time::sleep(SETTLED).await;
        memory.push(after_first.max(node.memory_kib()) as f64 / 1024.0);
        let mut other = config;
        other["log"]["loglevel"] = "error".into();
        let start = backend(&other, &users);
        hand_overs.push(timed(panel.start_backend(start)).await);
    }
    Starts {
        plain: median(plain),
        node: median(node_times),
        again: median(again),
        hand_over: median(hand_overs),
        memory: median(memory),
    }
}

async fn timed<T, E: std::fmt::Debug>(call: impl Future<Output = Result<T, E>>) -> f64 {
    let began = Instant::now();
    call.await.unwrap();
    began.elapsed().as_secs_f64() * 1000.0
}

/// The users of the benchmark as a core reads them.
struct Listed<'a>(Vec<(&'a str, Account)>);

impl Accounts for Listed<'_> {
    fn on(&self, _: &Inbound) -> impl Iterator<Item = (&str, &Account)> {
        self.0.iter().map(|(email, account)| (*email, account))
    }
}

/// From the spawn of a core that reads these users to the first answer of its API, in milliseconds.
async fn plain_start(config: &serde_json::Value, users: &[User]) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let skeleton = Skeleton::parse(&config.to_string(), &[]).unwrap();
    let protocol = skeleton.inbounds().next().unwrap().protocol;
    let listed = users.iter().map(|user| {
        let vless = Some(users::id(&user.email).to_string().into());
        let credentials = Credentials {
            vless,
            ..Credentials::default()
        };
        (
            user.email.as_str(),
            Account::new(protocol, &credentials).unwrap().unwrap(),
        )
    });
    let (year, month, day) = xray_version();
    let door = Door {
        socket: &socket,
        version: Version::new(year, month, day),
        placeholder_key: [0; 32],
        inbound_sockets: &[],
        quic_idle_timeout: None,
    };
    let mut json = Vec::new();
    skeleton
        .render(door, &Listed(listed.collect()), &mut json)
        .unwrap();

    let began = Instant::now();
    let mut child = Command::new(xray_binary())
        .args(["run", "-c", "stdin:"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&json).unwrap();
    let client = Client::new(socket);
    while client.sys_stats().await.is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "xray does not start"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    took.as_secs_f64() * 1000.0
}

/// Users per second that one stream of `SyncUser` brings to the core.
async fn sync_rate() -> f64 {
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let node = NodeProcess::start_with(NODE, &[("LOG_LEVEL", "warn")]);
        let panel = Panel::of(&node);
        panel
            .start(&vless_config(ports::free()), &[])
            .await
            .unwrap();
        let took = timed(panel.sync_each(numbered(0..STREAMED, &["vless"]))).await;
        rates.push(STREAMED as f64 / took * 1000.0);
    }
    median(rates)
}

fn idle_memory() -> f64 {
    let node = NodeProcess::start_with(NODE, &[("LOG_LEVEL", "warn")]);
    std::thread::sleep(SETTLED);
    node.memory_kib() as f64 / 1024.0
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
