//! The node's own API for its cores: `raynode.v1.CoreService`.

use tonic::{Request, Response, Status};

use super::status;
use crate::node::{CoreInfo, Node};
use crate::proto::raynode::v1::core_service_server::{CoreService, CoreServiceServer};
use crate::proto::raynode::v1::{
    Core, Handovers, ListCoresRequest, ListCoresResponse, RenewCoreRequest, RenewCoreResponse, Role,
};

/// The service, over one node.
#[derive(Clone, Debug)]
pub struct Cores {
    node: Node,
}

impl Cores {
    /// Tells of the cores of `node`.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self { node }
    }

    /// The service as gRPC serves it, with messages of at most so many bytes.
    #[must_use]
    pub fn into_server(self, max_message: usize) -> CoreServiceServer<Self> {
        CoreServiceServer::new(self)
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(max_message)
    }
}

#[tonic::async_trait]
impl CoreService for Cores {
    async fn list_cores(
        &self,
        _: Request<ListCoresRequest>,
    ) -> Result<Response<ListCoresResponse>, Status> {
        let (cores, tally) = self.node.cores();
        Ok(Response::new(ListCoresResponse {
            cores: cores.iter().map(core).collect(),
            handovers: Some(Handovers {
                steered: tally.steered,
                partly_steered: tally.partly,
                plain: tally.plain,
                refused: tally.refused,
                restarts: tally.restarts,
            }),
        }))
    }

    async fn renew_core(
        &self,
        _: Request<RenewCoreRequest>,
    ) -> Result<Response<RenewCoreResponse>, Status> {
        let renewed = self.node.restart_core().await;
        renewed.map_err(|error| status::of(&error))?;
        let (cores, _) = self.node.cores();
        Ok(Response::new(RenewCoreResponse {
            core: cores.first().map(core),
        }))
    }
}

fn core(info: &CoreInfo) -> Core {
    let role = if info.serves {
        Role::Serving
    } else {
        Role::Draining
    };
    Core {
        id: info.id.to_string(),
        pid: info.pid,
        version: info.version.to_string(),
        role: role.into(),
        seconds: info.since.elapsed().as_secs(),
        memory: info.memory,
        open_files: info.open_files,
        connections: info.connections,
    }
}
