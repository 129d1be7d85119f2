//! What goes through the core is what the panel is told, whatever happens in between.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "figures, and a test that is skipped says so"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raynode::proto::service::StatType;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::NODE;
use crate::held::control_answers;
use crate::support::node::xray_version;
use crate::support::script::{self, Conversation};
use crate::support::usage::{Collecting, Collector};
use crate::support::users::{id, numbered, user};
use crate::support::xray::{vless_config, vless_inbound};
use crate::support::{Echo, NodeProcess, Panel, eventually, ports, times, vless};

const POLL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/poll.py");
const CUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/cut.py");
const USERS: usize = 6;
/// Bytes each way of one exchange.
const BYTES: usize = 3000;
const OFTEN: &[(&str, &str)] = &[("HARVEST_INTERVAL", "100ms"), ("STOP_GRACE", "30s")];

/// A node whose users use something, and how much that is.
struct Used {
    node: NodeProcess,
    panel: Panel,
    echo: Echo,
    inbound: u16,
    config: Value,
    bytes: u64,
    configurations: u16,
}

impl Used {
    async fn new(settings: &[(&str, &str)]) -> Self {
        Self::of(NodeProcess::start_with(NODE, settings)).await
    }

    async fn of(node: NodeProcess) -> Self {
        let panel = Panel::of(&node);
        let inbound = ports::free();
        let config = vless_config(inbound);
        let users = numbered(0..USERS, &["vless"]);
        panel.start(&config, &users).await.unwrap();
        Self {
            node,
            panel,
            echo: Echo::start().await,
            inbound,
            config,
            bytes: 0,
            configurations: 0,
        }
    }

    /// Each user sends so much and hears it back.
    async fn exchange(&mut self) {
        let (inbound, echo) = (self.inbound, self.echo.address);
        futures_util::stream::iter(0..USERS)
            .map(|user| vless::echo(inbound, id(&user.to_string()), echo, BYTES))
            .buffer_unordered(USERS)
            .for_each(async |used| used.unwrap())
            .await;
        self.bytes += 2 * (USERS * BYTES) as u64;
    }

    /// Another daemon takes over, in the middle of whatever this one does.
    async fn kill_the_daemon(&mut self) {
        self.node.kill();
        self.node.launch();
        control_answers(&self.panel).await;
    }

    /// The panel wants another configuration, which takes another core.
    async fn exchange_the_core(&mut self) {
        let mut config = self.config.clone();
        self.configurations += 1;
        let inbounds = config["inbounds"].as_array_mut().unwrap();
        inbounds.push(vless_inbound(
            &format!("more{}", self.configurations),
            ports::free(),
        ));
        let users = numbered(0..USERS, &["vless"]);
        self.panel.start(&config, &users).await.unwrap();
    }

    /// The core dies by force, when what it has counted was read.
    async fn kill_the_core(&mut self) {
        let counted = self.panel.stats(StatType::Inbounds, "", false).await;
        counted.unwrap();
        self.node_loses_its_core().await;
    }

    async fn node_loses_its_core(&self) {
        let core = self.node.core();
        kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
        eventually("another core", || async {
            let cores = self.node.cores();
            let other = !cores.contains(&core) && cores.len() == 1;
            (other && self.panel.info().await.started).then_some(())
        })
        .await;
    }

    async fn read(&self) -> u64 {
        let stats = self.panel.stats(StatType::UsersStat, "", true).await;
        let bytes: i64 = stats.unwrap().iter().map(|stat| stat.value).sum();
        u64::try_from(bytes).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_receipts_every_byte_comes_once_whoever_dies() {
    let mut used = Used::new(OFTEN).await;
    let mut panel = Collector::default();
    let mut random = Random(7);
    for round in 0..times(12, 200) {
        used.exchange().await;
        // A panel that loses its patience, or its life, before or after the reply.
        let patience = Duration::from_millis(random.below(16));
        let mut collecting = Collecting::of(&used.node);
        let limit = 1 + u32::try_from(random.below(4)).unwrap();
        let round_of_panel = panel.round(&mut collecting, limit);
        drop(tokio::time::timeout(patience, round_of_panel).await);
        match round % 4 {
            0 => used.kill_the_daemon().await,
            1 => used.exchange_the_core().await,
            2 => {
                used.panel.stop().await.unwrap();
                used.panel
                    .start(&used.config, &numbered(0..USERS, &["vless"]))
                    .await
                    .unwrap();
                used.configurations = 0;
            }
            _ => {}
        }
    }
    let mut collecting = Collecting::of(&used.node);
    while panel.round(&mut collecting, 4).await.unwrap() {}
    assert_eq!(panel.changed, Vec::<String>::new());
    assert_eq!(panel.users(), used.bytes);
    assert_eq!(used.read().await, 0, "it is in no other report");
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_at_once_every_byte_is_told_once() {
    let Some(interpreter) = script::python() else {
        return;
    };
    let mut used = Used::new(OFTEN).await;
    let setup = json!({
        "host": "127.0.0.1",
        "port": used.node.port,
        "api_key": used.node.api_key,
        "certificate": std::fs::read_to_string(used.node.certificate()).unwrap(),
    });
    let mut clients = Conversation::start(&interpreter, &["-u", CUT], &setup).await;
    let (mut panel, mut random) = (Collector::default(), Random(11));
    let (mut told, mut deaths) = (0, 0);
    for _ in 0..times(20, 200) {
        used.exchange().await;
        // One client reads a report, to whatever end, and meanwhile something else happens.
        let read = if random.below(2) == 0 {
            "nothing"
        } else {
            "all"
        };
        let then = match random.below(3) {
            0 => "close",
            1 if read != "all" => "cancel",
            _ => "kill",
        };
        let first = random.below(2) == 0;
        let case = json!({ "http2": true, "first": first, "read": read, "then": then });
        clients.tell(&case).await;
        match random.below(5) {
            0 => {
                tokio::time::sleep(Duration::from_millis(random.below(40))).await;
                used.kill_the_daemon().await;
            }
            1 => {
                used.exchange_the_core().await;
                deaths = 0;
            }
            // After some deaths in a row it would go back to the configuration before.
            2 if deaths < 3 => {
                used.kill_the_core().await;
                deaths += 1;
            }
            3 => {
                let mut collecting = Collecting::of(&used.node);
                drop(panel.round(&mut collecting, 3).await);
            }
            _ => told += used.read().await,
        }
        let said = clients.hear(Duration::from_secs(30)).await;
        assert_eq!(said["error"], Value::Null, "{case}: {said}");
        told += said["sum"].as_u64().unwrap_or(0);
    }
    let mut collecting = Collecting::of(&used.node);
    while panel.round(&mut collecting, 100).await.unwrap() {}
    told += panel.users();
    for _ in 0..3 {
        // Reports that rest until they are judged.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        told += used.read().await;
    }
    // Of a report that a dying daemon had sent nobody knows; it counts as arrived.
    let unsure = used.node.unsure();
    let bytes = used.bytes;
    println!("{told} of {bytes} bytes were told, {unsure} were in reports that nobody can know of");
    assert!(told <= bytes, "nothing comes twice");
    assert!(told + unsure >= bytes, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_panels_own_client_is_told_every_byte_once() {
    let Some(interpreter) = script::python() else {
        return;
    };
    let mut used = Used::new(OFTEN).await;
    let mut config = used.config.clone();
    // The client starts the node with users of the configuration, so that it need not know them.
    let clients: Vec<Value> = (0..USERS)
        .map(|user| json!({ "email": user.to_string(), "id": id(&user.to_string()) }))
        .collect();
    config["inbounds"][0]["settings"]["clients"] = json!(clients);
    used.config = config;
    let setup = json!({
        "port": used.node.port,
        "api_key": used.node.api_key,
        "certificate": std::fs::read_to_string(used.node.certificate()).unwrap(),
        "config": used.config,
    });
    let mut client = Conversation::start(&interpreter, &["-u", POLL], &setup).await;
    let patience = Duration::from_secs(30);
    assert_eq!(client.hear(patience).await, "polling");
    for round in 0..times(8, 100) {
        used.exchange().await;
        tokio::time::sleep(Duration::from_millis(150 + 37 * (round as u64 % 7))).await;
        if round % 2 == 0 {
            used.kill_the_daemon().await;
        }
    }
    client.tell(&json!("end")).await;
    let said = client.hear(patience).await;
    println!("the panel's client says {said} of {} bytes", used.bytes);
    let sum = |job: &str| said[job]["sum"].as_u64().unwrap();
    let told = sum("users") + sum("outbounds");
    // Whether a reply arrived that a dying daemon had sent nobody knows; it counts as arrived.
    let unsure = used.node.unsure();
    assert!(told <= 2 * used.bytes, "nothing comes twice: {said}");
    assert!(
        told + unsure >= 2 * used.bytes,
        "{unsure} are unsure: {said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_is_kept_for_whoever_comes() {
    let mut used = Used::new(&[("HARVEST_INTERVAL", "100ms"), ("STOP_GRACE", "0")]).await;
    used.exchange().await;
    // A Stop ends the core, and what it counted is there for the next session.
    used.panel.stop().await.unwrap();
    assert_eq!(used.node.cores(), Vec::<i32>::new());
    let before = used.panel.stats(StatType::UsersStat, "", true).await;
    assert_eq!(before.unwrap_err().code(), Code::Unavailable);
    // So it is after a failed Start, a death of the daemon, and another panel's Start.
    let mut bad = used.config.clone();
    bad["inbounds"][0]["protocol"] = json!("nothing");
    used.panel.start(&bad, &[]).await.unwrap_err();
    used.node.kill();
    used.node.launch();
    let users = numbered(0..USERS, &["vless"]);
    used.panel.start(&used.config, &users).await.unwrap();
    assert_eq!(used.read().await, used.bytes);
    assert_eq!(used.read().await, 0);
    // A core that is killed takes what nobody has read of it; what was read is there while it is down.
    used.exchange().await;
    let inbounds = used
        .panel
        .stats(StatType::Inbounds, "", false)
        .await
        .unwrap();
    assert!(inbounds.iter().any(|stat| stat.value > 0), "{inbounds:?}");
    kill(Pid::from_raw(used.node.core()), Signal::SIGKILL).unwrap();
    assert_eq!(used.read().await, 2 * (USERS * BYTES) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_read_at_once_never_get_the_same() {
    let mut used = Used::new(OFTEN).await;
    for _ in 0..5 {
        used.exchange().await;
        let mut collector = Collector::default();
        let mut collecting = Collecting::of(&used.node);
        let reads = futures_util::future::join_all((0..6).map(|_| used.read()));
        let one = used.panel.stats(StatType::UserStat, "1", true);
        let (reads, one, collected) =
            tokio::join!(reads, one, collector.round(&mut collecting, 100));
        collected.unwrap();
        let one: i64 = one.unwrap().iter().map(|stat| stat.value).sum();
        let sum = reads.iter().sum::<u64>() + u64::try_from(one).unwrap() + collector.users();
        assert_eq!(sum, 2 * (USERS * BYTES) as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_is_killed_costs_one_harvest_at_most() {
    let mut used = Used::new(OFTEN).await;
    let (mut read, mut at_risk) = (0, 0);
    // After ten deaths in a row a core would stay down.
    for round in 0..times(4, 8) {
        used.exchange().await;
        if round % 2 == 0 {
            // Longer than a harvest takes to come by, also where reading the core costs 30 ms.
            tokio::time::sleep(Duration::from_secs(2)).await;
        } else {
            at_risk += 2 * (USERS * BYTES) as u64;
        }
        used.node_loses_its_core().await;
        read += used.read().await;
    }
    println!(
        "{read} of {} bytes were told, {at_risk} were at risk",
        used.bytes
    );
    assert!(read <= used.bytes && read + at_risk >= used.bytes);
}

/// Something mounted, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(options: &[&str], at: &Path) -> Option<Self> {
        let status = Command::new("mount").args(options).arg(at).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(at.to_owned()));
        }
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root, to mount a file system"
        );
        eprintln!("SKIPPED: it needs root, to mount a file system");
        None
    }
}

impl Mounted {
    /// The file itself, which can't be written any more.
    fn read_only(file: &Path) -> Option<Self> {
        let bound = Self::new(&["--bind", &file.display().to_string()], file)?;
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,bind,ro"]).arg(file);
        assert!(remount.status().unwrap().success());
        Some(bound)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

impl Used {
    /// The next daemon finds a ledger that is read-only, until what this returns is dropped.
    async fn another_daemon_that_can_not_write(&mut self) -> Option<Mounted> {
        self.node.kill();
        let ledger = self.node.folder().join("state/ledger.redb");
        let bound = Mounted::read_only(&ledger)?;
        self.node.launch();
        control_answers(&self.panel).await;
        Some(bound)
    }

    /// What is told when the disk does not take it.
    async fn refusal(&self) -> String {
        let refused = eventually("a refusal", || async {
            let read = self.panel.stats(StatType::UsersStat, "", true).await;
            read.err()
        })
        .await;
        assert_eq!(refused.code(), Code::Unavailable);
        refused.message().to_owned()
    }

    /// What is told when it does again.
    async fn read_when_it_can(&self) -> u64 {
        let rest = eventually("everything is told", || async {
            let read = self.panel.stats(StatType::UsersStat, "", true).await;
            read.ok()
        })
        .await;
        let rest: i64 = rest.iter().map(|stat| stat.value).sum();
        u64::try_from(rest).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_no_byte() {
    let mut node = NodeProcess::prepare(NODE, OFTEN);
    let state = node.folder().join("state");
    std::fs::create_dir(&state).unwrap();
    let small = ["-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs"];
    let Some(_mounted) = Mounted::new(&small, &state) else {
        return;
    };
    node.launch();
    let mut used = Used::of(node).await;
    used.exchange().await;
    let read = used.read().await;
    assert_eq!(read, used.bytes);
    let filler = state.join("filler");
    drop(std::fs::write(&filler, vec![0; 16 << 20]));
    // Users are served, and nothing that can't be written down is told.
    for _ in 0..40 {
        used.exchange().await;
    }
    let refusal = used.refusal().await;
    assert!(refusal.contains("nothing is lost"), "{refusal}");
    assert!(used.node.log().contains("the usage ledger is not written"));
    used.exchange().await;
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(read + used.read_when_it_can().await, used.bytes);
    assert_eq!(used.read().await, 0);
    used.kill_the_daemon().await;
    assert_eq!(used.read().await, 0, "and nothing comes again");
    drop(used);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_can_not_be_opened_costs_no_byte() {
    let mut used = Used::new(OFTEN).await;
    used.exchange().await;
    // On disk, not told.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let Some(bound) = used.another_daemon_that_can_not_write().await else {
        return;
    };
    used.exchange().await;
    let refusal = used.refusal().await;
    assert!(refusal.contains("Read-only file system"), "{refusal}");
    assert!(used.node.log().contains("cores keep what they count"));
    drop(bound);
    assert_eq!(used.read_when_it_can().await, used.bytes);
    assert_eq!(used.read().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ledger_stops_nothing_and_bills_nothing_twice() {
    let mut used = Used::new(OFTEN).await;
    // Somebody is online all the time, and used something.
    let target = used.echo.address;
    let mut held = vless::connect(used.inbound, id("1"), target).await.unwrap();
    held.write_all(&[7; 100]).await.unwrap();
    held.read_exact(&mut [0; 102]).await.unwrap();
    used.exchange().await;
    assert_eq!(used.read().await, used.bytes + 200);
    let ledger = used.node.folder().join("state/ledger.redb");
    used.node.kill();
    let whole = std::fs::read(&ledger).unwrap();
    std::fs::write(&ledger, &whole[..whole.len() / 2]).unwrap();
    used.node.launch();
    control_answers(&used.panel).await;
    assert_eq!(
        used.read().await,
        0,
        "what the core had counted was told before"
    );
    used.exchange().await;
    assert_eq!(used.read().await, 2 * (USERS * BYTES) as u64);
    assert!(used.node.log().contains("is moved aside"));
    assert!(ledger.with_extension("redb.damaged").exists());
}

/// A panel's Start that takes another core, while the ledger can't be read.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_core_had_counted_is_known_when_the_ledger_can_be_read() {
    let mut used = Used::new(OFTEN).await;
    used.exchange().await;
    let Some(bound) = used.another_daemon_that_can_not_write().await else {
        return;
    };
    used.exchange().await;
    used.exchange_the_core().await;
    used.exchange().await;
    drop(bound);
    assert_eq!(used.read_when_it_can().await, used.bytes);
}

/// What does not fit into a reply comes with the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_never_larger_than_a_reply_may_be() {
    let node = NodeProcess::start_with(NODE, &[("MAX_MESSAGE_SIZE", "1MiB")]);
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let emails: Vec<String> = (0..2500).map(|user| format!("{user:0>250}")).collect();
    let users: Vec<_> = emails.iter().map(|email| user(email, &["vless"])).collect();
    panel.start(&vless_config(inbound), &[]).await.unwrap();
    for some in users.chunks(500) {
        panel.sync_each(some.to_vec()).await.unwrap();
    }
    let target = echo.address;
    futures_util::stream::iter(emails.iter().enumerate())
        .map(|(user, email)| vless::echo_from(vless::address(user), inbound, id(email), target, 10))
        .buffer_unordered(50)
        .for_each(async |used| used.unwrap())
        .await;
    let mut told = 0;
    let mut reports = 0;
    while told < 2500 * 20 {
        let stats = panel.stats(StatType::UsersStat, "", true).await.unwrap();
        assert!(!stats.is_empty(), "{told} were told");
        told += stats.iter().map(|stat| stat.value).sum::<i64>();
        reports += 1;
    }
    assert_eq!((told, reports), (2500 * 20, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_online_comes_with_the_harvest() {
    if xray_version() < (26, 4, 13) {
        let used = Used::new(OFTEN).await;
        let told = Collecting::of(&used.node).online().await.unwrap_err();
        assert_eq!(told.code(), Code::Unimplemented);
        return;
    }
    let used = Used::new(OFTEN).await;
    let _held = vless::connect(used.inbound, id("1"), used.echo.address)
        .await
        .unwrap();
    let mut collecting = Collecting::of(&used.node);
    let mut online = None;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let users = collecting.online().await.unwrap().users;
        if !users.is_empty() {
            online = Some(users);
            break;
        }
    }
    let online = online.expect("somebody is online");
    assert_eq!((online.len(), &*online[0].email), (1, "1"));
    let address = &online[0].addresses[0];
    assert_eq!(address.ip, "127.0.0.2");
    assert!(address.since >= address.latest && address.latest > 1_700_000_000);
}
