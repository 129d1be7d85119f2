//! Versions of Xray and geo files come from a server of releases, and nobody is cut by it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::NODE;
use crate::support::node::{xray_binary, xray_version};
use crate::support::release::{self, ARCHIVE, Releases};
use crate::support::rest::{Http, Rest};
use crate::support::users::{id, user};
use crate::support::xray::vless_config;
use crate::support::{Echo, NodeProcess, Panel, eventually, ports, tricky, vless};

fn version() -> String {
    let (year, month, day) = xray_version();
    format!("{year}.{month}.{day}")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A node that chooses its core itself, and a server that has the one under test.
async fn place(settings: &[(&str, &str)]) -> (NodeProcess, Releases) {
    let releases = Releases::start().await;
    let mut node = NodeProcess::prepare(NODE, settings);
    node.unset("XRAY_EXECUTABLE_PATH");
    node.set("XRAY_RELEASE_URL", &releases.url());
    node.launch();
    releases.put_release(&version(), &release::archive(&xray_binary(), b""));
    (node, releases)
}

/// A stream through the core that serves now.
struct Stream(TcpStream);

impl Stream {
    async fn open(inbound: u16, echo: &Echo) -> Self {
        let stream = vless::connect(inbound, id("anna"), echo.address).await;
        let mut stream = Self(stream.unwrap());
        stream.0.write_all(b"word").await.unwrap();
        stream.0.read_exact(&mut [0; 6]).await.unwrap();
        stream
    }

    async fn is_there(&mut self) {
        self.0.write_all(b"word").await.unwrap();
        self.0.read_exact(&mut [0; 4]).await.unwrap();
    }
}

/// The binary that a core runs.
fn binary(core: i32) -> PathBuf {
    std::fs::read_link(format!("/proc/{core}/exe")).unwrap()
}

fn installed(node: &NodeProcess) -> Value {
    serde_json::from_str(&said(&node.command(&["core", "list", "--json"]))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_is_installed_used_and_gone_back_from() {
    let (node, _releases) = place(&[]).await;
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let config = vless_config(inbound);
    let users = [user("anna", &["vless"])];
    let text = said(&node.command(&["core", "install", &version()]));
    assert!(
        text.contains(&format!("{} is used now", version())),
        "{text}"
    );
    panel.start(&config, &users).await.unwrap();
    let first = node.core();
    let cores = node.folder().join("state/cores");
    assert_eq!(binary(first), cores.join(version()).join("xray"));
    let mut stream = Stream::open(inbound, &echo).await;

    // The very same is there already, and nothing changes.
    let again: Value =
        serde_json::from_str(&said(&node.command(&["core", "install", "--json"]))).unwrap();
    assert_eq!((&again["reused"], node.core()), (&json!(true), first));

    // Another one, from a file.
    let other = release::archive(&xray_binary(), b"other");
    let file = node.folder().join("other.zip");
    std::fs::write(&file, &other).unwrap();
    let from = |more: &[&str]| {
        let arguments = ["core", "install", &version(), "--from", "other.zip"];
        node.command(&[&arguments, more].concat())
    };
    assert!(refused(&from(&[])).contains("other.zip.dgst"));
    let wrong = release::sha256(b"something else");
    let text = refused(&from(&["--sha256", &wrong]));
    assert!(
        text.contains(&wrong) && text.contains(&release::sha256(&other)),
        "{text}"
    );
    assert!(
        text.contains("other.zip") && !text.contains("upload.zip"),
        "{text}"
    );
    let command = ["core", "install", "--trust", "--from", "state"];
    let text = refused(&node.command(&command));
    assert!(text.contains("state: Is a directory"), "{text}");
    assert_eq!(node.core(), first);
    std::fs::write(
        node.folder().join("other.zip.dgst"),
        format!("SHA2-256= {}\n", release::sha256(&other)),
    )
    .unwrap();
    let text = said(&from(&[]));
    assert!(text.contains(&format!("before {}", version())), "{text}");
    let second = binary(node.core());
    assert_eq!(second, cores.join(format!("{}-2", version())).join("xray"));
    stream.is_there().await;

    let text = said(&node.command(&["core", "rollback"]));
    assert!(text.contains("serves"), "{text}");
    assert_eq!(binary(node.core()), cores.join(version()).join("xray"));
    stream.is_there().await;
    said(&node.command(&["core", "use", &format!("{}-2", version())]));
    assert_eq!(binary(node.core()), second);
    let list = installed(&node);
    assert_eq!(list["cores"].as_array().unwrap().len(), 2);
    let sources = list["cores"].as_array().unwrap().iter();
    assert!(
        sources
            .map(|core| &core["source"])
            .any(|source| source == "other.zip")
    );
    assert_eq!(list["managed"], true);
    assert!(refused(&node.command(&["core", "use", "1.2.3"])).contains("1.2.3"));
    stream.is_there().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_should_be_changes_nothing() {
    let (node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let users = [user("anna", &["vless"])];
    panel.start(&vless_config(inbound), &users).await.unwrap();
    let (core, before) = (node.core(), installed(&node));
    let mut stream = Stream::open(inbound, &echo).await;
    let archive = format!("/latest/download/{ARCHIVE}");
    let digests = format!("{archive}.dgst");
    let fine = release::archive(&xray_binary(), b"new");

    let mut fails = Vec::new();
    let mut expect = |case: &'static str, text: &str| {
        let said = refused(&node.command(&["core", "install"]));
        if !said.contains(text) {
            fails.push(format!("{case}: {said}"));
        }
        assert_eq!(
            (node.core(), installed(&node)),
            (core, before.clone()),
            "{case}"
        );
    };
    releases.put(&archive, fine.clone());
    expect("a wrong digest", "nothing was changed");
    releases.put(&archive, fine[..fine.len() / 2].to_vec());
    expect("half of it", "nothing was changed");
    releases.put(&digests, "nothing of use");
    expect("no digest", "dgst");
    let put = |content: &[u8]| {
        releases.put(
            &digests,
            format!("SHA2-256= {}\n", release::sha256(content)),
        );
        releases.put(&archive, content.to_vec());
    };
    put(b"this is no archive");
    expect("no archive", "archive");
    put(&release::archive_of("something", b"else"));
    expect("no core in it", "xray");
    // The same program, for a machine that this one is not (e_machine of ELF: 0x1234).
    let mut foreign = std::fs::read(xray_binary()).unwrap();
    foreign[18..20].copy_from_slice(&[0x34, 0x12]);
    put(&release::archive_of("xray", &foreign));
    expect("another architecture", "machine");
    // A program for this machine that is no Xray.
    put(&release::archive(Path::new("/bin/true"), b""));
    expect("no Xray", "does not work");
    let said = refused(&node.command(&["core", "install", "1.2.3"]));
    assert!(said.contains("404"), "{said}");
    let newest = node.command(&["core", "install", "newest"]);
    assert_eq!(newest.status.code(), Some(2), "{newest:?}");
    assert_eq!(fails, Vec::<String>::new());
    stream.is_there().await;
}

/// The daemon dies at some moment of an installation, and the next one has a core that runs, and the
/// stream goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_while_it_installs_leaves_a_core_that_runs() {
    let (mut node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let users = [user("anna", &["vless"])];
    panel.start(&vless_config(inbound), &users).await.unwrap();
    let mut stream = Stream::open(inbound, &echo).await;
    let path = format!("/latest/download/{ARCHIVE}");
    // The first dies in the middle of the download, the others wherever it is by then.
    for (round, delay) in [400, 20, 60, 110, 170, 250, 350].into_iter().enumerate() {
        let archive = release::archive(&xray_binary(), format!("{round}").as_bytes());
        releases.put_release(&version(), &archive);
        if round == 0 {
            releases.stall(&path, archive.len() / 2);
        }
        let mut installing = node
            .prepared(&["core", "install"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        node.kill();
        installing.wait().unwrap();
        let current = node.folder().join("state/cores/current/xray");
        let runs = std::process::Command::new(&current).arg("version").output();
        assert!(runs.unwrap().status.success(), "round {round}");
        node.launch();
        eventually("it serves", || async {
            (panel.info().await.started).then_some(())
        })
        .await;
        stream.is_there().await;
        let left = std::fs::read_dir(node.folder().join("state/cores")).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name());
        let staged = left.filter(|name| name.to_string_lossy().starts_with(".staging"));
        assert_eq!(staged.count(), 0, "round {round}: nothing half is left");
    }
    let archive = release::archive(&xray_binary(), b"at last");
    releases.put_release(&version(), &archive);
    said(&node.command(&["core", "install"]));
    stream.is_there().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_panels_buttons_install_cores_and_geo_files() {
    let releases = Releases::start().await;
    let api_port = ports::free();
    let mut node = NodeProcess::prepare(NODE, &[("API_PORT", &api_port.to_string())]);
    node.unset("XRAY_EXECUTABLE_PATH");
    node.set("XRAY_RELEASE_URL", &releases.url());
    node.set("GEO_FILES_URL", &format!("{}/{{region}}", releases.url()));
    node.launch();
    releases.put_release(&version(), &release::archive(&xray_binary(), b""));
    let buttons = Rest::of(&node, Http::One).on(api_port);
    let post = async |path: &str, body: Value| {
        let answer = buttons.post(path, body.to_string()).await;
        (answer.status.as_u16(), answer.text().to_owned())
    };

    let (status, text) = post("/node/core_update", json!({ "core_version": "v1.2.3" })).await;
    assert_eq!(status, 404, "{text}");
    let wanted = json!({ "core_version": format!("v{}", version()) });
    let (status, text) = post("/node/core_update", wanted).await;
    assert_eq!(
        (status, text.contains("core updated")),
        (200, true),
        "{text}"
    );

    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let mut config = vless_config(inbound);
    let users = [user("anna", &["vless"])];
    panel.start(&config, &users).await.unwrap();
    let mut stream = Stream::open(inbound, &echo).await;
    let rule = json!({ "type": "field", "ip": ["geoip:ir"], "outboundTag": "block" });
    config["routing"] = json!({ "rules": [rule] });
    panel.start(&config, &users).await.unwrap_err();

    for region in ["iran", "russia"] {
        for (name, content) in [
            ("geoip.dat", geo("IR", &[2, 192])),
            ("geosite.dat", geo("IR", b"\x12\x02ir")),
        ] {
            let path = format!("/{region}/{name}");
            releases.put(
                &format!("{path}.sha256sum"),
                format!("{}  {name}\n", release::sha256(&content)),
            );
            releases.put(&path, content);
        }
    }
    let (status, text) = post("/node/geofiles", json!({ "region": "iran" })).await;
    assert_eq!(status, 200, "{text}");
    panel.start(&config, &users).await.unwrap();
    stream.is_there().await;
    // What the rules of now could not be read with is not used.
    let without = geo("US", &[2, 192]);
    releases.put(
        "/russia/geoip.dat.sha256sum",
        format!("{}  geoip.dat\n", release::sha256(&without)),
    );
    releases.put("/russia/geoip.dat", without);
    let (status, text) = post("/node/geofiles", json!({ "region": "russia" })).await;
    assert_eq!(status, 500, "{text}");
    assert!(text.contains("configuration of now"), "{text}");
    panel.start(&config, &users).await.unwrap();
    stream.is_there().await;
}

/// A list of geo entries with one of them: a code, and one thing that belongs to it.
fn geo(code: &str, of: &[u8]) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap();
        [&[number << 3 | 2, length], content].concat()
    };
    // Of an IP list: a CIDR with the address 192.0.2.0 and the length 24.
    let thing = if of.starts_with(&[2, 192]) {
        [field(1, &[192, 0, 2, 0]), vec![0x10, 24]].concat()
    } else {
        of.to_vec()
    };
    field(1, &[field(1, code.as_bytes()), field(2, &thing)].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_operator_has_chosen_is_not_exchanged() {
    let releases = Releases::start().await;
    let node = NodeProcess::start_with(NODE, &[("XRAY_RELEASE_URL", &releases.url())]);
    let began = Instant::now();
    let text = refused(&node.command(&["core", "install"]));
    assert!(
        text.contains("XRAY_EXECUTABLE_PATH names what is used"),
        "{text}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(installed(&node)["managed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_daemon_down_the_next_one_uses_what_is_installed() {
    let (mut node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let users = [user("anna", &["vless"])];
    panel.start(&vless_config(inbound), &users).await.unwrap();
    assert!(node.stop().success());
    releases.put_release(&version(), &release::archive(&xray_binary(), b"other"));
    let text = said(&node.command(&["core", "install"]));
    assert!(text.contains("the next one is made of it"), "{text}");
    said(&node.command(&["core", "rollback"]));
    said(&node.command(&["core", "use", &format!("{}-2", version())]));
    assert!(said(&node.command(&["core", "list"])).contains("in use"));
    node.launch();
    eventually("it serves again", || async {
        TcpStream::connect(("127.0.0.1", inbound)).await.ok()
    })
    .await;
    let current = node
        .folder()
        .join("state/cores")
        .join(format!("{}-2", version()));
    assert_eq!(binary(node.core()), current.join("xray"));
    Stream::open(inbound, &echo).await.is_there().await;
}

/// Whoever has asked may go: what is used in the end is what serves, and the next one has its turn.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_begun_goes_on_when_its_caller_has_gone() {
    let (node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let users = [user("anna", &["vless"])];
    panel.start(&vless_config(inbound), &users).await.unwrap();
    let mut stream = Stream::open(inbound, &echo).await;
    let cores = node.folder().join("state/cores");
    for (round, delay) in [100, 200, 400, 700, 1000].into_iter().enumerate() {
        let archive = release::archive(&xray_binary(), format!("{round}").as_bytes());
        releases.put_release(&version(), &archive);
        let mut installing = node
            .prepared(&["core", "install"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        installing.kill().unwrap();
        installing.wait().unwrap();
        eventually("whoever comes then has a turn", || async {
            let output = node.command(&["core", "use", &version()]);
            let is_done = output.status.success();
            assert!(
                is_done || refused(&output).contains("another installation"),
                "round {round}: {output:?}"
            );
            is_done.then_some(())
        })
        .await;
        assert_eq!(binary(node.core()), cores.join(version()).join("xray"));
        stream.is_there().await;
    }

    // And it does go on: this one had half of the archive when its caller went.
    releases.put_release(&version(), &release::archive(&xray_binary(), b"last"));
    releases.stall(&format!("/latest/download/{ARCHIVE}"), 1000);
    let mut installing = node
        .prepared(&["core", "install"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("it has begun", || async {
        is_under_way(&node).then_some(())
    })
    .await;
    installing.kill().unwrap();
    installing.wait().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    releases.go_on();
    eventually("what nobody waits for is used", || async {
        let status = said(&node.command(&["status", "--json"]));
        let status: Value = serde_json::from_str(&status).unwrap();
        let first = cores.join(version()).join("xray");
        (status["binary"].as_str()? != first.to_str()?).then_some(())
    })
    .await;
    stream.is_there().await;
}

fn is_under_way(node: &NodeProcess) -> bool {
    let entries = std::fs::read_dir(node.folder().join("state/cores")).unwrap();
    let mut names = entries.map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_string_lossy().starts_with(".staging"))
}

/// The new one serves for a moment and dies, and the one of before serves again, also after the next Start.
#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_dies_at_once_is_left_and_named() {
    let (node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let mut config = vless_config(inbound);
    let users = [user("anna", &["vless"])];
    panel.start(&config, &users).await.unwrap();
    let first = binary(node.core());
    let mut stream = Stream::open(inbound, &echo).await;
    // For a few seconds only it counts as one that died at once; a busy machine may miss them.
    let mut tries = 0;
    while !said(&node.command(&["status"])).contains("the new core died at once") {
        tries += 1;
        assert!(tries < 6, "{}", node.log());
        let archive = release::archive(&xray_binary(), format!("{tries}").as_bytes());
        releases.put_release(&version(), &archive);
        said(&node.command(&["core", "install"]));
        let second = node.core();
        assert_ne!(binary(second), first);
        kill(Pid::from_raw(second), Signal::SIGKILL).unwrap();
        eventually("a core serves again", || async {
            let status = said(&node.command(&["status", "--json"]));
            let status: Value = serde_json::from_str(&status).unwrap();
            let pid = status["cores"][0]["pid"].as_i64()?;
            (pid != i64::from(second) && status["phase"] == "PHASE_SERVING").then_some(())
        })
        .await;
    }
    let doctor = node.command(&["doctor", "--quiet", "--json"]).stdout;
    let doctor = String::from_utf8(doctor).unwrap();
    assert!(
        doctor.contains(&format!("{} serves, and ", first.display())),
        "{doctor}"
    );
    config["log"]["loglevel"] = "error".into();
    panel.start(&config, &users).await.unwrap();
    assert_eq!(binary(node.core()), first);
    stream.is_there().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_installs_others_are_told_so() {
    let (node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    releases.stall(&format!("/latest/download/{ARCHIVE}"), 1000);
    let mut installing = node
        .prepared(&["core", "install"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("it has begun", || async {
        is_under_way(&node).then_some(())
    })
    .await;
    for arguments in [
        &["core", "install"][..],
        &["core", "use", &version()],
        &["core", "rollback"],
    ] {
        let text = refused(&node.command(arguments));
        assert!(
            text.contains("another installation"),
            "{arguments:?}: {text}"
        );
    }
    installing.kill().unwrap();
    installing.wait().unwrap();
}

/// Where no second core may be started beside the first, one that would not run is found before.
#[tokio::test(flavor = "multi_thread")]
async fn without_hand_overs_too_what_would_not_run_is_not_used() {
    let releases = Releases::start().await;
    let url = format!("{}/{{region}}", releases.url());
    let settings = [("HANDOVER", "off"), ("GEO_FILES_URL", url.as_str())];
    let node = NodeProcess::start_with(NODE, &settings);
    for (region, code) in [("russia", "US"), ("iran", "IR")] {
        for (name, content) in [
            ("geoip.dat", geo(code, &[2, 192])),
            ("geosite.dat", geo(code, b"\x12\x02ir")),
        ] {
            let path = format!("/{region}/{name}");
            let digest = release::sha256(&content);
            releases.put(&format!("{path}.sha256sum"), format!("{digest}  {name}\n"));
            releases.put(&path, content);
        }
        said(&node.command(&["core", "geo", region]));
    }
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let mut config = vless_config(inbound);
    let rule = json!({ "type": "field", "ip": ["geoip:ir"], "outboundTag": "block" });
    config["routing"] = json!({ "rules": [rule] });
    let users = [user("anna", &["vless"])];
    panel.start(&config, &users).await.unwrap();
    let (core, mut stream) = (node.core(), Stream::open(inbound, &echo).await);
    let text = refused(&node.command(&["core", "rollback", "--geo"]));
    assert!(text.contains("configuration of now"), "{text}");
    let used = std::fs::read_link(node.folder().join("state/assets/current")).unwrap();
    assert!(used.to_string_lossy().starts_with("iran"), "{used:?}");
    assert_eq!(node.core(), core);
    stream.is_there().await;
}

/// The next try is some seconds away, and whoever goes back to what ran need not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn going_back_wakes_a_node_whose_core_is_down() {
    let (node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    releases.put_release(&version(), &release::archive(&xray_binary(), b"other"));
    said(&node.command(&["core", "install"]));
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let users = [user("anna", &["vless"])];
    panel.start(&vless_config(inbound), &users).await.unwrap();
    lose_the_binary(&node).await;
    eventually("it has failed often", || async {
        let text = said(&node.command(&["status", "--json"]));
        let status: Value = serde_json::from_str(&text).unwrap();
        let next = &status["next_seconds"];
        let next = next.as_u64().or_else(|| next.as_str()?.parse().ok());
        next.filter(|seconds| *seconds >= 4)
    })
    .await;
    said(&node.command(&["core", "rollback"]));
    let began = Instant::now();
    eventually("it serves again", || async {
        TcpStream::connect(("127.0.0.1", inbound)).await.ok()
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "it waited for its next try"
    );
    Stream::open(inbound, &echo).await.is_there().await;
}

/// One that works for a moment and then no more is left by itself, also when the one of before has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_works_no_more_makes_way_for_the_one_of_before() {
    let (node, releases) = place(&[]).await;
    said(&node.command(&["core", "install"]));
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let users = [user("anna", &["vless"])];
    panel.start(&vless_config(inbound), &users).await.unwrap();
    let first = binary(node.core());
    releases.put_release(&version(), &release::archive(&xray_binary(), b"other"));
    said(&node.command(&["core", "install"]));
    lose_the_binary(&node).await;
    eventually("it serves again", || async {
        TcpStream::connect(("127.0.0.1", inbound)).await.ok()
    })
    .await;
    assert_eq!(binary(node.core()), first);
    Stream::open(inbound, &echo).await.is_there().await;
}

/// What serves ends, and its binary works no more, as when a disk loses a file.
async fn lose_the_binary(node: &NodeProcess) {
    tricky::write_script(&binary(node.core()), "#!/bin/sh\nexit 1\n");
    for core in node.cores() {
        kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
        eventually("it has ended", || async {
            (!Path::new(&format!("/proc/{core}")).exists()).then_some(())
        })
        .await;
    }
}
