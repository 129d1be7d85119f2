//! A daemon that dies in the middle is followed by one that ends what it had begun.

use super::*;

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
        let flipping = journal["flipping"].as_bool()?;
        return Some(if flipping {
            Phase::Flipping
        } else {
            Phase::Spawning
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
    let storm = Storm::begin(place.load(200, 100), None).await;
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
    // Some last a moment only, and on a machine that is busy it takes more than one round to meet them.
    let met_all = |node: &NodeProcess| ends_in(node)[0] > 0 && ends_in(node)[2] > 0;
    for round in 0..times(8, 20) {
        if round >= times(1, 20) && met_all(&place.node) {
            break;
        }
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
    let ends = ends_in(&place.node);
    println!("died in {met:?}; ended, undone, not ready: {ends:?}, {outcome:?}");
    nobody_noticed(&outcome, &place.node);
    everything_is_billed_once(&place, &outcome).await;
    assert!(ends[0] > 0 && ends[2] > 0, "{ends:?}");
}

/// How often a hand-over was ended, undone, and given up before its core was ready.
fn ends_in(node: &NodeProcess) -> [usize; 3] {
    let ends = [
        "ended the hand-over",
        "undid the hand-over",
        "was not ready when",
    ];
    ends.map(|end| said(node, end))
}

/// Where cores that drain keep their listeners, the next daemon has to know which of them is whose.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_knows_the_order_of_those_that_share_a_port() {
    let case = transports::vless_over_grpc();
    let mut node = NodeProcess::start(NODE);
    let mut panel = Panel::of(&node);
    let echo = Echo::start().await;
    let users = vec![users::user_with("7", &["in"], "")];
    let config = |level: &str| json!({ "log": { "loglevel": level }, "inbounds": [case.inbound], "outbounds": [freedom()] });
    panel.start(&config("warning"), &users).await.unwrap();
    let [one, other] = [(); 2].map(|()| XrayClient::start(&case.outbound));
    let first = Streams::hold(&one, &echo, 2).await;
    panel.start(&config("error"), &users).await.unwrap();
    let second = Streams::hold(&other, &echo, 2).await;
    let middle = node.core();
    panel.start(&config("info"), &users).await.unwrap();
    let serving = node.core();
    // The first of three leaves, and the last one takes its place.
    assert_eq!(first.end().await.broken, 0);
    drop(one);
    eventually("the first one has drained", || async {
        (node.draining() == [middle]).then_some(())
    })
    .await;
    for dies in [false, true] {
        if dies {
            node.kill();
            node.launch();
            panel = Panel::of(&node);
            assert!(panel.info().await.started);
        }
        let before = established(middle);
        for _ in 0..10 {
            let client = XrayClient::start(&case.outbound);
            let streams = Streams::hold(&client, &echo, 1).await;
            assert!(established(middle) <= before, "{}", story(&node));
            assert_eq!(streams.end().await.broken, 0);
        }
    }
    assert_eq!(node.core(), serving);
    assert_eq!(second.end().await.broken, 0);
}

/// The number of sockets that a process has open.
fn established(pid: i32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let sockets = files.filter(|file| {
        let target = std::fs::read_link(file.as_ref().unwrap().path()).unwrap_or_default();
        target.to_string_lossy().starts_with("socket:")
    });
    sockets.count()
}

/// Without steering, too, and with a socket that only one core can have.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_after_a_plain_hand_over_cuts_nobody() {
    let mut place = Place::new(&[("HANDOVER", "plain")]).await;
    let storm = Storm::begin(place.load(20, 50), None).await;
    let old = place.node.core();
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    place.hand_over(&config).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    place.node.kill();
    place.node.launch();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(place.node.draining(), [old], "{}", story(&place.node));
    let outcome = storm.end().await;
    assert_eq!(outcome.ended, 0, "{outcome:?}: {}", story(&place.node));
}
