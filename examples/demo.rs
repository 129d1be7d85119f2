//! A node at work, without a panel and without the internet: this program plays the panel and the
//! users, and shows what the node says of them. `make demo` runs it.
//!
//! Versions, bytes and addresses are the node's replies; times and process ids are looked up here.
//! Where something is not as it should be, the demo says so and ends with exit code 1.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a demo prints what it sees"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use raynode::proto::service::{StatRequest, StatType, User};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use support::origin::Download;
use support::users::{self, user};
use support::xray::{vless_config, vless_outbound};
use support::{NodeProcess, Origin, Panel, XrayClient, origin, ports};

const MIB: u64 = 1 << 20;
/// Who moves how many MiB up and down: 50 MiB together.
const USERS: [(&str, u64, u64); 2] = [("alice", 10, 25), ("bob", 5, 10)];
/// Who comes later, and the bytes that she moves each way.
const CAROL: (&str, u64) = ("carol", 1000);
const INBOUND: &str = "vless";
/// How much of a download has to come to call it alive.
const ALIVE: u64 = 4 * MIB;
/// How long a connection or a counter may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long everything may take.
const LIMIT: Duration = Duration::from_secs(50);

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[tokio::main]
async fn main() -> ExitCode {
    // In a task, so that a panic of the harness is a failure like any other.
    let failure = match tokio::spawn(timeout(LIMIT, demo())).await {
        Ok(Ok(Ok(()))) => return ExitCode::SUCCESS,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) => format!("it is not over after {} s", LIMIT.as_secs()),
        Err(_) => "it broke off, see above".to_owned(),
    };
    eprintln!("\nThe demo failed: {failure}.");
    ExitCode::FAILURE
}

async fn demo() -> Result<()> {
    let daemon = daemon()?;
    println!("A node, its Xray and its users on this machine. This program is the panel.\n");
    let mut node = NodeProcess::start_with(daemon, &[("LOG_LEVEL", "warn")]);
    let panel = Panel::of(&node);
    let port = ports::free();
    let config = vless_config(port);
    let everybody = USERS.map(|(email, ..)| user(email, &[INBOUND]));

    let core = begin(&node, &panel, &config, &everybody).await?;
    let world = World {
        origin: Origin::start().await,
        port,
    };
    let clients = USERS.map(|(email, ..)| world.client(email));
    let open = use_it(&world, &clients).await?;
    show_usage(&panel).await?;
    drop(open);

    let [alice, _] = &clients;
    come_and_go(&panel, &world, alice).await?;
    same_core(&node, core)?;
    start_again(&panel, &config, &everybody).await?;
    same_core(&node, core)?;
    end(&mut node, &panel).await
}

/// The daemon, which cargo puts beside the folder of its examples.
fn daemon() -> Result<PathBuf> {
    ensure(
        std::env::var_os("XRAY_EXECUTABLE_PATH").is_some(),
        "no Xray: run `make demo`, which builds one, or set XRAY_EXECUTABLE_PATH",
    )?;
    let this = std::env::current_exe()?;
    let folder = this.ancestors().nth(2);
    folder
        .map(|folder| folder.join("raynode"))
        .filter(|path| path.is_file())
        .ok_or_else(|| "the daemon is not built: run `make demo`, or `cargo build` first".into())
}

/// Sends the first Start and returns the core's process id.
async fn begin(
    node: &NodeProcess,
    panel: &Panel,
    config: &Value,
    everybody: &[User],
) -> Result<i32> {
    println!("1. The panel calls Start: a configuration with one VLESS inbound, and two users");
    ensure(
        !panel.info().await.started,
        "the node serves before its Start",
    )?;
    let began = Instant::now();
    let info = panel.start(config, everybody).await?;
    let time = milliseconds(began);
    ensure(info.started, "the node does not serve after its Start")?;
    let core = node.core();
    println!("   node version      {}", info.node_version);
    println!(
        "   core version      Xray {}, pid {core}",
        info.core_version
    );
    println!("   time to serve     {time:.0} ms");
    Ok(core)
}

/// Moves every user's bytes and returns the connections, still open.
async fn use_it(world: &World, clients: &[XrayClient]) -> Result<Vec<TcpStream>> {
    println!("\n2. alice and bob send and fetch, each with an Xray as their app:");
    println!("   SOCKS -> their Xray -> VLESS -> the node's Xray -> a server on this machine");
    let began = Instant::now();
    let mut open = Vec::new();
    let mut sum = 0;
    for ((_, up, down), client) in USERS.iter().zip(clients) {
        open.push(world.exchange(client, up * MIB, down * MIB).await?);
        sum += up + down;
    }
    println!("   {sum} MiB in {:.0} ms", milliseconds(began));
    Ok(open)
}

/// What the node knows of everybody, beside what was sent.
async fn show_usage(panel: &Panel) -> Result<()> {
    println!("\n3. What the node says of them, while a connection of each is open:");
    println!(
        "   {:<7}{:>11}{:>11}   {:<21}online from",
        "user", "up", "down", "against what moved"
    );
    let mut wrong = Vec::new();
    for (email, up, down) in USERS {
        let moved = (up * MIB, down * MIB);
        let counted = counted(panel, email, moved).await?;
        let addresses = online(panel, email).await?;
        let exact = counted == moved;
        println!(
            "   {email:<7}{:>11}{:>11}   {:<21}{}",
            human(counted.0),
            human(counted.1),
            if exact { "exact, to the byte" } else { "WRONG" },
            addresses.join(", ")
        );
        if !exact {
            wrong.push(format!("{email} moved {moved:?} bytes, not {counted:?}"));
        }
        if addresses.is_empty() {
            wrong.push(format!("{email} has a connection and is not online"));
        }
    }
    println!("   (The apps dial from 127.0.0.2: Xray does not list who comes from 127.0.0.1.)");
    ensure(wrong.is_empty(), &wrong.join("; "))
}

/// Adds a third user and removes her again, while the first one downloads.
async fn come_and_go(panel: &Panel, world: &World, alice: &XrayClient) -> Result<()> {
    let (email, bytes) = CAROL;
    println!("\n4. alice downloads without an end, and meanwhile carol comes and goes:");
    let (_, before) = traffic(panel, "alice").await?;
    let download = Download::start(alice.connect(world.origin.address).await?).await?;
    grown(panel, "alice", before).await?;
    let carol = world.client(email);
    ensure(
        !world.is_served(&carol).await,
        "carol gets in before she is a user",
    )?;
    println!("   carol before she is a user      refused");

    let began = Instant::now();
    panel.sync_user(user(email, &[INBOUND])).await?;
    let time = milliseconds(began);
    ensure(world.is_served(&carol).await, "carol does not get in")?;
    let moved = (bytes, bytes);
    ensure(
        counted(panel, email, moved).await? == moved,
        "carol's bytes are not counted",
    )?;
    println!("   SyncUser adds her, {time:>4.1} ms      served, {bytes} B each way counted");

    let began = Instant::now();
    panel.sync_user(user(email, &[])).await?;
    let time = milliseconds(began);
    let (_, removed) = traffic(panel, "alice").await?;
    ensure(!world.is_served(&carol).await, "carol still gets in")?;
    ensure(
        traffic(panel, email).await? == moved,
        "carol's bytes are counted after she was removed",
    )?;
    println!("   SyncUser removes her, {time:>4.1} ms   new connections refused");

    let after = grown(panel, "alice", removed).await?;
    timeout(PATIENCE, download.end())
        .await
        .map_err(|_| "alice's download stands still")?
        .map_err(|error| format!("alice's download: {error}"))?;
    ensure(after >= ALIVE, "alice's download is hardly counted")?;
    println!(
        "   alice's download                not cut: {} before, {} after that",
        human(removed.saturating_sub(before)),
        human(after)
    );
    Ok(())
}

async fn start_again(panel: &Panel, config: &Value, everybody: &[User]) -> Result<()> {
    println!("\n5. The panel calls Start again, with the same message:");
    let began = Instant::now();
    let info = panel.start(config, everybody).await?;
    ensure(
        info.started,
        "the node does not serve after the second Start",
    )?;
    println!(
        "   nothing to do                   {:.1} ms",
        milliseconds(began)
    );
    Ok(())
}

async fn end(node: &mut NodeProcess, panel: &Panel) -> Result<()> {
    println!("\n6. The panel calls Stop, and the node gets a SIGTERM:");
    panel.stop().await?;
    ensure(
        node.cores().is_empty(),
        "the core is still there after Stop",
    )?;
    let status = node.stop();
    ensure(status.success(), &format!("the node ended with {status}"))?;
    println!("   the core is gone, the node ended with {status}");
    println!("\nAll of it held.");
    Ok(())
}

fn same_core(node: &NodeProcess, core: i32) -> Result<()> {
    let now = node.cores();
    ensure(
        now == [core],
        &format!("the core was pid {core} and is now {now:?}"),
    )?;
    println!("   the core                        the same process, pid {core}");
    Ok(())
}

/// Bytes up and down of a user, as soon as they are what they should be, or what they are at last.
async fn counted(panel: &Panel, email: &str, moved: (u64, u64)) -> Result<(u64, u64)> {
    let began = Instant::now();
    loop {
        let counted = traffic(panel, email).await?;
        if counted == moved || began.elapsed() > PATIENCE {
            return Ok(counted);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a good deal more than `base` went down to a user; returns how much more, also when
/// it is too little.
async fn grown(panel: &Panel, email: &str, base: u64) -> Result<u64> {
    let began = Instant::now();
    loop {
        let (_, down) = traffic(panel, email).await?;
        let more = down.saturating_sub(base);
        if more >= ALIVE || began.elapsed() > PATIENCE {
            return Ok(more);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn traffic(panel: &Panel, email: &str) -> Result<(u64, u64)> {
    let (up, down) = panel.traffic(StatType::UserStat, email).await;
    Ok((up.try_into()?, down.try_into()?))
}

/// The addresses that a user is connected from.
async fn online(panel: &Panel, email: &str) -> Result<Vec<String>> {
    let request = StatRequest {
        name: email.to_owned(),
        ..StatRequest::default()
    };
    let reply = panel
        .client
        .clone()
        .get_user_online_ip_list_stats(request)
        .await?;
    Ok(reply.into_inner().ips.into_keys().collect())
}

/// Where the users go, and the way there.
struct World {
    origin: Origin,
    port: u16,
}

impl World {
    /// This user's own Xray.
    fn client(&self, email: &str) -> XrayClient {
        XrayClient::start(&vless_outbound(self.port, users::id(email)))
    }

    /// Moves so many bytes each way and returns the connection, still open.
    async fn exchange(&self, client: &XrayClient, up: u64, down: u64) -> Result<TcpStream> {
        let mut stream = client.connect(self.origin.address).await?;
        origin::exchange(&mut stream, up, down).await?;
        Ok(stream)
    }

    /// Whether a new connection gets through.
    async fn is_served(&self, client: &XrayClient) -> bool {
        let (_, bytes) = CAROL;
        let attempt = self.exchange(client, bytes, bytes);
        matches!(timeout(PATIENCE, attempt).await, Ok(Ok(_)))
    }
}

fn ensure(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn human(bytes: u64) -> String {
    if bytes >= MIB {
        format!("{:.1} MiB", bytes as f64 / MIB as f64)
    } else {
        format!("{bytes} B")
    }
}
