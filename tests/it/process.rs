//! The process as its operator sees it: settings, signals, files, and the core below it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use crate::NODE;
use crate::support::node::xray_binary;
use crate::support::users::{self, numbered};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{NodeProcess, Origin, Panel, XrayClient, eventually, origin, ports};

/// Runs a node that is expected to end by itself.
fn run(settings: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    Command::new(NODE)
        .arg("run")
        .env_clear()
        .env("STATE_DIR", path("state"))
        .env("RUNTIME_DIR", path("run"))
        .envs(settings.iter().copied())
        .current_dir(folder.path())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_wrong_setting_is_named_in_one_run() {
    let output = run(&[
        ("SERVICE_PORT", "http"),
        ("API_KEY", "hunter2"),
        ("LOG_FORMAT", "xml"),
    ]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for variable in ["SERVICE_PORT", "API_KEY", "LOG_FORMAT"] {
        assert!(text.contains(variable), "{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_port_that_is_taken_and_half_a_certificate_are_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&[("NODE_HOST", "127.0.0.1"), ("SERVICE_PORT", &port)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(&format!("can't listen on 127.0.0.1:{port}")),
        "{}",
        stderr(&output)
    );

    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&cert, "x").unwrap();
    let output = run(&[
        ("SSL_CERT_FILE", cert.to_str().unwrap()),
        ("SSL_KEY_FILE", key.to_str().unwrap()),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("key.pem is not"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_listens_on_ipv6() {
    let mut node = NodeProcess::prepare(NODE, &[("NODE_HOST", "[::]")]);
    node.launch();
    assert!(std::net::TcpStream::connect(("::1", node.port)).is_ok());
    assert!(!Panel::of(&node).info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_made_once_and_kept() {
    let mut node = NodeProcess::prepare(NODE, &[("API_KEY", "")]);
    node.launch();
    let identity = || std::fs::read_to_string(node.folder().join("state/identity")).unwrap();
    let (first, cert) = (identity(), std::fs::read(node.certificate()).unwrap());
    let parsed: serde_json::Value = serde_json::from_str(&first).unwrap();
    let key = parsed["api_key"].as_str().unwrap().to_owned();
    assert!(
        !Panel::with(&node, &[("x-api-key", key.clone())])
            .info()
            .await
            .started
    );
    assert!(
        !node.log().contains(&key),
        "the key is in the log: {}",
        node.log()
    );
    let mode = |name: &str| {
        node.folder()
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("state"), mode("run")), (0o700, 0o700));
    assert_eq!(
        (mode("state/identity"), mode("state/certs/ssl_key.pem")),
        (0o600, 0o600)
    );
    assert!(node.stop().success());
    node.launch();
    assert_eq!(
        std::fs::read_to_string(node.folder().join("state/identity")).unwrap(),
        first
    );
    assert_eq!(std::fs::read(node.certificate()).unwrap(), cert);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cores_api_is_open_to_nobody_else() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let port = ports::free();
    let mut config = vless_config(port);
    config["api"] = serde_json::json!({ "tag": "x", "listen": format!("127.0.0.1:{}", ports::free()), "services": ["HandlerService"] });
    config["metrics"] =
        serde_json::json!({ "tag": "y", "listen": format!("127.0.0.1:{}", ports::free()) });
    panel.start(&config, &[]).await.unwrap();
    let sockets = || -> Vec<_> {
        let entries = std::fs::read_dir(node.folder().join("run")).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "sock"))
            .filter(|path| !path.ends_with("control.sock"))
            .collect()
    };
    let [socket] = sockets().try_into().unwrap();
    assert_eq!(
        socket.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );

    // Of TCP ports the core listens on the inbound's only.
    let core = node.core();
    let inodes: Vec<String> = std::fs::read_dir(format!("/proc/{core}/fd"))
        .unwrap()
        .filter_map(|fd| {
            std::fs::read_link(fd.unwrap().path())
                .ok()?
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')
                .map(str::to_owned)
        })
        .collect();
    let mut listening = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/{core}/net/{table}"))
            .unwrap()
            .lines()
            .skip(1)
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == "0A" && inodes.iter().any(|inode| inode == fields[9]) {
                let port = fields[1].rsplit(':').next().unwrap();
                listening.push(u16::from_str_radix(port, 16).unwrap());
            }
        }
    }
    assert_eq!(listening, [port]);

    // Each core has a path of its own, and none is left behind.
    panel.stop().await.unwrap();
    panel.start(&config, &[]).await.unwrap();
    let [next] = sockets().try_into().unwrap();
    assert_ne!(socket, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_core_inherits_nothing_that_is_the_nodes_alone() {
    let mut node = NodeProcess::start(NODE);
    // The pair that the first run made, named by the variables now.
    let (cert, key) = (
        node.certificate(),
        node.folder().join("state/certs/ssl_key.pem"),
    );
    assert!(node.stop().success());
    node.set("SSL_CERT_FILE", &cert.display().to_string());
    node.set("SSL_KEY_FILE", &key.display().to_string());
    node.launch();
    Panel::of(&node)
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    let environment = std::fs::read(format!("/proc/{}/environ", node.core())).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    assert!(environment.contains("XRAY_LOCATION_ASSET="));
    for variable in ["API_KEY", "SSL_CERT_FILE", "SSL_KEY_FILE"] {
        assert!(!environment.contains(variable), "{environment:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_a_killed_core_left_are_in_nobodys_way() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let mut config = vless_config(ports::free());
    let socket = node.folder().join("inbound.sock");
    let mut inbound = crate::support::xray::vless_inbound("unix", 1);
    inbound["listen"] = serde_json::json!(format!("{},0666", socket.display()));
    inbound.as_object_mut().unwrap().remove("port");
    config["inbounds"].as_array_mut().unwrap().push(inbound);
    panel.start(&config, &[]).await.unwrap();
    assert!(socket.exists());
    let core = node.core();
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
    eventually("it comes back", || async {
        panel.info().await.started.then_some(())
    })
    .await;
    eventually("another one", || async {
        node.cores().iter().all(|pid| *pid != core).then_some(())
    })
    .await;
    panel.stop().await.unwrap();

    // Neither do starts that fail leave anything behind.
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = vless_config(foreign.local_addr().unwrap().port());
    panel.start(&taken, &[]).await.unwrap_err();
    let left: Vec<_> = std::fs::read_dir(node.folder().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "lock" && name != "session.json" && name != "control.sock")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_that_blocks_does_not_stop_the_node() {
    let node = NodeProcess::start(NODE);
    let fifo = node.folder().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut config = vless_config(ports::free());
    config["log"] = serde_json::json!({ "loglevel": "debug", "access": fifo, "error": fifo });
    let panel = Panel::of(&node);
    let start = tokio::time::timeout(Duration::from_secs(5), panel.start(&config, &[]));
    assert!(start.await.expect("nobody reads the fifo").unwrap().started);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_dies_comes_back_with_its_users() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let port = ports::free();
    panel
        .start(&vless_config(port), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    panel
        .sync_user(users::user("late", &["vless"]))
        .await
        .unwrap();
    let mut log = panel
        .client
        .clone()
        .get_logs(raynode::proto::service::Empty {})
        .await
        .unwrap()
        .into_inner();
    let core = node.core();
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();

    // Meanwhile panels are told to wait, in words that they know.
    let next = eventually("another core serves", || async {
        match panel
            .client
            .clone()
            .get_backend_stats(raynode::proto::service::Empty {})
            .await
        {
            Ok(_) => node.cores().into_iter().find(|pid| *pid != core),
            Err(error) => {
                assert_eq!(error.code(), Code::Unavailable);
                let text = error.message();
                assert!(
                    text.contains("core is not started yet")
                        || text.contains("failed to get sys stats"),
                    "{text}"
                );
                None
            }
        }
    })
    .await;
    assert_eq!(node.core(), next);
    let origin = Origin::start().await;
    for email in ["1", "late"] {
        let client = XrayClient::start(&vless_outbound(port, users::id(email)));
        let mut stream = client.connect(origin.address).await.unwrap();
        origin::exchange(&mut stream, 100, 100).await.unwrap();
    }
    loop {
        let line = log.message().await.unwrap().unwrap().detail;
        if line.contains("xray process exited unexpectedly") {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_nobody_knows_of_is_ended_before_the_next_one() {
    let mut node = NodeProcess::start(NODE);
    Panel::of(&node)
        .start(&vless_config(ports::free()), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let orphan = node.core();
    node.kill();
    std::fs::remove_file(node.folder().join("run/core.json")).unwrap();
    node.launch();
    let panel = Panel::of(&node);
    panel.info().await;
    assert!(
        !node.cores().contains(&orphan),
        "two cores on one port would split its users"
    );
    panel
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    node.core();
}

#[test]
fn two_nodes_do_not_share_a_folder() {
    let node = NodeProcess::start(NODE);
    let run_dir = node.folder().join("run").display().to_string();
    let output = run(&[
        ("RUNTIME_DIR", &run_dir),
        ("NODE_HOST", "127.0.0.1"),
        ("SERVICE_PORT", &ports::free().to_string()),
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("another node runs there"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_the_replies_out_first() {
    let mut node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let port = ports::free();
    panel.start(&vless_config(port), &[]).await.unwrap();
    // A log is open, which has no end to be waited for; and a call is under way.
    let log = panel
        .client
        .clone()
        .get_logs(raynode::proto::service::Empty {})
        .await
        .unwrap();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut client = panel.client.clone();
    let call = tokio::spawn(async move {
        client
            .sync_user(tokio_stream::wrappers::ReceiverStream::new(receiver))
            .await
    });
    sender.send(users::user("1", &["vless"])).await.unwrap();
    let origin = Origin::start().await;
    let client = XrayClient::start(&vless_outbound(port, users::id("1")));
    eventually("the call has begun", || async {
        let mut stream = client.connect(origin.address).await.ok()?;
        origin::exchange(&mut stream, 100, 100).await.ok()
    })
    .await;

    node.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!call.is_finished());
    sender.send(users::user("2", &["vless"])).await.unwrap();
    drop(sender);
    call.await
        .unwrap()
        .expect("the reply to a call that had begun");
    assert!(node.stop_asked().success());
    assert!(node.cores().is_empty());
    drop(log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debugged_config_is_for_the_operators_eyes_only() {
    let folder = tempfile::tempdir().unwrap();
    let generated = folder.path().join("generated");
    let node = NodeProcess::start_with(
        NODE,
        &[
            ("DEBUG", "true"),
            ("GENERATED_CONFIG_PATH", generated.to_str().unwrap()),
        ],
    );
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let path = generated.join("xray.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(
        config["inbounds"]
            .as_array()
            .unwrap()
            .iter()
            .any(|inbound| inbound["tag"] == "vless")
    );
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        generated.metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn the_harness_runs_the_xray_that_it_says() {
    assert!(xray_binary().is_absolute());
}
