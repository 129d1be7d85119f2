//! The node as Prometheus sees it.

#![allow(clippy::print_stdout, reason = "says what is skipped")]

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raynode::proto::service::{Empty, StatType};
use raynode::telemetry::names;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::NODE;
use crate::support::node::xray_version;
use crate::support::rest::{Http, Rest};
use crate::support::scrape::{OPENMETRICS, Page, Scrape};
use crate::support::users::{self, numbered, user};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{
    Echo, NodeProcess, Origin, Panel, Streams, XrayClient, eventually, origin, ports,
};

const UP: i64 = 1_500_007;
const DOWN: i64 = 3_000_011;

fn watched(settings: &[(&str, &str)]) -> (NodeProcess, Scrape) {
    let (scrape, port) = Scrape::reserve();
    let mut node = NodeProcess::prepare(NODE, settings);
    node.set("METRICS_LISTEN", &port);
    node.launch();
    (node, scrape)
}

/// Where a program is not installed; where everything is tested, it has to be.
fn skipped(program: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "this test needs {program} (the package prometheus)"
    );
    println!("SKIPPED: needs {program}");
}

/// What `promtool` says of a text; `None` where it is not installed.
fn promtool(arguments: &[&str], input: &str) -> Option<String> {
    let child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        skipped("promtool");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "{said}");
    Some(said)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_who_is_online_and_what_is_called_is_told_without_a_name() {
    const EMAIL: &str = "somebody@example.org";
    let (node, scrape) = watched(&[]);
    let panel = Panel::of(&node);
    let port = ports::free();
    let mut users = numbered(0..2, &["vless"]);
    users.push(user(EMAIL, &["vless"]));
    let page = scrape.page().await;
    assert_eq!(page.count("raynode_state{state=\"idle\"}"), 1);
    assert_eq!(page.count("raynode_users"), 0);
    panel.start(&vless_config(port), &users).await.unwrap();
    let origin = Origin::start().await;
    let client = XrayClient::start(&vless_outbound(port, users::id(EMAIL)));
    let mut stream = client.connect(origin.address).await.unwrap();
    origin::exchange(&mut stream, UP.unsigned_abs(), DOWN.unsigned_abs())
        .await
        .unwrap();
    drop(stream);
    let mut held = client.connect(origin.address).await.unwrap();
    held.write_all(&[0; 15]).await.unwrap();

    // The bytes, to the last one; those of the header above are no more than that.
    for (kind, direction, bytes) in [
        ("user", "uplink", UP),
        ("user", "downlink", DOWN),
        ("outbound", "uplink", UP),
        ("outbound", "downlink", DOWN),
    ] {
        let name =
            format!("raynode_traffic_bytes_total{{kind=\"{kind}\",direction=\"{direction}\"}}");
        let about = |count: i64| (bytes..bytes + 16).contains(&count);
        scrape.until_it(&name, about).await;
    }
    let pending = "raynode_usage_pending_bytes{kind=\"user\"}";
    let about_all = |count: i64| (UP + DOWN..UP + DOWN + 16).contains(&count);
    scrape.until_it(pending, about_all).await;
    if xray_version() >= (26, 1, 13) {
        scrape.until("raynode_users_online", 1).await;
    } else {
        assert_eq!(scrape.page().await.get("raynode_users_online"), None);
    }

    // What a panel collects is not pending any more, and is counted all the same.
    let before = scrape.page().await;
    assert!(before.value("raynode_usage_pending_age_seconds{kind=\"user\"}") < 60.0);
    assert!(
        !panel
            .stats(StatType::UsersStat, "", true)
            .await
            .unwrap()
            .is_empty()
    );
    scrape.until(pending, 0).await;
    scrape
        .until("raynode_usage_deliveries_total{verdict=\"arrived\"}", 1)
        .await;
    scrape.until("raynode_usage_deliveries_open", 0).await;

    // Calls by name and code, over both transports; a log that is open has no duration.
    let _log = panel.client.clone().get_logs(Empty {}).await.unwrap();
    assert!(panel.start(&serde_json::json!(7), &[]).await.is_err());
    let rest = Rest::of(&node, Http::One);
    rest.call(http::Method::GET, "/stats/system", Vec::new())
        .await;
    rest.call(http::Method::GET, "/etc/passwd", Vec::new())
        .await;
    let guesser = Panel::with(&node, &[("x-api-key", Uuid::new_v4().to_string())]);
    guesser.stop().await.unwrap_err();
    scrape
        .until("raynode_authentication_failures_total", 1)
        .await;
    scrape.until(&streams("GetLogs"), 1).await;
    let page = scrape.page().await;
    assert_eq!(page.count(&calls("grpc", "Start", "OK")), 1);
    assert_eq!(page.count(&calls("grpc", "Start", "UNKNOWN")), 1);
    assert_eq!(page.count(&calls("grpc", "GetStats", "OK")), 1);
    assert_eq!(page.count(&calls("rest", "GetSystemStats", "200")), 1);
    assert_eq!(page.count(&calls("rest", "unknown", "404")), 1);
    assert!(
        !page
            .0
            .contains("duration_seconds_count{transport=\"grpc\",method=\"GetLogs\"")
    );
    assert!(!page.0.contains("method=\"Stop\""), "he was turned away");

    for (name, value) in [
        ("raynode_state{state=\"serving\"}", 1),
        ("raynode_state{state=\"idle\"}", 0),
        ("raynode_session", 1),
        ("raynode_users", 3),
        ("raynode_cores{role=\"serving\"}", 1),
        ("raynode_cores{role=\"draining\"}", 0),
        (
            "raynode_core_starts_total{reason=\"start\",result=\"ready\"}",
            1,
        ),
        ("raynode_changes_total{rung=\"start\"}", 1),
        ("raynode_core_connections{role=\"serving\"}", 1),
        ("raynode_ledger_writable", 1),
        ("raynode_ledger_errors_total", 0),
        ("raynode_authentication_delayed_total", 0),
    ] {
        assert_eq!(page.count(name), value, "{name}");
    }
    for (name, least) in [
        ("raynode_core_memory_bytes{role=\"serving\"}", 10_000_000),
        ("raynode_core_open_files{role=\"serving\"}", 5),
        ("raynode_connections{port=\"panel\"}", 1),
        ("raynode_core_log_lines_total", 1),
        ("process_resident_memory_bytes", 1_000_000),
        ("process_open_fds", 5),
    ] {
        assert!(page.count(name) >= least, "{name}: {}", page.count(name));
    }
    assert!(page.sum("raynode_harvest_duration_seconds_count") >= 1);
    let (major, minor, patch) = xray_version();
    let info = page.count(&format!(
        "raynode_core_info{{role=\"serving\",version=\"{major}.{minor}.{patch}\"}}"
    ));
    assert_eq!(info, 1);
    let version = env!("CARGO_PKG_VERSION");
    let build = page.count(&format!("raynode_build_info{{version=\"{version}\"}}"));
    assert_eq!(build, 1);
    let key = node.api_key.to_string();
    let id = users::id(EMAIL).to_string();
    for secret in [
        EMAIL,
        "example.org",
        "127.0",
        "vless",
        "\"direct\"",
        &key,
        &id,
    ] {
        assert!(!page.0.contains(secret), "{secret} is in\n{}", page.0);
    }
    drop(held);
    names_are_documented(&page);
}

fn calls(transport: &str, method: &str, code: &str) -> String {
    format!(
        "raynode_rpc_duration_seconds_count{{transport=\"{transport}\",method=\"{method}\",code=\"{code}\"}}"
    )
}

fn streams(method: &str) -> String {
    format!("raynode_streams_total{{transport=\"grpc\",method=\"{method}\",code=\"OK\"}}")
}

/// What is told is in the table, and what is in the table is told.
fn names_are_documented(page: &Page) {
    let types = page
        .0
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let mut told: Vec<String> = types.map(str::to_owned).collect();
    let specs = names::ALL.iter();
    let mut known: Vec<String> = specs
        .map(|spec| format!("{} {}", spec.name, spec.kind.name()))
        .filter(|name| xray_version() >= (26, 1, 13) || !name.starts_with("raynode_users_online"))
        .collect();
    told.sort();
    known.sort();
    assert_eq!(told, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_of_the_core_and_a_hand_over_are_counted() {
    let (node, scrape) = watched(&[]);
    let panel = Panel::of(&node);
    let port = ports::free();
    let mut config = vless_config(port);
    let users = numbered(0..3, &["vless"]);
    panel.start(&config, &users).await.unwrap();
    let first = node.core();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    scrape
        .until("raynode_core_deaths_total{reason=\"signal\"}", 1)
        .await;
    scrape
        .until(
            "raynode_core_starts_total{reason=\"again\",result=\"ready\"}",
            1,
        )
        .await;
    scrape.until("raynode_state{state=\"serving\"}", 1).await;
    assert_eq!(scrape.page().await.count("raynode_core_failures"), 1);

    // The same again, other users, and then another configuration while somebody is connected.
    panel.start(&config, &users).await.unwrap();
    panel.sync_user(user("9", &["vless"])).await.unwrap();
    let echo = Echo::start().await;
    let client = XrayClient::start(&vless_outbound(port, users::id("0")));
    let held = Streams::hold(&client, &echo, 3).await;
    config["log"]["loglevel"] = "error".into();
    let mut users = users;
    users.push(user("9", &["vless"]));
    panel.start(&config, &users).await.unwrap();
    scrape.until("raynode_cores{role=\"draining\"}", 1).await;
    scrape
        .until("raynode_core_connections{role=\"draining\"}", 3)
        .await;
    let page = scrape.page().await;
    let forms = ["steered", "partly_steered", "plain"];
    let forms = forms.map(|form| page.count(&format!("raynode_changes_total{{rung=\"{form}\"}}")));
    assert_eq!(forms.iter().sum::<i64>(), 1, "{}", page.0);
    for (name, value) in [
        ("raynode_changes_total{rung=\"nothing\"}", 1),
        ("raynode_changes_total{rung=\"users\"}", 1),
        ("raynode_changes_total{rung=\"start\"}", 1),
        ("raynode_changes_total{rung=\"refused\"}", 0),
        ("raynode_changes_total{rung=\"restart\"}", 0),
        (
            "raynode_core_starts_total{reason=\"handover\",result=\"ready\"}",
            1,
        ),
        ("raynode_core_deaths_total{reason=\"signal\"}", 1),
        ("raynode_core_deaths_total{reason=\"exit\"}", 0),
        ("raynode_users", 4),
        ("raynode_core_connections{role=\"serving\"}", 0),
    ] {
        assert_eq!(page.count(name), value, "{name}");
    }
    assert!(page.value("raynode_core_uptime_seconds{role=\"draining\"}") < 60.0);
    assert_eq!(held.end().await.broken, 0);
    // What drained and ended was asked to.
    scrape.until("raynode_cores{role=\"draining\"}", 0).await;
    let page = scrape.page().await;
    assert_eq!(page.sum("raynode_core_deaths_total"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_that_new_connections_get_is_told_by_its_end() {
    const ENDS: &str = "raynode_certificate_expiry_timestamp_seconds";
    let (node, scrape) = watched(&[]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let in_ten_years = i64::try_from(now.unwrap().as_secs()).unwrap() + 3650 * 86_400;
    let ends = scrape.page().await.count(ENDS);
    assert!((ends - in_ten_years).abs() < 60, "{ends}");
    // Another one: until 2 February 2031, 03:04:05 UTC.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut other = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    other.not_after = time::OffsetDateTime::from_unix_timestamp(1_927_854_245).unwrap();
    let pem = other.self_signed(&key).unwrap().pem();
    let folder = node.folder().join("state/certs");
    std::fs::write(folder.join("ssl_cert.pem"), pem).unwrap();
    std::fs::write(folder.join("ssl_key.pem"), key.serialize_pem()).unwrap();
    node.signal(Signal::SIGHUP);
    scrape.until(ENDS, 1_927_854_245).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_accepts_the_page_and_the_rules() {
    let (node, scrape) = watched(&[]);
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel
        .start(&config, &numbered(0..3, &["vless"]))
        .await
        .unwrap();
    panel.sync_user(user("9", &["vless"])).await.unwrap();
    scrape.until(&streams("SyncUser"), 1).await;
    let page = scrape.page().await;
    let Some(said) = promtool(&["check", "metrics"], &page.0) else {
        return;
    };
    assert_eq!(said, "");
    let rules = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/deploy/prometheus/raynode.rules"
    );
    promtool(&["check", "rules", &format!("{rules}.yml")], "");
    promtool(&["test", "rules", &format!("{rules}.test.yml")], "");
    // What they ask for is there.
    let text = std::fs::read_to_string(format!("{rules}.yml")).unwrap();
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let names: Vec<&str> = words.filter(|word| word.starts_with("raynode_")).collect();
    assert!(!names.is_empty());
    for name in names {
        let known = names::ALL.iter().any(|spec| spec.name == name);
        assert!(known, "{name} is in a rule");
    }
}

/// A Prometheus, until this is dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_takes_it() {
    let (node, scrape) = watched(&[]);
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel
        .start(&config, &numbered(0..3, &["vless"]))
        .await
        .unwrap();
    let (prometheus, port) = Scrape::reserve();
    let settings = node.folder().join("prometheus.yml");
    let job = format!(
        "scrape_configs: [{{ job_name: raynode, scrape_interval: 200ms, scrape_timeout: 200ms, static_configs: [{{ targets: [\"127.0.0.1:{}\"] }}] }}]\n",
        scrape.0
    );
    std::fs::write(&settings, job).unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", settings.display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--storage.tsdb.path=tsdb")
        .current_dir(node.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        skipped("prometheus");
        return;
    };
    let _prometheus = Prometheus(child);
    let query = async |what: &str| {
        let path = format!("/api/v1/query?query={what}");
        let answer = prometheus.ask("GET", &path, "*/*").await.ok()?;
        let body = answer.body;
        let json = body.get(body.find('{')?..=body.rfind('}')?)?;
        let json: serde_json::Value = serde_json::from_str(json).ok()?;
        let first = json.pointer("/data/result/0")?.clone();
        Some(first)
    };
    let users = eventually("Prometheus has it", || query("raynode_users")).await;
    assert_eq!(users["value"][1], "3", "{users}");
    assert_eq!(users["metric"]["job"], "raynode", "{users}");
    // The whole page was taken, to its end.
    for (what, value) in [
        ("up", "1"),
        ("raynode_state{state=%22serving%22}", "1"),
        (
            "raynode_core_starts_total{reason=%22start%22,result=%22ready%22}",
            "1",
        ),
        (
            "raynode_rpc_duration_seconds_count{method=%22Start%22}",
            "1",
        ),
        ("process_start_time_seconds%20%3E%20bool%201", "1"),
    ] {
        let found = query(what).await.unwrap_or_default();
        assert_eq!(found["value"][1], value, "{what}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openmetrics_is_for_those_who_ask_and_nothing_else_is_served() {
    let (_node, scrape) = watched(&[]);
    let old = scrape.page().await;
    assert!(!old.0.contains("# EOF") && !old.0.contains("# UNIT"));
    assert!(
        old.0
            .contains("# TYPE raynode_traffic_bytes_total counter\n")
    );
    let ask = async |method, path, accept| scrape.ask(method, path, accept).await.unwrap();
    let new = ask("GET", "/metrics", OPENMETRICS).await;
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(new.head.contains(kind), "{}", new.head);
    assert!(new.body.ends_with("\n# EOF\n"));
    assert!(new.body.contains("# TYPE raynode_traffic_bytes counter\n"));
    assert!(new.body.contains("# UNIT raynode_traffic_bytes bytes\n"));
    let plain = ask("GET", "/metrics", "text/plain").await;
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(plain.head.contains(kind), "{}", plain.head);
    let head = ask("HEAD", "/metrics", "*/*").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(ask("GET", "/", "*/*").await.status, 404);
    assert_eq!(ask("GET", "/metrics/", "*/*").await.status, 404);
    let post = ask("POST", "/metrics", "*/*").await;
    assert_eq!(post.status, 405);
    assert!(post.head.contains("allow: get, head"), "{}", post.head);
    let long = format!("GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(20_000));
    if let Ok(answer) = scrape.say(&long).await {
        assert_eq!(answer.status, 431);
    }
    assert_eq!(scrape.say("nonsense\r\n\r\n").await.unwrap().status, 400);

    // Who says nothing keeps others out for some seconds at most.
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(("127.0.0.1", scrape.0)).await.unwrap();
        stream.write_all(b"GET /metrics").await.unwrap();
        silent.push(stream);
    }
    let patience = Duration::from_secs(18);
    let answer = tokio::time::timeout(patience, ask("GET", "/metrics", "*/*")).await;
    assert_eq!(answer.expect("it is its turn").status, 200);
    for mut stream in silent {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(patience, stream.read_to_end(&mut rest));
        closed.await.expect("the node closes it").ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_port_the_node_runs_and_a_new_daemon_has_it_again() {
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap();
    let node = NodeProcess::start_with(NODE, &[("METRICS_LISTEN", &taken.to_string())]);
    assert!(!Panel::of(&node).info().await.started);
    eventually("it says so", || async {
        let log = node.log();
        let mut lines = log.lines();
        lines
            .find(|line| line.contains("WARN metrics are not served"))
            .map(drop)
    })
    .await;
    drop(node);

    let (mut node, scrape) = watched(&[]);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    let core = node.core();
    let start_time = async || {
        let page = scrape.page().await;
        page.value("raynode_start_time_seconds")
    };
    let began = start_time().await;
    node.signal(Signal::SIGUSR2);
    eventually("another daemon", || async {
        (start_time().await > began).then_some(())
    })
    .await;
    scrape.until("raynode_state{state=\"serving\"}", 1).await;
    assert_eq!(node.core(), core);
    let page = scrape.page().await;
    assert_eq!(
        page.sum("raynode_core_starts_total"),
        0,
        "this one started none"
    );
    assert!(
        !node.log().contains("metrics are not served"),
        "{}",
        node.log()
    );
    assert!(node.stop().success());
    assert!(scrape.ask("GET", "/metrics", "*/*").await.is_err());
}
