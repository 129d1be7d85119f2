//! Routing rules that a panel adds while the core runs, seen by real traffic.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raynode::proto::service::{
    AddRoutingRuleRequest, BalancerInfoRequest, OverrideBalancerTargetRequest,
    RemoveRoutingRuleRequest,
};
use serde_json::{Value, json};

use crate::NODE;
use crate::support::origin::Download;
use crate::support::users::{id, numbered};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{NodeProcess, Origin, Panel, XrayClient, eventually, origin, ports};

/// A rule that stops whatever goes to this address.
fn blocks(target: SocketAddr, tag: &str) -> Value {
    json!({ "ruleTag": tag, "ip": [target.ip()], "port": target.port().to_string(), "outboundTag": "block" })
}

async fn add(panel: &Panel, rule: &Value) {
    let rule = AddRoutingRuleRequest {
        rule: rule.to_string(),
        should_reset: false,
    };
    panel.client.clone().add_routing_rule(rule).await.unwrap();
}

async fn remove(panel: &Panel, tag: &str) {
    let rule_tag = tag.to_owned();
    let request = RemoveRoutingRuleRequest { rule_tag };
    panel
        .client
        .clone()
        .remove_routing_rule(request)
        .await
        .unwrap();
}

async fn passes(client: &XrayClient, origin: &Origin) -> bool {
    let attempt = async {
        let mut stream = client.connect(origin.address).await?;
        origin::exchange(&mut stream, 1000, 2000).await
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(5), attempt).await,
        Ok(Ok(()))
    )
}

async fn restarted(node: &NodeProcess, panel: &Panel, core: i32) -> i32 {
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
    eventually("another core serves", || async {
        let serves = panel.info().await.started;
        match node.cores().as_slice() {
            [other] if *other != core && serves => Some(*other),
            _ => None,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_outlives_the_core_and_ends_with_the_next_start() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (origin, other) = (Origin::start().await, Origin::start().await);
    let port = ports::free();
    let (config, users) = (vless_config(port), numbered(1..2, &["vless"]));
    panel.start(&config, &users).await.unwrap();
    let core = node.core();
    let client = XrayClient::start(&vless_outbound(port, id("1")));
    assert!(passes(&client, &origin).await);
    let download = Download::start(client.connect(other.address).await.unwrap())
        .await
        .unwrap();

    add(&panel, &blocks(origin.address, "blocked")).await;
    assert!(!passes(&client, &origin).await && passes(&client, &other).await);
    assert_eq!(node.core(), core);

    // The next Start is compared with what runs: the rule is too much, and goes without a restart.
    panel.start(&config, &users).await.unwrap();
    assert_eq!(node.core(), core);
    assert!(passes(&client, &origin).await);
    assert!(download.end().await.unwrap() > 0, "the download lived on");

    // With the rule in its configuration there is nothing to do, and it stays.
    add(&panel, &blocks(origin.address, "blocked")).await;
    let mut with_rule = config.clone();
    with_rule["routing"] = json!({ "rules": [blocks(origin.address, "blocked")] });
    panel.start(&with_rule, &users).await.unwrap();
    assert_eq!(node.core(), core);
    assert!(!passes(&client, &origin).await);

    // A core that comes back has it again.
    remove(&panel, "blocked").await;
    assert!(passes(&client, &origin).await);
    add(&panel, &blocks(origin.address, "blocked")).await;
    let core = restarted(&node, &panel, core).await;
    assert!(!passes(&client, &origin).await && passes(&client, &other).await);
    remove(&panel, "blocked").await;
    let core = restarted(&node, &panel, core).await;
    assert!(passes(&client, &origin).await);

    // A rule that a configuration has more comes over the API, too, when Xray can put it there.
    panel.start(&with_rule, &users).await.unwrap();
    assert_eq!(node.core(), core);
    assert!(!passes(&client, &origin).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_leaves_the_node_in_charge_and_outlives_the_core() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (origin, other) = (Origin::start().await, Origin::start().await);
    let port = ports::free();
    let mut config = vless_config(port);
    config["routing"] = json!({ "rules": [blocks(origin.address, "first")] });
    panel
        .start(&config, &numbered(1..2, &["vless"]))
        .await
        .unwrap();
    let core = node.core();
    let client = XrayClient::start(&vless_outbound(port, id("1")));
    assert!(!passes(&client, &origin).await && passes(&client, &other).await);
    let reset = AddRoutingRuleRequest {
        rule: blocks(other.address, "only").to_string(),
        should_reset: true,
    };
    panel.client.clone().add_routing_rule(reset).await.unwrap();
    assert!(passes(&client, &origin).await && !passes(&client, &other).await);
    // The way to the core's API is a rule on older cores; a new connection to it still comes through.
    assert_eq!(node.core(), core);
    add(&panel, &blocks(origin.address, "second")).await;
    assert!(!passes(&client, &origin).await);
    let core = restarted(&node, &panel, core).await;
    assert!(!passes(&client, &origin).await && !passes(&client, &other).await);
    remove(&panel, "only").await;
    assert!(passes(&client, &other).await);
    assert_eq!(node.core(), core);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_is_told_again_when_the_core_comes_back() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let mut config = vless_config(ports::free());
    config["routing"] = json!({
        "balancers": [{ "tag": "even", "selector": ["block"] }],
        "rules": [{ "network": "tcp", "balancerTag": "even" }],
    });
    let users = numbered(1..2, &["vless"]);
    panel.start(&config, &users).await.unwrap();
    let request = OverrideBalancerTargetRequest {
        balancer_tag: "even".to_owned(),
        target: "direct".to_owned(),
    };
    panel
        .client
        .clone()
        .override_balancer_target(request)
        .await
        .unwrap();
    restarted(&node, &panel, node.core()).await;
    let tag = "even".to_owned();
    let info = panel
        .client
        .clone()
        .get_balancer_info(BalancerInfoRequest { tag })
        .await
        .unwrap();
    assert_eq!(info.into_inner().override_target, "direct");
}
