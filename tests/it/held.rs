//! A node with many connections through its core, and what is asked of it when something has happened.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::NODE;
use crate::support::streams::Table;
use crate::support::users::{id, numbered};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{Echo, NodeProcess, Panel, Streams, XrayClient, eventually, ports};

/// A node with many connections of one user through its core.
pub(crate) struct Held {
    pub(crate) node: NodeProcess,
    pub(crate) panel: Panel,
    pub(crate) config: serde_json::Value,
    pub(crate) client: XrayClient,
    pub(crate) streams: Streams,
    pub(crate) echo: Echo,
    pub(crate) core: i32,
}

impl Held {
    pub(crate) async fn new(settings: &[(&str, &str)], users: usize, streams: usize) -> Self {
        let node = NodeProcess::start_with(NODE, settings);
        let panel = Panel::of(&node);
        let echo = Echo::start().await;
        let port = ports::free();
        let config = vless_config(port);
        panel
            .start(&config, &numbered(0..users, &["vless"]))
            .await
            .unwrap();
        let client = XrayClient::start(&vless_outbound(port, id("0")));
        let streams = Streams::hold(&client, &echo, streams).await;
        let core = node.core();
        Self {
            node,
            panel,
            config,
            client,
            streams,
            echo,
            core,
        }
    }

    pub(crate) async fn nobody_was_cut(self) -> Table {
        assert_eq!(self.node.core(), self.core, "it is the same core");
        let late = Streams::hold(&self.client, &self.echo, 5).await;
        assert_eq!(
            late.end().await.broken,
            0,
            "and new connections come through"
        );
        let table = self.streams.end().await;
        assert_eq!(table.broken, 0, "{table:?}");
        table
    }
}

pub(crate) async fn control_answers(panel: &Panel) -> Duration {
    let began = Instant::now();
    eventually("control answers", || async {
        let mut client = panel.client.clone();
        let stats = client.get_backend_stats(raynode::proto::service::Empty {});
        stats.await.ok()
    })
    .await;
    began.elapsed()
}

pub(crate) fn emails(users: std::ops::Range<usize>) -> BTreeSet<String> {
    users.map(|number| number.to_string()).collect()
}
