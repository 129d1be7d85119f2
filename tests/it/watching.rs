//! What a panel can watch: logs, who is online, latencies, loads.

use std::time::Duration;

use raynode::proto::service::{Empty, LatencyRequest, Log, StatRequest};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Streaming;

use crate::NODE;
use crate::support::node::xray_version;
use crate::support::users::{self, numbered};
use crate::support::xray::{freedom, vless_config, vless_outbound};
use crate::support::{
    Echo, NodeProcess, Origin, Panel, XrayClient, eventually, origin, ports, vless,
};

async fn viewer(panel: &Panel) -> Streaming<Log> {
    panel
        .client
        .clone()
        .get_logs(Empty {})
        .await
        .unwrap()
        .into_inner()
}

/// Reads until nothing comes for a while; returns how many lines came.
async fn rest(viewer: &mut Streaming<Log>) -> usize {
    let mut count = 0;
    while let Ok(line) = tokio::time::timeout(Duration::from_millis(700), viewer.message()).await {
        line.unwrap().expect("the log goes on");
        count += 1;
    }
    count
}

/// Reads until a line contains the text; returns all lines up to it.
async fn until(viewer: &mut Streaming<Log>, text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), viewer.message()).await;
        let line = next
            .unwrap_or_else(|_| panic!("no line with {text:?} in {lines:#?}"))
            .unwrap();
        lines.push(line.expect("the log goes on").detail);
        if lines.last().unwrap().contains(text) {
            return lines;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_viewer_gets_every_line_also_of_the_next_core() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let port = ports::free();
    let mut config = vless_config(port);
    config["log"] = json!({ "loglevel": "debug" });
    panel
        .start(&config, &numbered(0..2, &["vless"]))
        .await
        .unwrap();

    let (mut first, mut second) = (viewer(&panel).await, viewer(&panel).await);
    let origin = Origin::start().await;
    let client = XrayClient::start(&vless_outbound(port, users::id("1")));
    let mut stream = client.connect(origin.address).await.unwrap();
    origin::exchange(&mut stream, 100, 100).await.unwrap();
    let a = until(&mut first, "email: 1").await;
    let b = until(&mut second, "email: 1").await;
    assert_eq!(a, b);
    assert!(
        a.iter().any(|line| line.contains("Xray")),
        "it starts with what was there before: {a:#?}"
    );
    for line in &a {
        for ours in ["API_INBOUND", "[API]", "core-", "raynode", "dokodemo"] {
            assert!(!line.contains(ours), "what the node adds shows: {line}");
        }
    }

    // The viewers live on over Stop and Start.
    panel.stop().await.unwrap();
    config["log"]["loglevel"] = json!("info");
    panel
        .start(&config, &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    for viewer in [&mut first, &mut second] {
        until(viewer, "A unified platform").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_reads_too_slowly_is_not_cut_off() {
    let node = NodeProcess::start_with(NODE, &[("LOG_BUFFER_SIZE", "5")]);
    let panel = Panel::of(&node);
    let port = ports::free();
    let mut config = vless_config(port);
    config["log"] = json!({ "loglevel": "debug" });
    panel
        .start(&config, &numbered(0..1, &["vless"]))
        .await
        .unwrap();
    let mut slow = viewer(&panel).await;
    until(&mut slow, "").await;
    // Far more lines than the history and all buffers on the way hold, and nobody reads.
    let echo = Echo::start().await;
    for _ in 0..2000 {
        let stream = vless::connect(port, users::id("0"), echo.address).await;
        drop(stream.unwrap());
    }
    // Until no line comes any more.
    rest(&mut viewer(&panel).await).await;
    let mut fast = viewer(&panel).await;
    // Five, and what a busy machine is late with; not ten thousand.
    assert!(rest(&mut fast).await < 100);
    // What he is told is shown by the unit tests: small lines fit into the buffers of a connection by
    // the thousand.
    rest(&mut slow).await;
    drop(
        vless::connect(port, users::id("0"), echo.address)
            .await
            .unwrap(),
    );
    // Whatever comes now is new. Which of the lines it is that has not made room for others yet is not said.
    for viewer in [&mut fast, &mut slow] {
        until(viewer, "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_log_files_get_their_lines() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let port = ports::free();
    let file = |name: &str| node.folder().join(name);
    let mut config = vless_config(port);
    config["log"] =
        json!({ "loglevel": "debug", "access": file("access.log"), "error": file("error.log") });
    panel
        .start(&config, &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let origin = Origin::start().await;
    let client = XrayClient::start(&vless_outbound(port, users::id("1")));
    let mut stream = client.connect(origin.address).await.unwrap();
    origin::exchange(&mut stream, 100, 100).await.unwrap();

    let read = |name: &str| std::fs::read_to_string(file(name)).unwrap_or_default();
    eventually("the access record is there", || async {
        read("access.log")
            .contains("accepted tcp:127.0.0.1")
            .then_some(())
    })
    .await;
    assert_eq!(
        read("access.log").lines().count(),
        1,
        "{}",
        read("access.log")
    );
    assert!(read("access.log").contains("email: 1"));
    assert!(read("error.log").contains("started") && !read("error.log").contains("accepted tcp"));
    for name in ["access.log", "error.log"] {
        assert!(!read(name).contains("API_INBOUND"), "{}", read(name));
    }

    // `none` is none: no file of that name, no lines.
    config["log"] = json!({ "loglevel": "info", "access": "none", "error": "none" });
    panel
        .start(&config, &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let mut stream = client.connect(origin.address).await.unwrap();
    origin::exchange(&mut stream, 100, 100).await.unwrap();
    assert!(!file("none").exists());
    let mut viewer = viewer(&panel).await;
    let mut lines = Vec::new();
    while let Ok(line) = tokio::time::timeout(Duration::from_millis(500), viewer.message()).await {
        lines.push(line.unwrap().unwrap().detail);
    }
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.contains("accepted tcp"))
            .count(),
        1,
        "{lines:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn online_users_are_counted_with_their_addresses() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let port = ports::free();
    panel
        .start(&vless_config(port), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let origin = Origin::start().await;
    let client = XrayClient::start(&vless_outbound(port, users::id("1")));
    let mut stream = client.connect(origin.address).await.unwrap();
    stream.write_all(&[0; 15]).await.unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();

    let named = || StatRequest {
        name: "1".to_owned(),
        ..StatRequest::default()
    };
    let count = || async {
        let reply = panel
            .client
            .clone()
            .get_user_online_stats(named())
            .await
            .ok()?
            .into_inner();
        assert_eq!(reply.name, "1");
        Some(reply.value)
    };
    eventually("he is online", || async {
        (count().await == Some(1)).then_some(())
    })
    .await;
    let reply = panel
        .client
        .clone()
        .get_user_online_ip_list_stats(named())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.ips.keys().collect::<Vec<_>>(), ["127.0.0.2"]);
    assert!(reply.ips["127.0.0.2"].abs_diff(i64::try_from(now).unwrap()) < 60);
    drop(stream);
    if xray_version() >= (26, 3, 23) {
        eventually("he is offline", || async {
            (count().await == Some(0)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn latencies_come_from_the_cores_observatory() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let target = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/generate_204", target.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        while let Ok((mut stream, _)) = target.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                while stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                    let reply = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(reply).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let mut config = vless_config(ports::free());
    let mut dead = freedom();
    dead["tag"] = json!("dead");
    dead["settings"] = json!({ "redirect": "127.0.0.1:1", "finalRules": [{ "action": "allow" }] });
    config["outbounds"] = json!([freedom(), dead, { "tag": "block", "protocol": "blackhole" }]);
    config["observatory"] = json!({
        "subjectSelector": ["direct", "dead", "block"], "probeURL": url, "probeInterval": "1s", "enableConcurrency": true,
    });
    panel.start(&config, &[]).await.unwrap();
    let latencies = |name: &str| {
        let request = LatencyRequest {
            name: name.to_owned(),
        };
        let mut client = panel.client.clone();
        async move {
            client
                .get_outbounds_latency(request)
                .await
                .unwrap()
                .into_inner()
                .latencies
        }
    };
    let measured = eventually("both outbounds are measured", || async {
        let measured = latencies("").await;
        (measured.len() == 2 && measured.iter().all(|latency| latency.last_try_time > 0))
            .then_some(measured)
    })
    .await;
    assert_eq!(
        measured
            .iter()
            .map(|latency| latency.name.as_str())
            .collect::<Vec<_>>(),
        ["dead", "direct"]
    );
    let direct = eventually("the living one is seen", || async {
        latencies("direct")
            .await
            .into_iter()
            .find(|latency| latency.alive)
    })
    .await;
    assert_eq!(
        (direct.link.as_str(), direct.source.as_str()),
        ("direct", "xray-observatory")
    );
    assert!(direct.last_seen_time > 0 && (0..5000).contains(&direct.delay));
    assert!(!measured[0].alive);
    assert!(latencies("nosuch").await.is_empty());
    answering.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_and_the_core_are_described() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    let mut client = panel.client.clone();
    let backend = client
        .get_backend_stats(Empty {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        backend.num_goroutine > 0 && backend.sys > 1 << 20,
        "{backend:?}"
    );
    let system = eventually("the first sample is there", || async {
        let reply = panel
            .client
            .clone()
            .get_system_stats(Empty {})
            .await
            .unwrap()
            .into_inner();
        (reply.mem_total > 0 && reply.uptime > 0).then_some(reply)
    })
    .await;
    assert!(
        system.mem_used > 0 && system.mem_used < system.mem_total,
        "{system:?}"
    );
    assert_eq!(
        system.cpu_cores,
        std::thread::available_parallelism().unwrap().get() as u64
    );
    assert!((0.0..=100.0).contains(&system.cpu_usage), "{system:?}");
    assert!(system.uptime < 60, "it is the core's: {system:?}");
}
