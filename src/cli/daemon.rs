//! The daemon that runs with these settings, as its operator's commands see it.

use std::io;
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

/// How long a daemon may take to answer what it has at hand.
const DEADLINE: Duration = Duration::from_secs(10);
/// The same for what starts another core first.
const LONG_DEADLINE: Duration = Duration::from_secs(180);

/// The way to a daemon that is there.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    quick: Channel,
    patient: Channel,
}

impl Daemon {
    /// # Errors
    /// When nobody listens there, or somebody who may not be asked.
    pub(super) async fn find(runtime_dir: &Path) -> Result<Self, Failure> {
        let socket = socket::path(runtime_dir);
        // Of its own, for the reason: the channel hides it.
        if let Err(error) = UnixStream::connect(&socket).await {
            return Err(match error.kind() {
                io::ErrorKind::PermissionDenied => Failure::NotAllowed { socket, error },
                _ => Failure::NoDaemon {
                    socket,
                    reason: error.to_string(),
                },
            });
        }
        let way = |deadline| {
            let socket = socket.clone();
            // Until the first answer: what comes piece by piece may take as long as it likes.
            Endpoint::from_static("http://raynode.invalid")
                .timeout(deadline)
                .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                    connect(socket.clone())
                }))
        };
        Ok(Self {
            quick: way(DEADLINE),
            patient: way(LONG_DEADLINE),
        })
    }

    pub(super) fn operator(&self) -> OperatorServiceClient<Channel> {
        operator(self.quick.clone())
    }

    /// For what Xray is asked first.
    pub(super) fn patient_operator(&self) -> OperatorServiceClient<Channel> {
        operator(self.patient.clone())
    }

    pub(super) fn installing(&self) -> InstallServiceClient<Channel> {
        InstallServiceClient::new(self.patient.clone())
    }

    /// What is installed.
    pub(super) fn installed(&self) -> InstallServiceClient<Channel> {
        InstallServiceClient::new(self.quick.clone())
    }

    /// The cores that run.
    pub(super) fn cores(&self) -> CoreServiceClient<Channel> {
        CoreServiceClient::new(self.quick.clone())
    }

    /// The same, to start another one.
    pub(super) fn fresh_core(&self) -> CoreServiceClient<Channel> {
        CoreServiceClient::new(self.patient.clone())
    }
}

fn operator(channel: Channel) -> OperatorServiceClient<Channel> {
    OperatorServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

async fn connect(socket: PathBuf) -> io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(socket).await.map(TokioIo::new)
}
