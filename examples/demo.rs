//! A node at work, without a panel and without the internet: this program plays the panel and the
//! users, and shows what the node says of them. `make demo` runs it.
//!
//! Every figure comes from the node. Where one is not what it should be, the demo says so and ends
//! with exit code 1.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a demo prints, and fails loudly"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use raynode::proto::service::{StatRequest, StatType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use support::users::{self, user};
use support::xray::{vless_config, vless_outbound};
use support::{NodeProcess, Origin, Panel, XrayClient, origin, ports};

const MIB: u64 = 1 << 20;
/// Who moves how many MiB up and down: 50 MiB together.
const USERS: [(&str, u64, u64); 2] = [("alice", 10, 25), ("bob", 5, 10)];
const INBOUND: &str = "vless";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    match demo().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<()> {
    let mut node = NodeProcess::start_with(daemon()?, &[("LOG_LEVEL", "warn")]);
    println!(
        "A node listens on 127.0.0.1:{}. This program plays its panel.\n",
        node.port
    );
    let panel = Panel::of(&node);
    panel.info().await;
    let port = ports::free();
    let config = vless_config(port);
    let everybody = USERS.map(|(email, ..)| user(email, &[INBOUND]));

    let began = Instant::now();
    let info = panel.start(&config, &everybody).await?;
    println!(
        "Start with one VLESS inbound and {} users: raynode {} runs Xray {} after {} ms.",
        USERS.len(),
        info.node_version,
        info.core_version,
        began.elapsed().as_millis()
    );

    println!("\n50 MiB through a second Xray as the users' client:\n");
    let world = World {
        origin: Origin::start().await,
        port,
    };
    let clients = USERS.map(|(email, ..)| world.client(email));
    let mut open = Vec::new();
    for ((_, up, down), client) in USERS.iter().zip(&clients) {
        open.push(world.exchange(client, up * MIB, down * MIB).await?);
    }
    show_usage(&panel).await?;
    drop(open);

    println!("\nA third user, while alice goes on downloading:\n");
    let core = node.core();
    let [alice, _] = &clients;
    let download = world.download(alice).await?;
    come_and_go(&panel, &world).await?;
    let bytes = download.end().await?;
    println!("  alice's download went on all the while: {}", human(bytes));
    ensure(node.core() == core, "the core is another one")?;
    println!("  and the core is still the same process, pid {core}");

    let began = Instant::now();
    panel.start(&config, &everybody).await?;
    ensure(
        node.core() == core,
        "the same Start again replaced the core",
    )?;
    println!(
        "\nThe same Start again: nothing to do, {} ms, same core.",
        began.elapsed().as_millis()
    );

    panel.stop().await?;
    ensure(
        node.cores().is_empty(),
        "the core is still there after Stop",
    )?;
    ensure(node.stop().success(), "the node did not end as it should")?;
    println!("Stop: core and node are gone.");
    Ok(())
}

/// The daemon, which cargo puts beside the folder of its examples.
fn daemon() -> Result<PathBuf> {
    let examples = std::env::current_exe()?;
    let daemon = examples
        .ancestors()
        .nth(2)
        .map(|folder| folder.join("raynode"));
    match daemon.filter(|path| path.is_file()) {
        Some(daemon) => Ok(daemon),
        None => Err("the daemon is not built: run `make demo`, which builds it".into()),
    }
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

    async fn is_served(&self, client: &XrayClient) -> bool {
        let attempt = self.exchange(client, 1000, 1000);
        matches!(
            tokio::time::timeout(Duration::from_secs(5), attempt).await,
            Ok(Ok(_))
        )
    }

    async fn download(&self, client: &XrayClient) -> Result<Download> {
        let mut stream = client.connect(self.origin.address).await?;
        stream.write_u64_le(0).await?;
        stream.write_u64_le(u64::MAX).await?;
        stream.read_u8().await?;
        let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            let mut bytes = 0;
            while ended.try_recv().is_err() {
                match stream.read(&mut buffer).await? {
                    0 => return Err(std::io::Error::other("it was cut off")),
                    count => bytes += count as u64,
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(bytes)
        });
        Ok(Download { task, end })
    }
}

/// A download that runs until it is ended.
struct Download {
    task: tokio::task::JoinHandle<std::io::Result<u64>>,
    end: tokio::sync::oneshot::Sender<()>,
}

impl Download {
    async fn end(self) -> Result<u64> {
        self.end.send(()).ok();
        Ok(self.task.await??)
    }
}

/// What the node knows of everybody, beside what was sent.
async fn show_usage(panel: &Panel) -> Result<()> {
    println!(
        "  {:<8} {:>12} {:>12}   {:<16} counted",
        "user", "up", "down", "online from"
    );
    for (email, up, down) in USERS {
        let sent = (i64::try_from(up * MIB)?, i64::try_from(down * MIB)?);
        let counted = support::eventually("every byte is counted", || async {
            let counted = panel.traffic(StatType::UserStat, email).await;
            (counted == sent).then_some(counted)
        });
        let (up, down) = counted.await;
        let request = StatRequest {
            name: email.to_owned(),
            ..StatRequest::default()
        };
        let online = panel
            .client
            .clone()
            .get_user_online_ip_list_stats(request)
            .await?
            .into_inner();
        let addresses: Vec<String> = online.ips.into_keys().collect();
        println!(
            "  {email:<8} {:>12} {:>12}   {:<16} to the byte",
            human(up.unsigned_abs()),
            human(down.unsigned_abs()),
            addresses.join(", ")
        );
        ensure(
            !addresses.is_empty(),
            "a user with an open connection is not online",
        )?;
    }
    Ok(())
}

async fn come_and_go(panel: &Panel, world: &World) -> Result<()> {
    let carol = world.client("carol");
    ensure(
        !world.is_served(&carol).await,
        "carol gets in before she is there",
    )?;
    let began = Instant::now();
    panel.sync_user(user("carol", &[INBOUND])).await?;
    println!("  carol added in {:.1} ms", milliseconds(began));
    ensure(world.is_served(&carol).await, "carol does not get in")?;
    println!(
        "  carol connects: {} counted",
        human(total(panel, "carol").await)
    );
    panel.sync_user(user("carol", &[])).await?;
    ensure(!world.is_served(&carol).await, "carol still gets in")?;
    println!("  carol removed: her next connection is refused");
    Ok(())
}

async fn total(panel: &Panel, email: &str) -> u64 {
    let (up, down) = panel.traffic(StatType::UserStat, email).await;
    (up + down).unsigned_abs()
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
