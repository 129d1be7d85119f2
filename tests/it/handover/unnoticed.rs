//! Nobody notices, near or far; and how many do without steering.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_nobody_notices() {
    let _alone = ALONE.lock().await;
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
    println!("near, steered: {outcome:?}");
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
    let _alone = ALONE.lock().await;
    let Some(far) = far() else { return };
    let place = Place::with(with_a_choice_of_xray(), 3).await;
    let other = other_xray(&place.node);
    for _ in 0..times(1, 3) {
        let load = place.load_from(&far, 1000, 300);
        let storm = Storm::begin(load, Some(&far)).await;
        for (what, config) in changes(&place.config) {
            let before = storm.opened();
            place.hand_over(&config).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(storm.opened() > before, "{what}: somebody gets through");
        }
        for binary in [&other, &xray_binary()] {
            let flips = said(&place.node, FLIPPED);
            choose_xray(&place.node.folder().join(".env"), binary);
            place.node.signal(Signal::SIGHUP);
            eventually("another version serves", || async {
                (said(&place.node, FLIPPED) > flips).then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        place.hand_over(&place.config).await;
        let outcome = storm.end().await;
        println!(
            "far away, steered: {outcome:?}, {} packets dropped",
            far.dropped()
        );
        nobody_noticed(&outcome, &place.node);
        everything_is_billed_once(&place, &outcome).await;
    }
}

/// The kernel moves handshakes from a listener that is closed to another one on its port.
const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// A setting of this network, as it was before when this is dropped.
struct Sysctl {
    path: &'static str,
    before: String,
}

impl Sysctl {
    fn set(path: &'static str, value: &str) -> Self {
        let before = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, value).unwrap();
        Self { path, before }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        std::fs::write(self.path, &self.before).unwrap();
    }
}

/// The negative control: the same without steering. And what helps there.
#[tokio::test(flavor = "multi_thread")]
async fn without_steering_those_who_are_far_away_notice() {
    let _alone = ALONE.lock().await;
    let Some(far) = far() else { return };
    let place = Place::new(&[("HANDOVER", "plain")]).await;
    let steps = changes(&place.config);
    let mut outcomes = Vec::new();
    for migrate in ["0", "1"] {
        let _migrating = Sysctl::set(MIGRATE, migrate);
        let storm = Storm::begin(place.load_from(&far, 1000, 300), Some(&far)).await;
        for (_, config) in &steps[..2] {
            place.hand_over(config).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let outcome = storm.end().await;
        println!("far away, plain, tcp_migrate_req={migrate}: {outcome:?}");
        assert_eq!(outcome.ended, 0, "what is open lives on: {outcome:?}");
        outcomes.push(outcome);
    }
    assert!(outcomes[0].failed >= 20, "{:?}", outcomes[0]);
    assert_eq!(outcomes[1].failed, 0, "{:?}", outcomes[1]);
    assert_eq!(
        said(&place.node, "form=\"plain\""),
        4,
        "{}",
        story(&place.node)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_in_five_seconds_with_many_users() {
    let _alone = ALONE.lock().await;
    let users = times(10_000, 100_000);
    let place = Place::with(NodeProcess::start(NODE), users).await;
    let storm = Storm::begin(place.load(1000, 300), None).await;
    let began = Instant::now();
    for (_, config) in changes(&place.config).into_iter().take(3) {
        place.hand_over(&config).await;
    }
    println!(
        "three hand-overs with {users} users took {:?}",
        began.elapsed()
    );
    let outcome = storm.end().await;
    println!("{outcome:?}");
    nobody_noticed(&outcome, &place.node);
    everything_is_billed_once(&place, &outcome).await;
    assert_eq!(place.node.served_on("vless").await.len(), users);
}

/// With a core that has capabilities of its own nobody but root may trace it: its sockets can't be steered.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_kernel_lends_no_socket_the_plain_form_is_taken() {
    let _alone = ALONE.lock().await;
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        println!("SKIPPED: it needs root");
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

/// Xray listens on `[::]` for all addresses; on a machine without IPv6 that is reached by IPv4.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_ipv6_is_steered_like_any_other() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    let wrapper = node.folder().join("raynode");
    let script = format!(
        "#!/bin/sh\nexec unshare -n sh -c 'ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && exec {NODE} \"$@\"' sh \"$@\"\n"
    );
    tricky::write_script(&wrapper, &script);
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        println!("SKIPPED: it needs root");
        return;
    }
    node.be(&wrapper);
    node.launch_inside();
    let inside = PathBuf::from(format!("/proc/{}/ns/net", node.pid()));
    let (config, key, port) = (config(ports::free()), node.api_key, node.port);
    let mut other = config.clone();
    other["log"]["loglevel"] = "error".into();
    for config in [config, other] {
        let body = json!({ "config": config.to_string(), "users": [] }).to_string();
        let answer = std::process::Command::new("nsenter")
            .arg(format!("--net={}", inside.display()))
            .args([
                "curl",
                "-sk",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-H",
                &format!("x-api-key: {key}"),
                "-H",
                "content-type: application/json",
            ])
            .args([
                "-X",
                "POST",
                "-d",
                &body,
                &format!("https://127.0.0.1:{port}/start"),
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert_eq!(text, "200");
    }
    assert_eq!(said(&node, "form=\"steered\""), 1, "{}", story(&node));
}
