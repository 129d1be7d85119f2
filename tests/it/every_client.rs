//! Published clients of every generation, unmodified, drive the node over every transport they have.

#![allow(
    clippy::print_stderr,
    reason = "what a client said is shown when its test fails"
)]

use std::time::Duration;

use serde_json::json;

use crate::NODE;
use crate::door::version_1_certificate;
use crate::support::node::xray_version;
use crate::support::xray::{vless_clients, vless_config};
use crate::support::{NodeProcess, Origin, ports, script};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/every_client.py");
/// The script gives up by itself before.
const PATIENCE: Duration = Duration::from_secs(30);

/// It shows a client certificate to open a session; all later ones show a key.
const LAST_WITH_SESSIONS: &str = "0.0.30";

async fn drive(package: &str, version: &str, transport: &str) {
    // The folder with a Python environment for each client.
    let Some(clients) = script::named("RAYNODE_TEST_OLD_CLIENTS") else {
        return;
    };
    let mut node = NodeProcess::prepare(NODE, &[]);
    let mut shown = json!({ "key": node.api_key });
    if version == LAST_WITH_SESSIONS {
        for name in ["panel", "stranger"] {
            let (certificate, key) = version_1_certificate(node.folder(), name);
            if name == "panel" {
                node.set("SSL_CLIENT_CERT_FILE", certificate.to_str().unwrap());
            }
            shown[name] =
                json!([certificate, key].map(|path| std::fs::read_to_string(path).unwrap()));
        }
    }
    node.launch();

    let origin = Origin::start().await;
    let port = ports::free();
    let mut config = vless_config(port);
    config["log"] = json!({ "loglevel": "info" });
    let (_users, described) = vless_clients(["1", "2", "3"].map(|email| (email, port)));
    let (year, month, day) = xray_version();
    let setup = json!({
        "package": package,
        "transport": transport,
        "port": node.port,
        "shown": shown,
        "certificate": std::fs::read_to_string(node.certificate()).unwrap(),
        "node_version": env!("CARGO_PKG_VERSION"),
        "core_version": format!("{year}.{month}.{day}"),
        "config": config,
        "inbound": "vless",
        "outbound": "direct",
        "origin": origin.address.port(),
        "clients": described,
    });

    let interpreter = clients.join(format!("{package}-{version}/bin/python"));
    let what = format!("{package} {version} over {transport}");
    let log = node.folder().join("drive.log");
    script::run(&interpreter, &["-u", SCRIPT], &setup, &log, PATIENCE, &what).await;
    assert!(node.stop().success());
    assert!(node.cores().is_empty());
}

macro_rules! clients {
    ($($name:ident: $package:literal $version:literal $transport:literal;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                drive($package, $version, $transport).await;
            }
        )*
    };
}

clients! {
    pasarguard_0_9_4_over_grpc: "pasarguard-node-bridge" "0.9.4" "grpc";
    pasarguard_0_9_4_over_rest: "pasarguard-node-bridge" "0.9.4" "rest";
    pasarguard_0_8_1_over_grpc: "pasarguard-node-bridge" "0.8.1" "grpc";
    pasarguard_0_8_1_over_rest: "pasarguard-node-bridge" "0.8.1" "rest";
    pasarguard_0_4_2_over_grpc: "pasarguard-node-bridge" "0.4.2" "grpc";
    pasarguard_0_4_2_over_rest: "pasarguard-node-bridge" "0.4.2" "rest";
    pasarguard_0_1_1_over_grpc: "pasarguard-node-bridge" "0.1.1" "grpc";
    pasarguard_0_1_1_over_rest: "pasarguard-node-bridge" "0.1.1" "rest";
    pasarguard_0_0_45_over_grpc: "pasarguard-node-bridge" "0.0.45" "grpc";
    pasarguard_0_0_45_over_rest: "pasarguard-node-bridge" "0.0.45" "rest";
    gozargah_0_0_44_over_grpc: "gozargah-node-bridge" "0.0.44" "grpc";
    gozargah_0_0_44_over_rest: "gozargah-node-bridge" "0.0.44" "rest";
    gozargah_0_0_35_over_grpc: "gozargah-node-bridge" "0.0.35" "grpc";
    gozargah_0_0_35_over_rest: "gozargah-node-bridge" "0.0.35" "rest";
    gozargah_0_0_30_over_grpc: "gozargah-node-bridge" "0.0.30" "grpc";
    gozargah_0_0_30_over_rest: "gozargah-node-bridge" "0.0.30" "rest";
}
