//! Another binary, another environment, a fresh core without another reason.

use tonic::Code;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn another_version_takes_over_and_one_that_does_not_run_does_not() {
    let node = with_a_choice_of_xray();
    let env = node.folder().join(".env");
    let choose = |binary: &Path| choose_xray(&env, binary);
    let other = other_xray(&node);
    let place = Place::with(node, 3).await;
    let storm = Storm::begin(place.load(200, 100), None).await;
    for binary in [&other, &xray_binary()] {
        let flips = said(&place.node, FLIPPED);
        choose(binary);
        let told = place.node.command(&["reload"]);
        assert!(told.status.success(), "{told:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn the_panels_restart_of_the_core_cuts_nobody() {
    let place = Place::new(&[]).await;
    let storm = Storm::begin(place.load(200, 100), None).await;
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
async fn a_restart_of_the_core_that_fails_says_why_and_costs_nothing() {
    let place = with_a_trick("echo 'no room for me' >&2; exit 3", &[]).await;
    let mut cores = panel::cores(&place.node);
    let before = place.node.core();
    tricky::set(&place.node, true);
    let refused = cores.renew_core(RenewCoreRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unknown, "{refused:?}");
    assert!(refused.message().contains("no room for me"), "{refused:?}");
    assert_eq!(place.node.cores(), [before]);
    let listed = cores.list_cores(ListCoresRequest {}).await.unwrap();
    assert_eq!(listed.into_inner().handovers.unwrap().refused, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_with_too_much_memory_makes_way_for_a_fresh_one() {
    let place = Place::new(&[("CORE_MEMORY_LIMIT", "64MiB")]).await;
    let first = place.node.core();
    let environment = std::fs::read(format!("/proc/{first}/environ")).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    assert!(environment.contains("GOMEMLIMIT=67108864"), "{environment}");
    // Some 45 KiB each.
    let storm = Storm::begin(place.load(50, 1500), None).await;
    eventually("a fresh core serves", || async {
        (said(&place.node, FLIPPED) == 1).then_some(())
    })
    .await;
    assert_ne!(place.node.core(), first);
    assert_eq!(said(&place.node, "more memory than CORE_MEMORY_LIMIT"), 1);
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
