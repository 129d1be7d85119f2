//! A panel that collects usage with receipts, as `raynode.v1.UsageService` wants it.

use std::collections::BTreeMap;

use raynode::proto::raynode::v1::usage_service_client::UsageServiceClient;
use raynode::proto::raynode::v1::{
    AcknowledgeUsageRequest, CollectUsageRequest, CollectUsageResponse, Kind,
    ListOnlineUsersRequest, ListOnlineUsersResponse,
};
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::NodeProcess;
use super::panel::{Headers, channel};

/// What it keeps, in a transaction of its own for each batch.
#[derive(Default)]
pub struct Collector {
    batches: BTreeMap<String, CollectUsageResponse>,
    /// A batch came again and was another one.
    pub changed: Vec<String>,
}

pub struct Collecting {
    client: UsageServiceClient<InterceptedService<Channel, Headers>>,
}

impl Collecting {
    pub fn of(node: &NodeProcess) -> Self {
        let headers = Headers(vec![("x-api-key", node.api_key.to_string())]);
        let client = UsageServiceClient::with_interceptor(channel(node), headers);
        Self { client }
    }

    pub async fn collect(
        &mut self,
        cursor: &str,
        limit: u32,
    ) -> Result<CollectUsageResponse, Status> {
        let request = CollectUsageRequest {
            cursor: cursor.to_owned(),
            limit,
        };
        Ok(self.client.collect_usage(request).await?.into_inner())
    }

    pub async fn acknowledge(&mut self, batches: Vec<String>) -> Result<u32, Status> {
        let request = AcknowledgeUsageRequest { batches };
        let reply = self.client.acknowledge_usage(request).await?;
        Ok(reply.into_inner().acknowledged)
    }

    pub async fn online(&mut self) -> Result<ListOnlineUsersResponse, Status> {
        let reply = self
            .client
            .list_online_users(ListOnlineUsersRequest {})
            .await?;
        Ok(reply.into_inner())
    }
}

impl Collector {
    /// One round as a panel does it: store, then acknowledge. `false` when there was nothing.
    pub async fn round(&mut self, node: &mut Collecting, limit: u32) -> Result<bool, Status> {
        let batch = node.collect("", limit).await?;
        if batch.batch.is_empty() {
            return Ok(false);
        }
        let id = batch.batch.clone();
        let before = self
            .batches
            .entry(id.clone())
            .or_insert_with(|| batch.clone());
        if before.entries != batch.entries {
            self.changed.push(id.clone());
        }
        node.acknowledge(vec![id]).await?;
        Ok(true)
    }

    /// Bytes of all users.
    pub fn users(&self) -> u64 {
        let entries = self.batches.values().flat_map(|batch| &batch.entries);
        entries
            .filter(|entry| entry.kind == i32::from(Kind::User))
            .map(|entry| entry.uplink + entry.downlink)
            .sum()
    }
}
