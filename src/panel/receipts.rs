//! The node's own API for usage, with receipts: `raynode.v1.UsageService`.

use tonic::{Request, Response, Status};

use super::status;
use crate::node::Node;
use crate::proto::raynode::v1::usage_service_server::{UsageService, UsageServiceServer};
use crate::proto::raynode::v1::{
    AcknowledgeUsageRequest, AcknowledgeUsageResponse, CollectUsageRequest, CollectUsageResponse,
    Kind, ListOnlineUsersRequest, ListOnlineUsersResponse, OnlineAddress, OnlineUser, UsageEntry,
};
use crate::usage::Address;
use crate::usage::book::Entry;
use crate::usage::counter;

/// The largest batch: less than a MiB with names of usual length.
const MOST_ENTRIES: usize = 10_000;
/// How many receipts one call brings at most.
const MOST_RECEIPTS: usize = 1000;

/// The service, over one node.
#[derive(Clone, Debug)]
pub struct Receipts {
    node: Node,
}

impl Receipts {
    /// Hands out what `node` has counted.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self { node }
    }

    /// The service as gRPC serves it, with messages of at most so many bytes.
    #[must_use]
    pub fn into_server(self, max_message: usize) -> UsageServiceServer<Self> {
        UsageServiceServer::new(self)
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(max_message)
    }
}

#[tonic::async_trait]
impl UsageService for Receipts {
    async fn collect_usage(
        &self,
        request: Request<CollectUsageRequest>,
    ) -> Result<Response<CollectUsageResponse>, Status> {
        let CollectUsageRequest { cursor, limit } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(limit) if limit > 0 => limit.min(MOST_ENTRIES),
            _ => MOST_ENTRIES,
        };
        let batch = self.node.collect(cursor, limit).await;
        let batch = batch.map_err(|error| status::of(&error))?;
        Ok(Response::new(match batch {
            Some(batch) => CollectUsageResponse {
                batch: batch.id,
                entries: batch.entries.iter().map(entry).collect(),
                more: batch.more,
            },
            None => CollectUsageResponse::default(),
        }))
    }

    async fn acknowledge_usage(
        &self,
        request: Request<AcknowledgeUsageRequest>,
    ) -> Result<Response<AcknowledgeUsageResponse>, Status> {
        let batches = request.into_inner().batches;
        if batches.len() > MOST_RECEIPTS {
            let text = format!("more than {MOST_RECEIPTS} receipts in one call");
            return Err(Status::invalid_argument(text));
        }
        let acknowledged = self.node.acknowledge(batches).await;
        let acknowledged = acknowledged.map_err(|error| status::of(&error))?;
        Ok(Response::new(AcknowledgeUsageResponse {
            acknowledged: u32::try_from(acknowledged).unwrap_or(u32::MAX),
        }))
    }

    async fn list_online_users(
        &self,
        _: Request<ListOnlineUsersRequest>,
    ) -> Result<Response<ListOnlineUsersResponse>, Status> {
        let users = self.node.online_users().await;
        let users = users.map_err(|error| status::of(&error))?.into_iter();
        let users = users.map(|user| OnlineUser {
            email: user.email,
            addresses: user.addresses.into_iter().map(Into::into).collect(),
        });
        Ok(Response::new(ListOnlineUsersResponse {
            users: users.collect(),
        }))
    }
}

impl From<Address> for OnlineAddress {
    fn from(address: Address) -> Self {
        Self {
            ip: address.ip,
            latest: address.latest,
            since: address.since,
        }
    }
}

impl From<counter::Kind> for Kind {
    fn from(kind: counter::Kind) -> Self {
        match kind {
            counter::Kind::User => Self::User,
            counter::Kind::Inbound => Self::Inbound,
            counter::Kind::Outbound => Self::Outbound,
        }
    }
}

fn entry(entry: &Entry) -> UsageEntry {
    UsageEntry {
        kind: Kind::from(entry.kind).into(),
        name: entry.name.as_ref().to_owned(),
        uplink: entry.bytes.up,
        downlink: entry.bytes.down,
    }
}
