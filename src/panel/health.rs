//! `grpc.health.v1`: for probes that know nothing of panels.
//!
//! The node as a whole is serving as long as it answers. Its service is serving as long as a core
//! serves: a node that waits for its panel is healthy, and its service is not there yet.

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::node::Node;

/// The service as gRPC names it.
const SERVICE: &str = "service.NodeService";
/// The path of the one call that may be made without a key: probes have none.
pub(super) const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The health service, and what keeps it true.
#[must_use]
pub fn service() -> (HealthServer<impl Health>, Reporter) {
    let (reporter, service) = health_reporter();
    (service, Reporter(reporter))
}

/// Keeps the states true.
#[derive(Debug)]
pub struct Reporter(HealthReporter);

impl Reporter {
    /// Follows the node until it ends.
    pub async fn follow(self, mut node: Node) {
        loop {
            let status = match node.require_core() {
                Ok(()) => ServingStatus::Serving,
                Err(_) => ServingStatus::NotServing,
            };
            self.0.set_service_status(SERVICE, status).await;
            if !node.changed().await {
                return;
            }
        }
    }
}
