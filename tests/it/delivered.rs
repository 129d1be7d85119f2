//! Reports of usage are cut off in every way that there is, and what comes of each is compared with what its
//! client had: what it had never comes again, what it had not always does.

#![allow(clippy::print_stdout, reason = "the table")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use prost::Message;
use raynode::proto::service::{StatRequest, StatResponse, StatType};
use serde_json::{Value, json};

use crate::NODE;
use crate::support::netns::Netns;
use crate::support::node::bytes_of;
use crate::support::script::{self, Conversation};
use crate::support::users::{id, numbered};
use crate::support::xray::vless_config;
use crate::support::{Echo, NodeProcess, Panel, eventually, ports, times, vless};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/cut.py");
/// For a client that is waited for, and for the verdict on its report.
const PATIENCE: Duration = Duration::from_secs(20);
/// The verdict on a connection that went silent: it is pinged after 30 s and given up 20 s later.
const SILENCE: Duration = Duration::from_secs(80);

/// What of a reply comes in one TLS record, and about what of that is its head.
const RECORD: u64 = 16_367;
const HEAD: u64 = 400;
/// Over HTTP/1.1 nobody but the client itself knows whether it used what it has read.
const IN_ITS_HANDS: &str = "end in its hands";

/// What the node made of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Arrived,
    Lost,
    Unsure,
}

/// How often each verdict was given on reports that the client had, and that it had not.
#[derive(Debug, Default)]
struct Row {
    has: BTreeMap<Verdict, u32>,
    lacks: BTreeMap<Verdict, u32>,
}

/// A node, users who use something, and clients that read how much.
struct Reports {
    node: NodeProcess,
    panel: Panel,
    clients: Conversation,
    echo: Echo,
    inbound: u16,
    users: usize,
    /// What clients have, and what they have not and the node takes for delivered.
    had: u64,
    gone: u64,
    length: u64,
    table: BTreeMap<String, Row>,
    stale: bool,
}

impl Reports {
    async fn new(users: usize, netns: Option<&Netns>) -> Option<Self> {
        let interpreter = script::python()?;
        let node = NodeProcess::start_with(
            NODE,
            &[
                ("NODE_HOST", "0.0.0.0"),
                ("MAX_CONNECTIONS_PER_ADDRESS", "1024"),
            ],
        );
        let panel = Panel::of(&node);
        let inbound = ports::free();
        panel
            .start(&vless_config(inbound), &numbered(0..users, &["vless"]))
            .await
            .unwrap();
        let mut setup = json!({
            "host": netns.map_or("127.0.0.1", |netns| &netns.host),
            "port": node.port,
            "api_key": node.api_key,
            "certificate": std::fs::read_to_string(node.certificate()).unwrap(),
        });
        if let Some(netns) = netns {
            setup["netns"] = json!(netns.path());
        }
        let clients = Conversation::start(&interpreter, &["-u", SCRIPT], &setup).await;
        let mut reports = Self {
            node,
            panel,
            clients,
            echo: Echo::start().await,
            inbound,
            users,
            had: 0,
            gone: 0,
            length: 0,
            table: BTreeMap::new(),
            stale: true,
        };
        // The first one shows how long a report is.
        reports
            .case(
                "complete",
                json!({ "http2": true, "first": true, "read": "all", "then": "close" }),
            )
            .await;
        assert!(reports.length > 0);
        Some(reports)
    }

    /// Whether a client that has read so much has the end of it in its own memory, too.
    fn has_the_last_record(&self, percent: u64, then: &str) -> bool {
        let before = self.length / RECORD * RECORD;
        // Python reads on for a moment when it ends TLS.
        let more = if then == "goodbye" { RECORD / 4 } else { 0 };
        self.length * percent / 100 + HEAD + more >= before
    }

    /// Every user uses something.
    async fn use_something(&self) {
        let (inbound, echo) = (self.inbound, self.echo.address);
        futures_util::stream::iter(0..self.users)
            .map(|user| {
                let (from, id) = (vless::address(user), id(&user.to_string()));
                vless::echo_from(from, inbound, id, echo, 100)
            })
            .buffer_unordered(50)
            .for_each(async |used| used.unwrap())
            .await;
    }

    fn verdicts(&self) -> Vec<(Verdict, u64)> {
        let log = self.node.log();
        log.lines()
            .filter_map(|line| {
                let verdict = match line {
                    _ if line.contains("nobody can know whether") => Verdict::Unsure,
                    _ if line.contains("usage arrived") => Verdict::Arrived,
                    _ if line.contains("did not arrive, it comes again") => Verdict::Lost,
                    _ => return None,
                };
                Some((verdict, bytes_of(line)))
            })
            .collect()
    }

    /// One client reads one report, to whatever end.
    async fn case(&mut self, name: &str, case: Value) {
        if self.stale {
            self.use_something().await;
        }
        let before = self.verdicts().len();
        self.clients.tell(&case).await;
        let said = self.clients.hear(SILENCE).await;
        assert_eq!(said["error"], Value::Null, "{case}: {said}");
        let sum = said["sum"].as_u64();
        let patience = if name.contains("silence") {
            SILENCE
        } else {
            PATIENCE
        };
        let began = std::time::Instant::now();
        let (verdict, bytes) = loop {
            if let Some(verdict) = self.verdicts().get(before) {
                break *verdict;
            }
            assert!(
                began.elapsed() < patience,
                "no verdict on {case}: {}",
                self.node.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let row = self.table.entry(name.to_owned()).or_default();
        let counts = if sum.is_some() {
            &mut row.has
        } else {
            &mut row.lacks
        };
        *counts.entry(verdict).or_default() += 1;
        if let Some(sum) = sum {
            self.had += sum;
            self.length = self.length.max(said["length"].as_u64().unwrap());
        }
        if sum.is_none() && verdict != Verdict::Lost {
            self.gone += bytes;
        }
        self.stale = verdict != Verdict::Lost;
    }

    /// Everything that the core has counted is with somebody, once; except what the table says.
    async fn end(self) -> BTreeMap<String, Row> {
        for (name, row) in &self.table {
            println!(
                "{name:<40} has it: {:?}, lacks it: {:?}",
                row.has, row.lacks
            );
        }
        let counters = self.node.core_api().counters("user>>>").await.unwrap();
        let counted: i64 = counters.iter().map(|counter| counter.value).sum();
        let rest = eventually("everything is read", || async {
            let rest = self.panel.stats(StatType::UsersStat, "", true).await;
            let rest = rest.unwrap().iter().map(|stat| stat.value).sum::<i64>();
            (rest > 0 || self.stale).then_some(rest)
        })
        .await;
        let delivered = i64::try_from(self.had + self.gone).unwrap() + rest;
        assert_eq!(delivered, counted);
        self.table
    }
}

fn doubled(table: &BTreeMap<String, Row>) -> bool {
    table
        .values()
        .any(|row| row.has.contains_key(&Verdict::Lost))
}

fn lost(table: &BTreeMap<String, Row>) -> Vec<&String> {
    let lost = table.iter().filter(|(_, row)| {
        row.lacks.contains_key(&Verdict::Arrived) || row.lacks.contains_key(&Verdict::Unsure)
    });
    lost.map(|(name, _)| name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_to_an_end_at_every_point_lose_nothing_and_get_nothing_twice() {
    let Some(mut reports) = Reports::new(times(340, 5000), None).await else {
        return;
    };
    let step = times(10, 1);
    for percent in (0..=100_u64).step_by(step) {
        let read = match percent {
            0 => json!("nothing"),
            100 => json!("all"),
            _ => json!(reports.length * percent / 100),
        };
        for (http2, then) in [
            (true, "kill"),
            (true, "close"),
            (true, "cancel"),
            (true, "goodbye"),
            (false, "kill"),
            (false, "close"),
            (false, "goodbye"),
        ] {
            // A client that has a reply does not cancel its call.
            if percent == 100 && then == "cancel" {
                continue;
            }
            let first = (percent / step as u64).is_multiple_of(2);
            let transport = if http2 { "HTTP/2" } else { "HTTP/1.1" };
            let when = match percent {
                0 => "unread",
                100 => "complete",
                _ if !http2 && reports.has_the_last_record(percent, then) => IN_ITS_HANDS,
                _ => "in between",
            };
            let case = json!({ "http2": http2, "first": first, "read": read, "then": then });
            reports
                .case(&format!("{transport}, {then}, {when}"), case)
                .await;
        }
    }
    for _ in 0..times(2, 20) {
        let case = json!({ "http2": false, "first": true, "read": "all", "then": "again" });
        let name = "HTTP/1.1, complete, kill in the next call";
        reports.case(name, case).await;
    }
    let table = reports.end().await;
    assert!(!doubled(&table));
    let lost = lost(&table);
    assert!(
        lost.iter().all(|name| name.contains(IN_ITS_HANDS)),
        "{lost:?}"
    );
}

/// Each of them reads in its own way to the end, and leaves in its own way.
#[tokio::test(flavor = "multi_thread")]
async fn ordinary_clients_that_have_a_report_do_not_get_it_again() {
    let Some(mut reports) = Reports::new(3000, None).await else {
        return;
    };
    let folder = reports.node.folder().to_owned();
    let request = StatRequest {
        r#type: StatType::UsersStat.into(),
        reset: true,
        ..StatRequest::default()
    };
    std::fs::write(folder.join("request"), request.encode_to_vec()).unwrap();
    let url = format!("https://127.0.0.1:{}/stats", reports.node.port);
    let key = format!("x-api-key: {}", reports.node.api_key);
    for ways in [
        &["--http2"][..],
        &["--http2", "--limit-rate", "300K"],
        &["--http1.1"],
        &["--http1.1", "-H", "Connection: close"],
        &[
            "--http1.1",
            "-H",
            "Connection: close",
            "--limit-rate",
            "100K",
        ],
        &["--http1.0"],
    ] {
        reports.use_something().await;
        let before = reports.verdicts().len();
        let curl = tokio::process::Command::new("curl")
            .args(["-sSk", "-X", "GET", "--data-binary", "@request", "-H", &key])
            .args(["-H", "Content-Type: application/x-protobuf"])
            .args(ways)
            .arg(&url)
            .current_dir(&folder)
            .output();
        let output = curl.await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{ways:?}: {error}");
        let stats = StatResponse::decode(&*output.stdout).unwrap().stats;
        assert_eq!(stats.len(), 6000, "{ways:?}");
        reports.had += stats
            .iter()
            .map(|stat| stat.value.unsigned_abs())
            .sum::<u64>();
        let verdict = eventually("the verdict", || async {
            reports.verdicts().get(before).copied()
        })
        .await;
        assert_eq!(
            verdict.0,
            Verdict::Arrived,
            "{ways:?}: {}",
            reports.node.log()
        );
    }
    reports.stale = true;
    reports.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_get_lost_lose_nothing_and_bring_nothing_twice() {
    let Some(netns) = Netns::new() else { return };
    let Some(mut reports) = Reports::new(times(340, 5000), Some(&netns)).await else {
        return;
    };
    let step = times(20, 2);
    for percent in (0..=100_u64).step_by(step) {
        let limit = reports.length * percent / 100;
        for http2 in [true, false] {
            let transport = if http2 { "HTTP/2" } else { "HTTP/1.1" };
            let first = (percent / step as u64).is_multiple_of(2);
            let case = json!({
                "http2": http2, "first": first, "read": "all", "then": "kill",
                "drop": { "input": limit },
            });
            reports
                .case(
                    &format!("{transport}, nothing comes to it any more, kill"),
                    case,
                )
                .await;
        }
    }
    let table = reports.end().await;
    assert!(!doubled(&table));
    assert_eq!(lost(&table), Vec::<&String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes four minutes; make soak runs it"]
async fn what_nobody_can_know_is_taken_for_delivered() {
    let Some(netns) = Netns::new() else { return };
    // A report of less than what a connection sends before it hears something.
    let Some(mut reports) = Reports::new(150, Some(&netns)).await else {
        return;
    };
    for http2 in [true, false] {
        let transport = if http2 { "HTTP/2" } else { "HTTP/1.1" };
        let half = json!(reports.length / 2);
        for (what, read, how) in [
            ("silence both ways from the middle on", half, "vanishes"),
            (
                "silence from its side, it has read all",
                json!("all"),
                "mute",
            ),
        ] {
            let mut case = json!({ "http2": http2, "first": false, "read": read, "then": "kill" });
            case[how] = json!(true);
            reports.case(&format!("{transport}, {what}"), case).await;
        }
        // It reads on when nobody waits for it any more.
        let half = reports.length / 2;
        let case = json!({ "http2": http2, "first": false, "read": "all", "then": "close", "pauses": half });
        reports
            .case(&format!("{transport}, silence, it pauses"), case)
            .await;
    }
    let table = reports.end().await;
    assert!(!doubled(&table));
    let lost = lost(&table);
    assert!(lost.iter().all(|name| name.contains("silence")), "{lost:?}");
}
