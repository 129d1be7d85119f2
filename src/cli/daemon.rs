//! The daemon that runs with these settings, as its operator's commands see it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::failure::Failure;
use crate::operator::socket::{self, MAX_MESSAGE};
use crate::proto::raynode::v1::core_service_client::CoreServiceClient;
use crate::proto::raynode::v1::install_service_client::InstallServiceClient;
use crate::proto::raynode::v1::operator_service_client::OperatorServiceClient;

/// How long a daemon may take to take a call.
const DEADLINE: Duration = Duration::from_secs(5);

/// The way to a daemon that is there.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    channel: Channel,
}

impl Daemon {
    /// # Errors
    /// When nobody listens there.
    pub(super) async fn find(runtime_dir: &Path) -> Result<Self, Failure> {
        let socket = socket::path(runtime_dir);
        let absent = |reason: String| Failure::NoDaemon {
            socket: socket.clone(),
            reason,
        };
        // Of its own, for the reason: the channel hides it.
        let reached = UnixStream::connect(&socket).await;
        drop(reached.map_err(|error| absent(error.to_string()))?);
        let path = socket.clone();
        let endpoint = Endpoint::from_static("http://raynode.invalid").connect_timeout(DEADLINE);
        let connector = tower::service_fn(move |_: Uri| connect(path.clone()));
        let connected = endpoint.connect_with_connector(connector).await;
        let channel = connected.map_err(|error| absent(error.to_string()))?;
        Ok(Self { channel })
    }

    pub(super) fn operator(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn installing(&self) -> InstallServiceClient<Channel> {
        InstallServiceClient::new(self.channel.clone())
    }

    pub(super) fn cores(&self) -> CoreServiceClient<Channel> {
        CoreServiceClient::new(self.channel.clone())
    }
}

async fn connect(socket: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(socket).await.map(TokioIo::new)
}
