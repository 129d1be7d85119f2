//! The calls of the operator: `raynode.v1.OperatorService`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::identity::{self, Identity};
use super::{config, logs, status as overview, users};
use crate::node::Node;
use crate::panel::status;
use crate::proto::raynode::v1::operator_service_server::{OperatorService, OperatorServiceServer};
use crate::proto::raynode::v1::{
    AddKeyRequest, AddKeyResponse, Certificate, CompareConfigRequest, CompareConfigResponse,
    GetCertificateRequest, GetPairingRequest, GetPairingResponse, GetSettingsRequest,
    GetSettingsResponse, GetStatusRequest, GetStatusResponse, ImportCertificateRequest,
    ListKeysRequest, ListKeysResponse, ListUsageRequest, ListUsersRequest, LogLine,
    ReadLogsRequest, ReloadRequest, ReloadResponse, RenewCertificateRequest, RestartRequest,
    RestartResponse, RevokeKeyRequest, RevokeKeyResponse, Setting, StopRequest, StopResponse,
    UsageTotal, UserEntry,
};
use crate::replace;
use crate::settings::{Effective, InForce};
use crate::shutdown::Shutdown;

/// What the daemon knows of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// When it was started.
    pub started: SystemTime,
    /// Its own number.
    pub instance: Uuid,
    /// Where metrics are served, once they are.
    pub metrics: Arc<OnceLock<SocketAddr>>,
    /// What it was told to do.
    pub settings: Arc<InForce>,
    /// Who it is to panels.
    pub identity: Identity,
    /// The binary that takes over when it is asked to make way.
    pub binary: PathBuf,
}

/// The service, over one node.
#[derive(Clone, Debug)]
pub struct Operator {
    node: Node,
    facts: Facts,
    shutdown: Shutdown,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Operator {
    /// Tells of `node`, until `shutdown`.
    #[must_use]
    pub fn new(node: Node, facts: Facts, shutdown: Shutdown) -> Self {
        Self {
            node,
            facts,
            shutdown,
        }
    }

    /// The service as gRPC serves it, with messages of at most so many bytes.
    #[must_use]
    pub fn into_server(self, max_message: usize) -> OperatorServiceServer<Self> {
        OperatorServiceServer::new(self)
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(max_message)
    }
}

#[tonic::async_trait]
impl OperatorService for Operator {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let overview = overview::of(&self.node, &self.facts).await;
        Ok(Response::new(overview))
    }

    type ListUsersStream = Streamed<UserEntry>;

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<Self::ListUsersStream>, Status> {
        let users = users::list(&self.node, &request.into_inner()).await;
        let users = users.map_err(|error| status::of(&error))?;
        let users = tokio_stream::iter(users.into_iter().map(Ok));
        Ok(Response::new(Box::pin(users)))
    }

    type ListUsageStream = Streamed<UsageTotal>;

    async fn list_usage(
        &self,
        request: Request<ListUsageRequest>,
    ) -> Result<Response<Self::ListUsageStream>, Status> {
        let usage = users::usage(&self.node, request.into_inner().kind()).await;
        let usage = usage.map_err(|error| status::of(&error))?;
        let usage = tokio_stream::iter(usage.into_iter().map(Ok));
        Ok(Response::new(Box::pin(usage)))
    }

    type ReadLogsStream = Streamed<LogLine>;

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let request = request.into_inner();
        let filter = logs::Filter::new(&request).map_err(Status::invalid_argument)?;
        let lines = logs::read(self.node.log_viewer(), filter, &request);
        let ends = self.shutdown.token().clone().cancelled_owned();
        Ok(Response::new(Box::pin(
            futures_util::StreamExt::take_until(lines, ends),
        )))
    }

    async fn compare_config(
        &self,
        request: Request<CompareConfigRequest>,
    ) -> Result<Response<CompareConfigResponse>, Status> {
        let compared = self.node.compare(&request.into_inner().config).await;
        let compared = compared.map_err(|error| config::status_of(&error))?;
        Ok(Response::new(config::response(compared)))
    }

    async fn get_settings(
        &self,
        _: Request<GetSettingsRequest>,
    ) -> Result<Response<GetSettingsResponse>, Status> {
        let in_force = &self.facts.settings;
        let all = in_force.all();
        Ok(Response::new(GetSettingsResponse {
            settings: all.iter().cloned().map(Setting::from).collect(),
            file: in_force.file().display().to_string(),
            salt: in_force.salt().to_string(),
        }))
    }

    async fn reload(&self, _: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        tell_ourselves(Signal::SIGHUP)?;
        Ok(Response::new(ReloadResponse {}))
    }

    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        tracing::info!("the operator stops the node");
        tell_ourselves(Signal::SIGINT)?;
        Ok(Response::new(StopResponse {}))
    }

    async fn restart(
        &self,
        _: Request<RestartRequest>,
    ) -> Result<Response<RestartResponse>, Status> {
        let version = replace::check(&self.facts.binary).await.map_err(|reason| {
            let binary = self.facts.binary.display();
            Status::failed_precondition(format!("{binary} can't take over: {reason}"))
        })?;
        tell_ourselves(Signal::SIGUSR2)?;
        Ok(Response::new(RestartResponse { version }))
    }

    async fn get_pairing(
        &self,
        _: Request<GetPairingRequest>,
    ) -> Result<Response<GetPairingResponse>, Status> {
        let pairing = self.facts.identity.pairing();
        Ok(Response::new(
            pairing.map_err(|error| identity::of(&error))?,
        ))
    }

    async fn get_certificate(
        &self,
        _: Request<GetCertificateRequest>,
    ) -> Result<Response<Certificate>, Status> {
        Ok(Response::new(self.facts.identity.certificate()))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<Certificate>, Status> {
        let renewed = self.facts.identity.renew(&request.into_inner());
        renewed.map(Response::new)
    }

    async fn import_certificate(
        &self,
        request: Request<ImportCertificateRequest>,
    ) -> Result<Response<Certificate>, Status> {
        let ImportCertificateRequest { certificate, key } = request.into_inner();
        self.facts
            .identity
            .import((&certificate, &key))
            .map(Response::new)
    }

    async fn list_keys(
        &self,
        _: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        let names = self.facts.identity.key_ring.names();
        Ok(Response::new(ListKeysResponse { names }))
    }

    async fn add_key(
        &self,
        request: Request<AddKeyRequest>,
    ) -> Result<Response<AddKeyResponse>, Status> {
        let added = self.facts.identity.key_ring.add(&request.into_inner().name);
        let key = added.map_err(|error| identity::of_key(&error))?.to_string();
        Ok(Response::new(AddKeyResponse { key }))
    }

    async fn revoke_key(
        &self,
        request: Request<RevokeKeyRequest>,
    ) -> Result<Response<RevokeKeyResponse>, Status> {
        let name = request.into_inner().name;
        let revoked = self.facts.identity.key_ring.revoke(&name);
        let fresh = revoked.map_err(|error| identity::of_key(&error))?;
        Ok(Response::new(RevokeKeyResponse {
            key: fresh.map(|key| key.to_string()).unwrap_or_default(),
        }))
    }
}

/// The one way in which a node is told such things, whoever does it.
fn tell_ourselves(signal: Signal) -> Result<(), Status> {
    kill(Pid::this(), signal).map_err(|error| Status::internal(format!("{signal}: {error}")))
}

impl From<Effective> for Setting {
    fn from(effective: Effective) -> Self {
        let Effective {
            name,
            value,
            digest,
            from,
            live,
        } = effective;
        Self {
            name: name.to_owned(),
            value,
            from,
            live,
            digest,
        }
    }
}
