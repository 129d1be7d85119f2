//! What the operator of a node asks it and tells it, by the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use raynode::proto::service::{Empty, StatType};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::NODE;
use crate::support::node::xray_version;
use crate::support::streams::Echo;
use crate::support::users::{id, user};
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, eventually, ports, vless};

/// Whether the core tells who is online.
fn tells_who_is_online() -> bool {
    xray_version() >= (26, 1, 13)
}

/// What a command prints.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complained(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn as_json(output: &Output) -> Value {
    serde_json::from_str(&said(output)).unwrap()
}

fn lines_of_json(output: &Output) -> Vec<Value> {
    let text = said(output);
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A node with two users, one of whom has said and heard so many bytes.
async fn used(bytes: usize) -> (NodeProcess, Panel, u16) {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let users = [user("anna@example", &["vless"]), user("bert", &["vless"])];
    panel.start(&vless_config(inbound), &users).await.unwrap();
    vless::echo(inbound, id("anna@example"), echo.address, bytes)
        .await
        .unwrap();
    (node, panel, inbound)
}

/// Says a word to an echo and hears it; with the first one come two bytes of VLESS.
async fn speak(stream: &mut TcpStream, first: bool) {
    stream.write_all(b"word").await.unwrap();
    let mut heard = vec![0; 4 + 2 * usize::from(first)];
    stream.read_exact(&mut heard).await.unwrap();
    assert!(heard.ends_with(b"word"));
}

async fn is_turned_away(panel: &Panel) -> bool {
    let answer = panel.client.clone().get_base_info(Empty {}).await;
    let denied = [Code::Unauthenticated, Code::PermissionDenied];
    answer.is_err_and(|refused| denied.contains(&refused.code()))
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_what_runs_for_whom_and_why() {
    let node = NodeProcess::start(NODE);
    assert!(said(&node.command(&["status"])).contains("waiting for a panel"));
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    let users = [user("anna", &["vless"]), user("bert", &["vless"])];
    panel.start(&config, &users).await.unwrap();
    let text = said(&node.command(&["status"]));
    for part in [
        "serving",
        "Xray ",
        "2",
        "has control",
        "start, ",
        "a core is started",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 120),
        "{text}"
    );
    let status = as_json(&node.command(&["status", "--json"]));
    assert_eq!(status["phase"], "PHASE_SERVING");
    assert_eq!(status["users"], 2);
    assert_eq!(status["cores"][0]["pid"], node.core());
    assert_eq!(status["session"]["keep_alive_seconds"], 0);

    panel.start(&config, &users).await.unwrap();
    assert!(said(&node.command(&["status"])).contains("nothing differs"));
    panel.start(&config, &users[..1]).await.unwrap();
    assert!(said(&node.command(&["status"])).contains("1 users change over the core's API"));
    let mut other = config.clone();
    other["log"]["loglevel"] = "error".into();
    panel.start(&other, &users).await.unwrap();
    let text = said(&node.command(&["status"]));
    assert!(
        text.contains("handed over to a new core, ") && text.contains("(log)"),
        "{text}"
    );
    let mut broken = config.clone();
    broken["inbounds"][0]["protocol"] = "nonsense".into();
    panel.start(&broken, &users).await.unwrap_err();
    let text = said(&node.command(&["status"]));
    assert!(
        text.contains("refused: ") && text.contains("nonsense"),
        "{text}"
    );

    assert!(node.command(&["status", "--quiet"]).stdout.is_empty());
    panel.stop().await.unwrap();
    assert!(said(&node.command(&["status"])).contains("none has control"));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_and_usage_are_listed_to_the_byte() {
    let (node, panel, inbound) = used(5000).await;
    let of_anna = |list: &[Value]| -> Value {
        let mut anna = list.iter().filter(|user| user["email"] == "anna@example");
        anna.next().unwrap().clone()
    };
    eventually("the harvest has it", || async {
        let list = lines_of_json(&node.command(&["users", "list", "--json"]));
        assert_eq!(list.len(), 2);
        (of_anna(&list)["lifetime"]["uplink"] == 5000).then_some(())
    })
    .await;
    let text = said(&node.command(&["users", "list"]));
    for part in ["anna@example", "bert", "vless", "4.88 KiB", "2 users"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );

    let usage = lines_of_json(&node.command(&["usage", "--of", "users", "--json"]));
    let [anna] = usage.as_slice() else {
        panic!("{usage:?}")
    };
    let both = json!({ "uplink": 5000, "downlink": 5000 });
    assert_eq!((&anna["lifetime"], &anna["pending"]), (&both, &both));
    panel.stats(StatType::UsersStat, "", true).await.unwrap();
    eventually("the panel has it", || async {
        let left = node.command(&["usage", "--of", "users", "--pending", "--json"]);
        said(&left).is_empty().then_some(())
    })
    .await;
    let kept = lines_of_json(&node.command(&["usage", "--of", "users", "--json"]));
    assert_eq!(kept[0]["lifetime"], both);

    let unknown = complained(&node.command(&["users", "show", "nobody"]), 1);
    assert!(unknown.contains("\"nobody\" may not connect"), "{unknown}");
    if !tells_who_is_online() {
        return;
    }
    let echo = Echo::start().await;
    let mut stream = vless::connect(inbound, id("anna@example"), echo.address)
        .await
        .unwrap();
    speak(&mut stream, true).await;
    eventually("she is online", || async {
        let shown = said(&node.command(&["users", "show", "ANNA@example"]));
        shown.contains("127.0.0.2 for ").then_some(())
    })
    .await;
    let online = lines_of_json(&node.command(&["users", "list", "--online", "--json"]));
    assert_eq!(online.len(), 1);
    assert!(said(&node.command(&["status"])).contains("2, 1 online"));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_filtered_and_followed() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (inbound, echo) = (ports::free(), Echo::start().await);
    let mut config = vless_config(inbound);
    config["log"] = json!({ "loglevel": "info" });
    let users = [user("anna", &["vless"]), user("bert", &["vless"])];
    panel.start(&config, &users).await.unwrap();
    let mut following = node
        .prepared(&["logs", "--follow", "--user", "bert", "--tail", "1"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    for name in ["anna", "bert", "anna"] {
        vless::echo(inbound, id(name), echo.address, 10)
            .await
            .unwrap();
    }
    let count = |arguments: &[&str]| {
        let all = [&["logs"], arguments].concat();
        said(&node.command(&all)).lines().count()
    };
    eventually("its lines are there", || async {
        (count(&["--user", "anna"]) == 2).then_some(())
    })
    .await;
    assert_eq!(count(&["--user", "bert", "--inbound", "vless"]), 1);
    assert_eq!(count(&["--inbound", "other"]), 0);
    assert_eq!(count(&["--user", "anna", "--tail", "1"]), 1);
    assert_eq!(
        count(&["--user", "anna", "--since", "1h", "--text", "accepted"]),
        2
    );
    assert_eq!(count(&["--user", "anna", "--level", "warning"]), 0);
    assert!(count(&["--level", "info"]) > 3);
    let wrong = complained(&node.command(&["logs", "--level", "loud"]), 2);
    assert!(wrong.contains("loud") && wrong.contains("debug"), "{wrong}");

    let heard = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let mut line = String::new();
        let mut output = std::io::BufReader::new(following.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        following.kill().unwrap();
        following.wait().unwrap();
        line
    });
    let heard = tokio::time::timeout(Duration::from_secs(10), heard).await;
    assert!(heard.unwrap().unwrap().contains("email: bert"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_configuration_would_change_is_told_before_it_does() {
    let (node, _panel, inbound) = used(10).await;
    let file = node.folder().join("config.json");
    let mut config = vless_config(inbound);
    let differs = |config: &Value| {
        std::fs::write(&file, config.to_string()).unwrap();
        said(&node.command(&["config", "diff", "config.json"]))
    };
    assert!(differs(&config).contains("nothing differs"));
    config["log"] = json!({ "loglevel": "error" });
    let text = differs(&config);
    assert!(
        text.contains("another core takes over") && text.contains("differs: log"),
        "{text}"
    );
    config["inbounds"][0]["tag"] = "renamed".into();
    let text = differs(&config);
    assert!(
        text.contains("without inbounds then, 2 users: anna@example, bert"),
        "{text}"
    );
    assert_eq!(node.cores().len(), 1, "nothing was changed");
    let check = |file: &str| node.command(&["config", "check", file]);
    assert!(said(&check("config.json")).contains("runs it"));
    config["inbounds"][0]["protocol"] = "nonsense".into();
    std::fs::write(&file, config.to_string()).unwrap();
    assert!(complained(&check("config.json"), 1).contains("nonsense"));
    let refused = node.command(&["config", "diff", "config.json"]);
    assert!(complained(&refused, 1).contains("nonsense"));
    assert_eq!(node.cores().len(), 1, "nothing was changed");
    assert!(complained(&check("missing.json"), 1).contains("missing.json"));

    let shown = said(&node.command(&["config", "show"]));
    assert!(
        shown.contains("(hidden)") && !shown.contains(&node.api_key.to_string()),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_certificates_change_while_panels_stay() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    node.unset("API_KEY");
    node.launch();
    let pairing = as_json(&node.command(&["pair", "--json"]));
    node.api_key = pairing["api_key"].as_str().unwrap().parse().unwrap();
    let own = Panel::of(&node);
    assert!(!own.info().await.started);

    let key = said(&node.command(&["key", "add", "home"]));
    let mut other = Panel::with(&node, &[("x-api-key", key.trim().to_owned())]);
    assert!(!other.info().await.started);
    assert_eq!(said(&node.command(&["key", "list"])), "API_KEY\nhome\n");
    assert!(complained(&node.command(&["key", "add", "home"]), 1).contains("already"));
    said(&node.command(&["key", "revoke", "home"]));
    assert!(is_turned_away(&other).await);
    assert!(complained(&node.command(&["key", "revoke", "home"]), 1).contains("no key"));
    let fresh = said(&node.command(&["key", "revoke", "API_KEY"]));
    assert!(is_turned_away(&own).await);
    node.api_key = fresh.trim().parse().unwrap();
    assert!(!Panel::of(&node).info().await.started);

    let before = as_json(&node.command(&["cert", "show", "--json"]));
    assert_eq!(before["self_signed"], true);
    let renewed = node.command(&["cert", "renew", "--name", "node.example", "--json"]);
    let renewed = as_json(&renewed);
    assert_ne!(renewed["fingerprint"], before["fingerprint"]);
    assert!(
        renewed["names"]
            .as_array()
            .unwrap()
            .contains(&json!("node.example"))
    );
    other = Panel::of(&node);
    assert!(
        !other.info().await.started,
        "new connections get it at once"
    );

    // The old pair was kept, and can be had back.
    let old = |name: &str| {
        node.folder()
            .join("state/certs")
            .join(format!("{name}.old"))
    };
    let path = |name: &str| old(name).display().to_string();
    let (certificate, its_key) = (path("ssl_cert.pem"), path("ssl_key.pem"));
    let (now_key, now) = (
        node.folder().join("state/certs/ssl_key.pem"),
        node.certificate(),
    );
    let wrong = node.command(&["cert", "import", &certificate, now_key.to_str().unwrap()]);
    assert!(complained(&wrong, 1).contains("nothing changed"));
    let kept = std::fs::read_to_string(&now).unwrap();
    assert_eq!(kept, renewed["pem"].as_str().unwrap());
    let back = as_json(&node.command(&["cert", "import", &certificate, &its_key, "--json"]));
    assert_eq!(back["fingerprint"], before["fingerprint"]);

    let names_after = |more: &[&str]| {
        let arguments = [&["cert", "renew", "--json"], more].concat();
        as_json(&node.command(&arguments))["names"].to_string()
    };
    assert!(names_after(&["--name", "more.example"]).contains("more.example"));
    assert!(names_after(&[]).contains("more.example"), "it is kept");
    assert!(!names_after(&["--only"]).contains("more.example"));

    // What is wrong with other settings is in nobody's way.
    let mut listed = node.prepared(&["key", "list"]);
    let listed = listed.env("STOP_GRACE", "soon").output().unwrap();
    assert_eq!(said(&listed), "API_KEY\n");
    // But a folder that can't be read is not replaced by another node's.
    let file = node.folder().join("two.env");
    std::fs::write(&file, "SERVICE_PORT=1\nRUNTIME_DIR='/run/two\n").unwrap();
    let mut lost = node.prepared(&["key", "list"]);
    lost.env_remove("RUNTIME_DIR");
    let lost = lost.env("RAYNODE_SETTINGS", &file).output().unwrap();
    assert!(complained(&lost, 2).contains("line 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_panel_wants_is_printed_in_every_form() {
    let node = NodeProcess::start(NODE);
    let text = said(&node.command(&["pair"]));
    let certificate = std::fs::read_to_string(node.certificate()).unwrap();
    for part in [
        &node.api_key.to_string(),
        &node.port.to_string(),
        certificate.trim(),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let string = said(&node.command(&["pair", "--string", "--address", "node.example"]));
    assert!(string.starts_with(&format!("raynode://node.example:{}?key=", node.port)));
    let qr = said(&node.command(&["pair", "--qr"]));
    let width = qr.lines().map(|line| line.chars().count()).max().unwrap();
    assert!((40..=80).contains(&width), "{width}:\n{qr}");
    let warned = said(&node.command(&["pair", "--address", "node.example"]));
    assert!(
        warned.contains("cert renew --name node.example"),
        "{warned}"
    );
    for command in [
        ["pair", "--address", "a b&x=1"].as_slice(),
        &["pair", "--address", ""],
        &["cert", "renew", "--name", ""],
    ] {
        assert!(complained(&node.command(command), 2).contains("host name"));
    }
    let pem = said(&node.command(&["pair", "--certificate"]));
    assert_eq!(pem, certificate);
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_cuts_nobody_and_stop_ends_all() {
    let (mut node, _panel, inbound) = used(10).await;
    let echo = Echo::start().await;
    let mut stream = vless::connect(inbound, id("bert"), echo.address)
        .await
        .unwrap();
    speak(&mut stream, true).await;
    let (core, daemon) = (node.core(), node.pid());
    assert!(said(&node.command(&["restart"])).contains("serves"));
    assert_eq!((node.core(), node.pid()), (core, daemon));
    let fresh = said(&node.command(&["restart", "--core"]));
    assert_ne!(node.core(), core, "{fresh}");
    speak(&mut stream, false).await;
    drop(stream);
    eventually("the old core has ended, and is no zombie", || async {
        (!Path::new(&format!("/proc/{core}")).exists()).then_some(())
    })
    .await;
    assert_eq!(said(&node.command(&["stop"])), "stopped\n");
    assert!(node.stop_asked().success());
    assert_eq!(node.cores(), Vec::<i32>::new());
    for command in ["status", "stop", "restart", "pair"] {
        let absent = complained(&node.command(&[command]), 3);
        assert!(absent.contains("no daemon answers at"), "{absent}");
    }
}

/// A panel's configuration may lead strangers to any unix socket of the node's user; not to this one.
#[tokio::test(flavor = "multi_thread")]
async fn a_core_is_no_way_to_the_control_socket() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let inbound = ports::free();
    let mut config = vless_config(inbound);
    let socket = node.folder().join("run/control.sock");
    config["inbounds"][0]["settings"]["fallbacks"] = json!([{ "dest": socket }]);
    panel.start(&config, &[]).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", inbound)).await.unwrap();
    // What HTTP/2 begins with: no user of VLESS begins so, and the fallback gets it.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).await.unwrap();
    let mut heard = Vec::new();
    let end = stream.read_to_end(&mut heard);
    drop(tokio::time::timeout(Duration::from_secs(10), end).await);
    assert!(heard.is_empty(), "{heard:?}");
    eventually("it is told", || async {
        node.log()
            .contains("a core came to the control socket")
            .then_some(())
    })
    .await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    said(&node.command(&["status"]));
}

#[test]
fn every_command_explains_itself() {
    let node = NodeProcess::prepare(NODE, &[]);
    let commands = [
        &[] as &[&str],
        &["run"],
        &["init"],
        &["status"],
        &["logs"],
        &["users", "list"],
        &["users", "show"],
        &["usage"],
        &["pair"],
        &["cert", "show"],
        &["cert", "renew"],
        &["cert", "import"],
        &["key", "add"],
        &["key", "list"],
        &["key", "revoke"],
        &["core", "list"],
        &["core", "install"],
        &["core", "use"],
        &["core", "rollback"],
        &["core", "geo"],
        &["config", "show"],
        &["config", "check"],
        &["config", "diff"],
        &["doctor"],
        &["stop"],
        &["restart"],
        &["reload"],
        &["completions"],
    ];
    let mut all = String::new();
    for command in commands {
        let text = said(&node.command(&[command, &["--help"]].concat()));
        all = all + "$ raynode " + &command.join(" ") + " --help\n" + &text + "\n";
    }
    insta::assert_snapshot!(all);
    for shell in ["bash", "zsh", "fish"] {
        assert!(said(&node.command(&["completions", shell])).contains("raynode"));
    }
    assert_eq!(node.command(&["no-such-command"]).status.code(), Some(2));
}
