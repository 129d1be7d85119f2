//! A panel, as far as it calls a node: gRPC over TLS, trusting the node's own certificate.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use raynode::panel::wire;
use raynode::proto::raynode::v1::core_service_client::CoreServiceClient;
use raynode::proto::service::node_service_client::NodeServiceClient;
use raynode::proto::service::{BaseInfoResponse, Empty, Stat, StatRequest, StatType, User};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::NodeProcess;

pub type Client = NodeServiceClient<InterceptedService<Channel, Headers>>;

/// The metadata that every call carries.
#[derive(Clone, Default)]
pub struct Headers(pub Vec<(&'static str, String)>);

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in &self.0 {
            request
                .metadata_mut()
                .insert(*name, MetadataValue::try_from(value).unwrap());
        }
        Ok(request)
    }
}

#[derive(Clone)]
pub struct Panel {
    pub client: Client,
}

/// TLS as a panel's client sets it up: the node's certificate is its own authority.
pub fn tls(node: &NodeProcess) -> tokio_rustls::TlsConnector {
    tls_offering(node, &["h2"])
}

/// The same with these protocols offered by ALPN.
pub fn tls_offering(node: &NodeProcess, protocols: &[&str]) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(node.certificate()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    Arc::new(config).into()
}

/// TLS of that version with a client certificate.
pub fn tls_showing(
    node: &NodeProcess,
    certificate: &Path,
    key: &Path,
    version: &'static rustls::SupportedProtocolVersion,
) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(node.certificate()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signing = provider
        .key_provider
        .load_private_key(PrivateKeyDer::from_pem_file(key).unwrap());
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    // Not checked against each other: a client without the right key is one of the cases.
    let pair = Arc::new(rustls::sign::CertifiedKey::new(chain, signing.unwrap()));
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config).into()
}

/// A connection to the node, opened when it is needed.
pub fn channel(node: &NodeProcess) -> Channel {
    channel_over(tls(node), node.port)
}

fn channel_over(tls: tokio_rustls::TlsConnector, port: u16) -> Channel {
    Endpoint::from_static("https://node.invalid")
        .initial_stream_window_size(64 << 20)
        .initial_connection_window_size(64 << 20)
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = TcpStream::connect(("127.0.0.1", port)).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("127.0.0.1").unwrap();
                tls.connect(name, stream).await.map(TokioIo::new)
            }
        }))
}

/// The node's own API for its cores.
pub fn cores(node: &NodeProcess) -> CoreServiceClient<InterceptedService<Channel, Headers>> {
    let headers = Headers(vec![("x-api-key", node.api_key.to_string())]);
    CoreServiceClient::with_interceptor(channel(node), headers)
}

impl Panel {
    /// A panel that shows the node's API key.
    pub fn of(node: &NodeProcess) -> Self {
        Self::with(node, &[("x-api-key", node.api_key.to_string())])
    }

    /// A panel that shows whatever it is told to.
    pub fn with(node: &NodeProcess, headers: &[(&'static str, String)]) -> Self {
        Self::over(tls(node), node.port, headers)
    }

    /// The same over TLS of its own.
    pub fn over(
        tls: tokio_rustls::TlsConnector,
        port: u16,
        headers: &[(&'static str, String)],
    ) -> Self {
        let channel = channel_over(tls, port);
        let client = NodeServiceClient::with_interceptor(channel, Headers(headers.to_vec()))
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(usize::MAX);
        Self { client }
    }

    pub async fn start(
        &self,
        config: &serde_json::Value,
        users: &[User],
    ) -> Result<BaseInfoResponse, Status> {
        self.start_backend(backend(config, users)).await
    }

    pub async fn start_backend(&self, backend: wire::Backend) -> Result<BaseInfoResponse, Status> {
        Ok(self.client.clone().start(backend).await?.into_inner())
    }

    pub async fn stop(&self) -> Result<(), Status> {
        self.client.clone().stop(Empty {}).await.map(drop)
    }

    pub async fn info(&self) -> BaseInfoResponse {
        self.client
            .clone()
            .get_base_info(Empty {})
            .await
            .unwrap()
            .into_inner()
    }

    pub async fn sync_user(&self, user: User) -> Result<(), Status> {
        self.sync_each(vec![user]).await
    }

    /// One stream with all of them.
    pub async fn sync_each(&self, users: Vec<User>) -> Result<(), Status> {
        self.client
            .clone()
            .sync_user(tokio_stream::iter(users))
            .await
            .map(drop)
    }

    pub async fn sync_all(&self, users: &[User]) -> Result<(), Status> {
        self.client
            .clone()
            .sync_users(wire::UserList {
                users: encoded(users),
            })
            .await
            .map(drop)
    }

    pub async fn sync_chunked(&self, users: &[User], chunk: usize) -> Result<(), Status> {
        let count = users.len().div_ceil(chunk) as u64;
        let chunks: Vec<wire::UsersChunk> = users
            .chunks(chunk)
            .zip(0..)
            .map(|(users, index)| wire::UsersChunk {
                users: encoded(users),
                index,
                last: index + 1 == count,
            })
            .collect();
        self.sync_chunks(chunks).await
    }

    pub async fn sync_chunks(&self, chunks: Vec<wire::UsersChunk>) -> Result<(), Status> {
        self.client
            .clone()
            .sync_users_chunked(tokio_stream::iter(chunks))
            .await
            .map(drop)
    }

    pub async fn stats(
        &self,
        r#type: StatType,
        name: &str,
        reset: bool,
    ) -> Result<Vec<Stat>, Status> {
        let request = StatRequest {
            name: name.to_owned(),
            reset,
            r#type: r#type.into(),
        };
        Ok(self
            .client
            .clone()
            .get_stats(request)
            .await?
            .into_inner()
            .stats)
    }

    /// Bytes up and down of one name.
    pub async fn traffic(&self, r#type: StatType, name: &str) -> (i64, i64) {
        let stats = self.stats(r#type, name, false).await.unwrap();
        let sum = |direction: &str| {
            stats
                .iter()
                .filter(|stat| stat.name == name && stat.r#type == direction)
                .map(|stat| stat.value)
                .sum()
        };
        (sum("uplink"), sum("downlink"))
    }
}

pub fn backend(config: &serde_json::Value, users: &[User]) -> wire::Backend {
    wire::Backend {
        config: config.to_string(),
        users: encoded(users),
        ..wire::Backend::default()
    }
}

pub fn encoded(users: &[User]) -> Vec<bytes::Bytes> {
    users.iter().map(wire::encode).collect()
}
