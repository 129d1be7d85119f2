//! A new core that does not do what it should costs nothing.

use super::*;

/// Tries a hand-over that has to fail, and then one that has to work.
async fn a_new_core_that_fails(
    place: Place,
    config: Value,
    reason: &str,
    repair: impl FnOnce(&Place),
) {
    let storm = Storm::begin(place.load(200, 100), None).await;
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
        drop(foreign);
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
        tricky::set(&place.node, false);
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
    let storm = Storm::begin(place.load(200, 100), None).await;
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
    let wanted = BTreeSet::from(["0", "1", "new"].map(str::to_owned));
    eventually("its users are put right", || async {
        (place.node.served_on("vless").await == wanted).then_some(())
    })
    .await;
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
    let storm = Storm::begin(place.load(200, 0), None).await;
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
    assert!(storm.opened() > before + 30, "everybody gets through again");
    storm.end().await;
}

/// Where the old core has closed listeners already there is no way back to it: the new one is started again.
#[tokio::test(flavor = "multi_thread")]
async fn without_steering_a_new_core_that_dies_at_once_is_started_again() {
    let place = Place::new(&[("HANDOVER", "plain")]).await;
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    let new = place.hand_over(&config).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill(Pid::from_raw(new), Signal::SIGKILL).unwrap();
    eventually("somebody gets through", || async {
        let address = place.echo.address;
        vless::echo(place.port, id("0"), address, 8).await.ok()
    })
    .await;
    assert_eq!(
        said(&place.node, "serves again"),
        0,
        "{}",
        story(&place.node)
    );
    place.hand_over(&place.config).await;
}

/// A user who was taken from the old core while it drained is not blocked when it serves again.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_to_an_old_core_that_serves_again_is_served() {
    let place = Place::new(&[]).await;
    let old = place.node.core();
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    let few = numbered(0..2, &["vless"]);
    place.panel.start(&config, &few).await.unwrap();
    let new = place.node.core();
    // Removed and wanted again while the old core drains.
    place.panel.sync_user(user("1", &[])).await.unwrap();
    eventually("he is cut there, too", || async {
        (said(&place.node, "removed users are cut") > 1).then_some(())
    })
    .await;
    place.panel.sync_user(user("1", &["vless"])).await.unwrap();
    kill(Pid::from_raw(new), Signal::SIGKILL).unwrap();
    eventually("the old core serves", || async {
        (said(&place.node, "serves again") == 1 && place.node.cores() == [old]).then_some(())
    })
    .await;
    // Its users are put right before anything else is done.
    place.panel.sync_user(user("2", &[])).await.unwrap();
    let served = place.node.served_on("vless").await;
    assert_eq!(served, BTreeSet::from(["0", "1"].map(str::to_owned)));
    place.panel.sync_user(user("2", &["vless"])).await.unwrap();
    for email in ["0", "1", "2"] {
        let echo = vless::echo(place.port, id(email), place.echo.address, 8);
        let echo = tokio::time::timeout(Duration::from_secs(5), echo).await;
        echo.expect(email).unwrap();
    }
}

/// A core that died is in no group of sockets any more: the next hand-over is steered like the first.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_and_a_stop_it_is_steered_as_before() {
    let place = Place::new(&[]).await;
    let mut config = place.config.clone();
    for round in 0..2 {
        config["log"]["loglevel"] = ["error", "info"][round].into();
        place.hand_over(&config).await;
        eventually("nobody drains", || async {
            place.node.draining().is_empty().then_some(())
        })
        .await;
        if round == 0 {
            let core = place.node.core();
            kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
            eventually("another core", || async {
                let cores = place.node.cores();
                let another = cores.len() == 1 && !cores.contains(&core);
                (another && place.panel.info().await.started).then_some(())
            })
            .await;
        } else {
            place.panel.stop().await.unwrap();
            place.start(&config).await;
        }
    }
    let storm = Storm::begin(place.load(200, 100), None).await;
    place.hand_over(&place.config).await;
    nobody_noticed(&storm.end().await, &place.node);
    assert_eq!(
        said(&place.node, "form=\"steered\""),
        3,
        "{}",
        story(&place.node)
    );
}

/// Xray lives on without a gRPC listener whose port somebody else has.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_core_without_one_of_its_ports_costs_nothing() {
    let place = Place::new(&[]).await;
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = place.config.clone();
    let mut taken = vless_inbound("more", foreign.local_addr().unwrap().port());
    taken["streamSettings"] = json!({ "network": "grpc", "grpcSettings": { "serviceName": "x" } });
    config["inbounds"].as_array_mut().unwrap().push(taken);
    let reason = "\"more\" on port";
    a_new_core_that_fails(place, config, reason, move |_| drop(foreign)).await;
}

/// An old core that hangs holds nothing up: not the next change for long, not the stop.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_core_that_hangs_is_waited_for_a_few_seconds_only() {
    let mut place = Place::new(&[]).await;
    let steps = changes(&place.config);
    let old = place.node.core();
    place.hand_over(&steps[0].1).await;
    kill(Pid::from_raw(old), Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    place.hand_over(&steps[1].1).await;
    let waited = began.elapsed();
    assert!(
        waited < Duration::from_secs(12),
        "{waited:?}: {}",
        story(&place.node)
    );
    let began = Instant::now();
    assert!(place.node.stop().success());
    assert_eq!(
        place.node.cores(),
        Vec::<i32>::new(),
        "{}",
        story(&place.node)
    );
    assert!(
        began.elapsed() < Duration::from_secs(17),
        "{:?}",
        began.elapsed()
    );
}
