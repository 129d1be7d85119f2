//! As in the image: nobody in particular starts a daemon whose file has capabilities. It uses them, and its core
//! has what is of use to it.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::NODE;
use crate::held::control_answers;
use crate::support::users::{id, numbered};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{Echo, NodeProcess, Panel, Streams, XrayClient, eventually, ports};

const NOBODY: u32 = 65534;
// Their numbers in capability.h.
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;

/// A node whose file may do this, for nobody; `None` where that can't be made.
fn node_that_may(what: &str, folder: &Path) -> Option<NodeProcess> {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    let binary = folder.join("raynode");
    std::fs::copy(NODE, &binary).unwrap();
    let set = Command::new("setcap").arg(what).arg(&binary).status();
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || !set.is_ok_and(|status| status.success()) {
        assert!(
            std::env::var_os("CI").is_none(),
            "this test needs root and setcap (libcap2-bin)"
        );
        return None;
    }
    let mut node = NodeProcess::prepare(&binary, &[]);
    chown(node.folder(), Some(NOBODY), Some(NOBODY)).unwrap();
    node.as_user(NOBODY);
    node.launch();
    Some(node)
}

fn may(pid: i32, capability: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(effective.unwrap().trim(), 16).unwrap() & (1 << capability) != 0
}

fn port_below_1024() -> u16 {
    (600..1024)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemons_file_may_do_its_core_may_do() {
    let folder = tempfile::tempdir().unwrap();
    let given = "cap_net_bind_service,cap_net_admin=p";
    let Some(mut node) = node_that_may(given, folder.path()) else {
        println!("SKIPPED: it needs root and setcap");
        return;
    };
    let panel = Panel::of(&node);
    let (echo, port, low) = (Echo::start().await, ports::free(), port_below_1024());
    let mut config = vless_config(port);
    config["inbounds"].as_array_mut().unwrap().push(json!({
        "tag": "low", "listen": "127.0.0.1", "port": low, "protocol": "dokodemo-door",
        "settings": { "address": "127.0.0.1", "port": echo.address.port(), "network": "tcp" },
    }));
    let users = numbered(0..3, &["vless"]);
    panel.start(&config, &users).await.unwrap();
    let mut through = TcpStream::connect(("127.0.0.1", low)).await.unwrap();
    through.write_all(b"x").await.unwrap();
    through.read_exact(&mut [0]).await.unwrap();
    drop(through);
    let core = node.core();
    for pid in [node.pid(), core] {
        assert!(may(pid, NET_BIND_SERVICE));
    }
    assert!(may(node.pid(), NET_ADMIN));

    let client = XrayClient::start(&vless_outbound(port, id("0")));
    let streams = Streams::hold(&client, &echo, 20).await;
    // The next daemon asks whether the port that it finds taken is this one's.
    node.signal(Signal::SIGUSR2);
    eventually("it makes way for the binary on disk", || async {
        (node.log().matches("serving panels").count() == 2).then_some(())
    })
    .await;
    assert!(may(node.pid(), NET_ADMIN));
    node.kill();
    node.launch();
    let panel = Panel::of(&node);
    control_answers(&panel).await;
    assert_eq!(node.core(), core, "{}", node.log());
    // The core holds no more than its daemon.
    config["log"]["loglevel"] = "error".into();
    panel.start(&config, &users).await.unwrap();
    let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if matches!(yama.trim(), "" | "0") {
        assert!(node.log().contains("form=\"steered\""), "{}", node.log());
    } else {
        println!("NOT SHOWN: Yama lends no socket of a core that another daemon has started");
    }
    assert!(may(node.core(), NET_BIND_SERVICE));
    assert_eq!(streams.end().await.broken, 0);
    assert!(node.stop().success());
}

/// With the administration of the network, Xray makes devices of the kernel's. Where it can't, it is better off
/// without.
#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_can_make_no_device_does_not_administer_the_network() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut node) = node_that_may("cap_net_admin=p", folder.path()) else {
        println!("SKIPPED: it needs root and setcap");
        return;
    };
    let device = std::fs::metadata("/dev/net/tun");
    let filter = std::fs::File::options()
        .write(true)
        .open("/proc/sys/net/ipv4/conf/all/rp_filter");
    let is_anybodys =
        device.is_ok_and(|device| device.permissions().mode() & 0o002 != 0) && filter.is_ok();
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel
        .start(&config, &numbered(0..1, &["vless"]))
        .await
        .unwrap();
    assert!(may(node.pid(), NET_ADMIN));
    assert_eq!(may(node.core(), NET_ADMIN), is_anybodys);
    assert!(node.stop().success());
}
