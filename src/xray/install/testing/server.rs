//! A server of HTTP that also does what servers should not: word for word what a test wants.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// What is sent for a path, and whether the connection is closed behind it.
#[derive(Clone)]
pub(crate) struct Reply {
    bytes: Vec<u8>,
    closes: bool,
}

impl Reply {
    pub(crate) fn raw(text: &str) -> Self {
        Self {
            bytes: text.as_bytes().to_vec(),
            closes: true,
        }
    }

    pub(crate) fn ok(body: &[u8]) -> Self {
        let mut reply = Self::with_length(body.len());
        reply.bytes.extend_from_slice(body);
        reply
    }

    /// A body of so many bytes is promised, and none sent.
    pub(crate) fn with_length(length: usize) -> Self {
        Self::raw(&format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
        ))
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::raw(&format!(
            "HTTP/1.1 {status} Sorry\r\ncontent-length: 0\r\n\r\n"
        ))
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::raw(&format!(
            "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"
        ))
    }

    pub(crate) fn and(mut self, more: &[u8]) -> Self {
        self.bytes.extend_from_slice(more);
        self
    }

    /// Silent behind that, and open.
    pub(crate) fn then_silence(mut self) -> Self {
        self.closes = false;
        self
    }
}

type Routes = HashMap<String, Reply>;

/// It serves until it is dropped.
pub(crate) struct Server {
    scheme: &'static str,
    address: SocketAddr,
    routes: Arc<Mutex<Routes>>,
    asked: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl Server {
    /// Plain HTTP; 404 for all paths that it is told nothing of.
    pub(crate) async fn start() -> Self {
        Self::serve(None).await
    }

    /// HTTPS, and the authority that vouches for it.
    pub(crate) async fn start_tls() -> (Self, RootCertStore) {
        let names = vec!["127.0.0.1".to_owned()];
        let pair = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
        let certificate = pair.cert.der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        (
            Self::serve(Some(TlsAcceptor::from(Arc::new(config)))).await,
            roots,
        )
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Arc::<Mutex<Routes>>::default();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (known, told) = (Arc::clone(&routes), Arc::clone(&asked));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (known, told, tls) = (Arc::clone(&known), Arc::clone(&told), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => answer(stream, &known, &told).await,
                        // A client that does not believe us goes.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => answer(stream, &known, &told).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self {
            scheme,
            address,
            routes,
            asked,
            _serving: serving,
        }
    }

    pub(crate) fn on(&self, path: &str, reply: Reply) {
        self.routes.lock().unwrap().insert(path.to_owned(), reply);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// The paths that were asked for, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    routes: &Mutex<Routes>,
    asked: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut first = String::new();
    stream.read_line(&mut first).await.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        stream
            .read_line(&mut line)
            .await
            .ok()
            .filter(|read| *read > 0)?;
    }
    let reply = routes.lock().unwrap().get(&path).cloned();
    asked.lock().unwrap().push(path);
    let reply = reply.unwrap_or_else(|| Reply::status(404));
    stream.write_all(&reply.bytes).await.ok()?;
    stream.flush().await.ok()?;
    if !reply.closes {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await.ok()
}
