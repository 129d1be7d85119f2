//! A core makes way for another one, and nobody notices: streams are held and somebody connects all the
//! time while everything changes that a panel, or an operator, can change.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
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

async fn everything_is_billed_once(place: &Place, outcome: &Outcome) {
    let (mut up, mut down) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while (up, down) != (outcome.bytes, outcome.bytes) && Instant::now() < deadline {
        let more = place.billed().await;
        up += more.0;
        down += more.1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((up, down), (outcome.bytes, outcome.bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_nobody_notices() {
    let place = Place::new(&[]).await;
    let storm = Storm::begin(place.load(1000, 300), None).await;
    let first = place.node.core();
    for (what, config) in changes(&place.config) {
        let before = storm.opened();
        place.hand_over(&config).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(storm.opened() > before, "{what}: somebody gets through");
    }
    assert!(
        place.node.draining().contains(&first),
        "it keeps its streams"
    );
    let outcome = storm.end().await;
    nobody_noticed(&outcome, &place.node);
    assert_eq!(
        said(&place.node, "form=\"steered\""),
        6,
        "{}",
        story(&place.node)
    );
    everything_is_billed_once(&place, &outcome).await;
    eventually("the others have drained", || async {
        place.node.draining().is_empty().then_some(())
    })
    .await;
    place.node.core();
}

/// Forty milliseconds each way.
fn far() -> Option<Arc<Distance>> {
    Distance::new(Duration::from_millis(40)).map(Arc::new)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_nobody_far_away_notices() {
    let Some(far) = far() else { return };
    let place = Place::new(&[]).await;
    for _ in 0..times(1, 3) {
        let load = place.load_from(&far, 1000, 300);
        let storm = Storm::begin(load, Some(&far)).await;
        for (what, config) in changes(&place.config) {
            let before = storm.opened();
            place.hand_over(&config).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(storm.opened() > before, "{what}: somebody gets through");
        }
        place.hand_over(&place.config).await;
        let outcome = storm.end().await;
        eprintln!(
            "far away, steered: {outcome:?}, {} packets dropped",
            far.dropped()
        );
        nobody_noticed(&outcome, &place.node);
        everything_is_billed_once(&place, &outcome).await;
    }
}

/// The negative control: the same without steering.
#[tokio::test(flavor = "multi_thread")]
async fn without_steering_those_who_are_far_away_notice() {
    let Some(far) = far() else { return };
    let place = Place::new(&[("HANDOVER", "plain")]).await;
    let storm = Storm::begin(place.load_from(&far, 1000, 300), Some(&far)).await;
    let steps = changes(&place.config);
    for (_, config) in &steps[..2] {
        place.hand_over(config).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let outcome = storm.end().await;
    eprintln!("far away, plain: {outcome:?}");
    assert_eq!(outcome.ended, 0, "what is open lives on: {outcome:?}");
    assert!(outcome.failed >= 20, "{outcome:?}");
    assert_eq!(
        said(&place.node, "form=\"plain\""),
        2,
        "{}",
        story(&place.node)
    );
}

/// Another Xray than the one under test, or a copy of that.
fn other_xray(folder: &Path) -> std::path::PathBuf {
    match std::env::var_os("RAYNODE_TEST_OTHER_XRAY") {
        Some(path) => path.into(),
        None => {
            eprintln!(
                "RAYNODE_TEST_OTHER_XRAY is not set: the other version is a copy of this one"
            );
            let copy = folder.join("other-xray");
            std::fs::copy(xray_binary(), &copy).unwrap();
            copy
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_takes_over_and_one_that_does_not_run_does_not() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    node.unset("XRAY_EXECUTABLE_PATH");
    let env = node.folder().join(".env");
    let choose = |binary: &Path| {
        std::fs::write(&env, format!("XRAY_EXECUTABLE_PATH={}\n", binary.display())).unwrap();
    };
    choose(&xray_binary());
    node.launch();
    let other = other_xray(node.folder());
    let place = Place::with(node, 3).await;
    let storm = Storm::begin(place.load(1000, 300), None).await;
    for binary in [&other, &xray_binary()] {
        let flips = said(&place.node, FLIPPED);
        choose(binary);
        place.node.signal(Signal::SIGHUP);
        eventually("another core serves", || async {
            (said(&place.node, FLIPPED) > flips).then_some(())
        })
        .await;
        let running = std::fs::read_link(format!("/proc/{}/exe", place.node.core())).unwrap();
        assert_eq!(running, binary.canonicalize().unwrap());
        // A hangup that changes nothing changes nothing.
        let now = place.node.core();
        place.node.signal(Signal::SIGHUP);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(place.node.core(), now);
    }
    // One that is no Xray, and one that says it is and never gets ready.
    let broken = place.node.folder().join("broken");
    let hangs = format!(
        "#!/bin/sh\n[ \"$1 $2\" = 'run -c' ] && exec sleep 1000\nexec {} \"$@\"\n",
        xray_binary().display()
    );
    for script in ["#!/bin/sh\necho no\n", &hangs] {
        let (before, refused) = (place.node.core(), said(&place.node, "stays as it is"));
        tricky::write_script(&broken, script);
        choose(&broken);
        place.node.signal(Signal::SIGHUP);
        eventually("it is refused", || async {
            (said(&place.node, "stays as it is") > refused).then_some(())
        })
        .await;
        assert_eq!(place.node.core(), before);
    }
    // What runs is what the next one is made of, too.
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    place.hand_over(&config).await;
    let outcome = storm.end().await;
    nobody_noticed(&outcome, &place.node);
    everything_is_billed_once(&place, &outcome).await;
}

/// A node whose cores do `trick` when they are told to.
async fn with_a_trick(trick: &str, settings: &[(&str, &str)]) -> Place {
    let mut node = NodeProcess::prepare(NODE, settings);
    tricky::prepare(&mut node, trick);
    node.launch();
    Place::with(node, 3).await
}

/// Tries a hand-over that has to fail, and then one that has to work.
async fn a_new_core_that_fails(
    place: Place,
    config: Value,
    reason: &str,
    repair: impl FnOnce(&Place),
) {
    let storm = Storm::begin(place.load(500, 100), None).await;
    let before = place.node.core();
    let error = place.panel.start(&config, &place.users).await.unwrap_err();
    assert!(error.message().contains(reason), "{error}");
    assert_eq!(place.node.core(), before, "the old one serves on");
    assert_eq!(
        place.node.cores(),
        [before],
        "nothing is left of the new one"
    );
    assert!(place.panel.info().await.started);
    tokio::time::sleep(Duration::from_millis(500)).await;
    repair(&place);
    place.hand_over(&config).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let outcome = storm.end().await;
    nobody_noticed(&outcome, &place.node);
    everything_is_billed_once(&place, &outcome).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_core_that_finds_a_port_taken_costs_nothing() {
    let place = Place::new(&[]).await;
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = place.config.clone();
    let taken = vless_inbound("more", foreign.local_addr().unwrap().port());
    config["inbounds"].as_array_mut().unwrap().push(taken);
    a_new_core_that_fails(place, config, "address already in use", move |_| {
        drop(foreign)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_core_that_never_gets_ready_costs_nothing() {
    let place = with_a_trick("exec sleep 1000", &[]).await;
    tricky::set(&place.node, true);
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    a_new_core_that_fails(place, config, "did not become ready", |place| {
        tricky::set(&place.node, false)
    })
    .await;
}

/// It is stopped as soon as it listens: before it has answered, or right after.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_core_that_freezes_costs_nothing() {
    let freeze = "port=$(cat \"$(dirname \"$0\")/port\")\n(core=$$; while ! ss -Hltnp \"sport = :$port\" | grep -q \"pid=$core,\"; do :; done; kill -STOP $core) &";
    let place = with_a_trick(freeze, &[]).await;
    std::fs::write(place.node.folder().join("port"), place.port.to_string()).unwrap();
    tricky::set(&place.node, true);
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    a_new_core_that_fails(place, config, "", |place| tricky::set(&place.node, false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_core_that_dies_at_once_gives_everything_back() {
    let place = Place::new(&[]).await;
    let storm = Storm::begin(place.load(500, 200), None).await;
    let old = place.node.core();
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    let new = place.hand_over(&config).await;
    // Somebody comes and somebody goes before it dies.
    place
        .panel
        .sync_user(user("new", &["vless"]))
        .await
        .unwrap();
    place.panel.sync_user(user("2", &[])).await.unwrap();
    kill(Pid::from_raw(new), Signal::SIGKILL).unwrap();
    eventually("the old core serves", || async {
        (said(&place.node, "the one before serves again") == 1 && place.node.cores() == [old])
            .then_some(())
    })
    .await;
    let served = place.node.served_on("vless").await;
    let wanted = ["0", "1", "new"].map(str::to_owned);
    assert_eq!(served, BTreeSet::from(wanted));
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(place.node.core(), old);
    let outcome = storm.end().await;
    assert_eq!(outcome.ended, 0, "{outcome:?}: {}", story(&place.node));
    // Those who were with the core that was killed.
    assert!(outcome.failed <= 25, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_core_that_dies_in_the_middle_leaves_the_new_one() {
    let place = with_a_trick("sleep 1", &[]).await;
    tricky::set(&place.node, true);
    let storm = Storm::begin(place.load(500, 0), None).await;
    let old = place.node.core();
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    let killed = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    };
    let (started, ()) = tokio::join!(place.panel.start(&config, &place.users), killed);
    started.unwrap();
    eventually("one core serves", || async {
        matches!(place.node.cores().as_slice(), [core] if *core != old).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = storm.opened();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        storm.opened() > before + 100,
        "everybody gets through again"
    );
    storm.end().await;
}

/// How far a hand-over is, by the node's own journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no second core yet.
    Checking,
    Spawning,
    Flipping,
    Draining,
    Closed,
}

fn phase_of(folder: &Path) -> Option<Phase> {
    let text = std::fs::read(folder.join("run/handover.json")).ok()?;
    let journal: Value = serde_json::from_slice(&text).ok()?;
    if !journal["next"].is_null() {
        return Some(match journal["flipping"].as_bool()? {
            true => Phase::Flipping,
            false => Phase::Spawning,
        });
    }
    let last = journal["draining"].as_array()?.last()?;
    let closed = last["leaving"]["later"].as_array()?.is_empty();
    Some(if closed {
        Phase::Closed
    } else {
        Phase::Draining
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_in_any_phase_is_followed_by_one_that_ends_it() {
    let mut place = Place::new(&[]).await;
    let folder = place.node.folder().to_owned();
    let storm = Storm::begin(place.load(500, 200), None).await;
    let steps = [place.config.clone(), {
        let mut other = place.config.clone();
        other["log"]["loglevel"] = "error".into();
        other
    }];
    let phases = [
        Phase::Checking,
        Phase::Spawning,
        Phase::Flipping,
        Phase::Draining,
        Phase::Closed,
    ];
    let mut met = Vec::new();
    let mut step = 0;
    for round in 0..times(2, 20) {
        for phase in phases {
            eventually("nobody leaves a port any more", || async {
                matches!(phase_of(&folder), None | Some(Phase::Closed)).then_some(())
            })
            .await;
            let before = place.node.core();
            step += 1;
            let (panel, users) = (Panel::of(&place.node), place.users.clone());
            let config = steps[step % 2].clone();
            let starting = tokio::spawn(async move { panel.start(&config, &users).await.is_ok() });
            // A little later each time, to meet it everywhere.
            let later = Duration::from_millis(u64::try_from(round * 3 % 40).unwrap());
            let deadline = Instant::now() + Duration::from_secs(10);
            while phase != Phase::Checking
                && phase_of(&folder) != Some(phase)
                && Instant::now() < deadline
            {
                std::thread::yield_now();
            }
            tokio::time::sleep(later).await;
            met.push(phase_of(&folder));
            place.node.kill();
            place.node.launch();
            place.panel = Panel::of(&place.node);
            drop(starting.await);
            eventually("the panel's session goes on", || async {
                place.panel.info().await.started.then_some(())
            })
            .await;
            let serving = place.node.core();
            let draining = place.node.draining();
            assert!(!draining.contains(&serving), "{}", story(&place.node));
            assert!(draining.len() <= 2, "{}", story(&place.node));
            if serving == before {
                // It was undone, so the next one is to the same configuration.
                step += 1;
            }
        }
    }
    let outcome = storm.end().await;
    let ends = [
        "ended the hand-over",
        "undid the hand-over",
        "was not ready when",
    ];
    let ends = ends.map(|end| said(&place.node, end));
    eprintln!("died in {met:?}; ended, undone, not ready: {ends:?}, {outcome:?}");
    nobody_noticed(&outcome, &place.node);
    everything_is_billed_once(&place, &outcome).await;
    assert!(ends[0] > 0 && ends[2] > 0, "{ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_in_five_seconds_with_many_users() {
    let users = times(10_000, 100_000);
    let place = Place::with(NodeProcess::start(NODE), users).await;
    let storm = Storm::begin(place.load(1000, 300), None).await;
    let began = Instant::now();
    for (_, config) in changes(&place.config).into_iter().take(3) {
        place.hand_over(&config).await;
    }
    eprintln!(
        "three hand-overs with {users} users took {:?}",
        began.elapsed()
    );
    let outcome = storm.end().await;
    nobody_noticed(&outcome, &place.node);
    everything_is_billed_once(&place, &outcome).await;
    assert_eq!(place.node.served_on("vless").await.len(), users);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_panels_restart_of_the_core_cuts_nobody() {
    let place = Place::new(&[]).await;
    let storm = Storm::begin(place.load(500, 100), None).await;
    let before = place.node.core();
    let mut cores = panel::cores(&place.node);
    let renewed = cores.renew_core(RenewCoreRequest {}).await;
    let now = renewed.unwrap().into_inner().core.unwrap();
    assert_eq!(now.pid, place.node.core());
    assert_ne!(now.pid, before);
    let listed = cores.list_cores(ListCoresRequest {}).await;
    let listed = listed.unwrap().into_inner();
    let pids: Vec<i32> = listed.cores.iter().map(|core| core.pid).collect();
    assert_eq!(pids, [now.pid, before]);
    for core in &listed.cores {
        assert!(core.memory > 10 << 20 && core.open_files > 5, "{core:?}");
    }
    assert_eq!(listed.handovers.unwrap().steered, 1);
    nobody_noticed(&storm.end().await, &place.node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_with_too_much_memory_makes_way_for_a_fresh_one() {
    // No core is below it.
    let place = Place::new(&[("CORE_MEMORY_LIMIT", "64MiB")]).await;
    let storm = Storm::begin(place.load(200, 300), None).await;
    let first = place.node.core();
    let limit = std::fs::read(format!("/proc/{first}/environ")).unwrap();
    let limit = String::from_utf8(limit).unwrap();
    assert!(limit.contains("GOMEMLIMIT=67108864"), "{limit}");
    nobody_noticed(&storm.end().await, &place.node);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_second_core_does_not_fit_the_first_one_is_restarted() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    let small = node.folder().join("meminfo");
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let lines = meminfo.lines().map(|line| match line.split_once(':') {
        Some(("MemAvailable" | "MemFree", _)) => "MemAvailable: 1024 kB".to_owned(),
        _ => line.to_owned(),
    });
    std::fs::write(&small, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let wrapper = node.folder().join("raynode");
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind {} /proc/meminfo && exec {NODE} \"$@\"' sh \"$@\"\n",
        small.display()
    );
    tricky::write_script(&wrapper, &script);
    node.be(&wrapper);
    node.launch();
    let place = Place::with(node, 3).await;
    let before = place.node.core();
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    place.hand_over(&config).await;
    assert!(!place.node.cores().contains(&before));
    assert_eq!(
        said(&place.node, "a second core would need"),
        1,
        "{}",
        story(&place.node)
    );
}

/// A node with every one of these transports, and who uses them.
struct Transports {
    node: NodeProcess,
    panel: Panel,
    config: Value,
    users: Vec<User>,
    echo: Echo,
    used: Vec<Used>,
    _cases: Vec<Case>,
}

struct Used {
    name: &'static str,
    client: XrayClient,
    streams: Streams,
}

impl Transports {
    async fn new(cases: Vec<(&'static str, Case)>, settings: &[(&str, &str)]) -> Self {
        let node = NodeProcess::start_with(NODE, settings);
        let panel = Panel::of(&node);
        let echo = Echo::start().await;
        let mut inbounds = Vec::new();
        for (name, case) in &cases {
            let mut inbound = case.inbound.clone();
            inbound["tag"] = (*name).into();
            inbounds.push(inbound);
            for (number, also) in case.also.iter().enumerate() {
                let mut also = also.clone();
                also["tag"] = format!("{name}-{number}").into();
                inbounds.push(also);
            }
        }
        let tags: Vec<String> = inbounds
            .iter()
            .map(|inbound| inbound["tag"].as_str().unwrap().to_owned())
            .collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let config = json!({
            "log": { "loglevel": "warning" }, "inbounds": inbounds, "outbounds": [freedom()],
        });
        let users = vec![users::user_with("7", &tags, "xtls-rprx-vision")];
        panel.start(&config, &users).await.unwrap();
        let mut used = Vec::new();
        for (name, case) in &cases {
            let client = XrayClient::start(&case.outbound);
            let streams = Streams::hold(&client, &echo, 3).await;
            used.push(Used {
                name,
                client,
                streams,
            });
        }
        Self {
            node,
            panel,
            config,
            users,
            echo,
            used,
            _cases: cases.into_iter().map(|(_, case)| case).collect(),
        }
    }

    async fn hand_over(&mut self) {
        let before = self.node.core();
        self.config["log"]["loglevel"] = "error".into();
        self.panel.start(&self.config, &self.users).await.unwrap();
        assert_ne!(self.node.core(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_every_transport_live_on() {
    let cases = vec![
        ("raw", transports::vless_over_tcp()),
        ("ws", transports::vless_over_websocket()),
        ("vision", transports::vless_with_vision_over_tls()),
        ("reality", transports::vless_over_reality()),
        ("grpc", transports::vless_over_grpc()),
        ("mux", transports::vless_with_mux()),
        ("behind-a-fallback", transports::vless_behind_a_fallback()),
        ("vmess", transports::vmess_over_tcp()),
        ("trojan", transports::trojan_over_tls()),
        ("shadowsocks", transports::shadowsocks()),
        (
            "shadowsocks-2022",
            transports::shadowsocks_2022("2022-blake3-aes-128-gcm", 16),
        ),
    ];
    let mut all = Transports::new(cases, &[]).await;
    let old = all.node.core();
    all.hand_over().await;
    // Behind the moment at which the old core closes its listeners.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for used in &all.used {
        assert_eq!(
            used.streams.broken(),
            0,
            "{}: {}",
            used.name,
            story(&all.node)
        );
        let again = Streams::hold(&used.client, &all.echo, 2).await;
        assert_eq!(again.end().await.broken, 0, "{}", used.name);
    }
    assert_eq!(all.node.draining(), [old]);
    for used in all.used.drain(..) {
        let table = used.streams.end().await;
        assert_eq!(table.broken, 0, "{}: {table:?}", used.name);
    }
    let lost = "this can't live through a hand-over";
    assert_eq!(
        said(&all.node, lost),
        2,
        "datagrams of Shadowsocks: {}",
        story(&all.node)
    );
    eventually("the old core has drained", || async {
        all.node.draining().is_empty().then_some(())
    })
    .await;
    let socket = all.config["inbounds"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|inbound| {
            inbound["listen"]
                .as_str()
                .filter(|listen| listen.starts_with('/'))
        });
    let folder = Path::new(socket.unwrap()).parent().unwrap();
    let files = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
    let names: BTreeSet<_> = files.map(|file| file.file_name()).collect();
    // The known name, and the lock that Xray keeps beside its own.
    assert_eq!(names.len(), 2, "{names:?}");
}

/// Nothing tells a hysteria client that its core is gone; how long it waits is a setting of the server.
#[tokio::test(flavor = "multi_thread")]
async fn hysteria_hangs_for_as_long_as_was_set() {
    if xray_version() < (26, 3, 23) {
        return;
    }
    let cases = vec![("hysteria", transports::hysteria())];
    let mut all = Transports::new(cases, &[("HYSTERIA_IDLE_TIMEOUT", "4s")]).await;
    all.hand_over().await;
    let flipped = Instant::now();
    let used = all.used.pop().unwrap();
    loop {
        let attempt = async {
            let mut stream = used.client.connect(all.echo.address).await?;
            stream.write_all(b"x").await?;
            stream.read_exact(&mut [0]).await
        };
        match tokio::time::timeout(Duration::from_millis(500), attempt).await {
            Ok(Ok(_)) => break,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        assert!(
            flipped.elapsed() < Duration::from_secs(20),
            "{}",
            story(&all.node)
        );
    }
    let outage = flipped.elapsed();
    eprintln!("hysteria hung for {outage:?}");
    let wanted = Duration::from_millis(3000)..Duration::from_secs(8);
    assert!(wanted.contains(&outage), "{outage:?}");
    assert_eq!(
        said(&all.node, "what=\"hysteria sessions hang"),
        1,
        "{}",
        story(&all.node)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_user_is_cut_in_the_core_that_drains_and_his_neighbour_is_not() {
    let place = Place::new(&[]).await;
    let connect = |last: u8, number: &'static str| {
        let (at, target) = (storm::loopback(place.port), place.echo.address);
        async move {
            let from = Ipv4Addr::new(127, 0, 3, last);
            let mut stream = vless::connect_through(from, at, id(number), target)
                .await
                .unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.read_exact(&mut [0; 3]).await.unwrap();
            stream
        }
    };
    // Two have an address of their own each, and they share one.
    let (mut alone, mut other) = (connect(1, "0").await, connect(2, "1").await);
    let (mut shared, mut neighbour) = (connect(3, "0").await, connect(3, "1").await);
    // Xray's map of who is online lags a second behind.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    place.hand_over(&config).await;
    let removed = Instant::now();
    place.panel.sync_user(user("0", &[])).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), alone.read(&mut [0])).await;
    let ended = ended.expect("a removed user is cut");
    assert!(ended.is_err() || ended.unwrap() == 0);
    eprintln!("cut after {:?}", removed.elapsed());
    for stream in [&mut other, &mut shared, &mut neighbour] {
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    }
    assert_eq!(
        said(&place.node, "removed users are cut"),
        1,
        "{}",
        story(&place.node)
    );
    drop((other, shared, neighbour));
}

/// With a core that has capabilities of its own nobody but root may trace it: its sockets can't be steered.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_kernel_lends_no_socket_the_plain_form_is_taken() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("SKIPPED: it needs root");
        return;
    }
    let mut node = NodeProcess::prepare(NODE, &[]);
    std::os::unix::fs::chown(node.folder(), Some(65534), Some(65534)).unwrap();
    let binary = node.folder().join("xray");
    std::fs::copy(xray_binary(), &binary).unwrap();
    let set = std::process::Command::new("setcap")
        .arg("cap_net_bind_service+ep")
        .arg(&binary)
        .status();
    assert!(set.unwrap().success(), "setcap");
    node.set("XRAY_EXECUTABLE_PATH", &binary.display().to_string());
    node.as_user(65534);
    node.launch();
    let place = Place::with(node, 3).await;
    let storm = Storm::begin(place.load(50, 100), None).await;
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    place.panel.start(&config, &place.users).await.unwrap();
    assert_eq!(
        said(&place.node, "form=\"plain\""),
        1,
        "{}",
        story(&place.node)
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outcome = storm.end().await;
    assert_eq!(outcome.ended, 0, "{outcome:?}");
    // On the way to the old core's listener when that closed.
    assert!(outcome.failed <= 2, "{outcome:?}");
}
