//! A panel that calls over REST, in HTTP/1.1 or HTTP/2.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use super::NodeProcess;
use super::panel::tls_offering;

/// How a client opens its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1 after ALPN agreed on nothing.
    One,
    /// HTTP/1.1 after ALPN agreed on h2: what the panel's own client does.
    OneDespiteH2,
    /// HTTP/2.
    Two,
}

pub struct Rest<'a> {
    node: &'a NodeProcess,
    port: u16,
    http: Http,
    tls: Option<TlsConnector>,
    pub headers: Vec<(&'static str, String)>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn message<M: prost::Message + Default>(&self) -> M {
        assert_eq!(
            self.status,
            StatusCode::OK,
            "{:?}",
            String::from_utf8_lossy(&self.body)
        );
        M::decode(self.body.clone()).unwrap()
    }
}

impl<'a> Rest<'a> {
    pub fn of(node: &'a NodeProcess, http: Http) -> Self {
        Self::with_key(node, http, Some(node.api_key))
    }

    pub fn with_key(node: &'a NodeProcess, http: Http, key: Option<Uuid>) -> Self {
        let headers = key
            .map(|key| ("x-api-key", key.to_string()))
            .into_iter()
            .collect();
        Self {
            node,
            port: node.port,
            http,
            tls: None,
            headers,
        }
    }

    /// The same on another port of the node.
    pub fn on(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The same over TLS of its own.
    pub fn over(mut self, tls: TlsConnector) -> Self {
        self.tls = Some(tls);
        self
    }

    async fn dial(&self) -> TlsStream<TcpStream> {
        let offered: &[&str] = match self.http {
            Http::One => &[],
            Http::OneDespiteH2 | Http::Two => &["h2"],
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = self.tls.clone();
        tls.unwrap_or_else(|| tls_offering(self.node, offered))
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// Sends a request on a connection of its own and returns the reply with its body to come.
    pub async fn open(&self, method: Method, path: &str, body: Bytes) -> http::Response<Incoming> {
        let io = TokioIo::new(self.dial().await);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://127.0.0.1{path}"));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if self.http == Http::Two {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            return sender
                .send_request(request.body(Full::new(body)).unwrap())
                .await
                .unwrap();
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut request = request
            .header("host", "127.0.0.1")
            .body(Full::new(body))
            .unwrap();
        *request.uri_mut() = path.parse().unwrap();
        sender.send_request(request).await.unwrap()
    }

    pub async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let (parts, body) = self.open(method, path, body.into()).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    pub async fn get(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.call(Method::GET, path, body).await
    }

    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.call(Method::PUT, path, body).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.call(Method::POST, path, body).await
    }
}
