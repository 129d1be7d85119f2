//! The port: accepts, encrypts, serves, and lets go in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::gate::Admitted;

/// How long a client may take for the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may live without anybody showing a key on it.
const ADMISSION_DEADLINE: Duration = Duration::from_secs(30);
/// How many connections there may be; a panel needs a handful.
const MAX_CONNECTIONS: usize = 1024;
/// How many calls one connection may have open at once.
const MAX_STREAMS: u32 = 256;
/// Room for a panel far away: 64 KiB per round trip would make a large Start take minutes.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// A peer that has vanished is found by pings: a log viewer could otherwise stay open forever.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(20);
/// How long replies that are on their way are waited for at the end.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection gets to say goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);
/// Accepting fails when there are no descriptors left; asking at once again would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound port.
pub struct Listener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl Listener {
    /// Binds the port, so that one that is taken is known before anything else is started.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn bind(address: SocketAddr, tls: TlsAcceptor) -> io::Result<Self> {
        Ok(Self {
            tcp: TcpListener::bind(address).await?,
            tls,
        })
    }

    /// Where it listens; with port 0 this is the one that was given.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `shutdown`; returns when every connection is closed. `replies` are those that
    /// are on their way; they are waited for before any client is told to go, because one that is
    /// told may hang up at once and lose what it has asked for.
    pub async fn serve<S, B>(self, service: S, replies: TaskTracker, shutdown: CancellationToken)
    where
        S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let connections = TaskTracker::new();
        let goodbye = CancellationToken::new();
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                place = Arc::clone(&room).acquire_owned() => place,
            };
            let (stream, peer) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.tcp.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (tls, service, goodbye) = (self.tls.clone(), service.clone(), goodbye.clone());
            connections.spawn(async move {
                let _place = place;
                if let Err(error) = connection(stream, tls, service, goodbye).await {
                    tracing::debug!(%peer, error, "a connection ended");
                }
            });
        }
        drop(self.tcp);
        replies.close();
        if tokio::time::timeout(REPLY_DEADLINE, replies.wait())
            .await
            .is_err()
        {
            tracing::warn!("replies are still on their way, not waiting any longer");
        }
        goodbye.cancel();
        connections.close();
        if tokio::time::timeout(
            GOODBYE_DEADLINE + Duration::from_secs(1),
            connections.wait(),
        )
        .await
        .is_err()
        {
            tracing::debug!("connections are still open");
        }
    }
}

async fn connection<S, B>(
    stream: TcpStream,
    tls: TlsAcceptor,
    service: S,
    goodbye: CancellationToken,
) -> Result<(), String>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection keeps small writes back");
    }
    let stream = tokio::select! {
        biased;
        () = goodbye.cancelled() => return Ok(()),
        stream = tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(stream)) => stream,
    };
    let stream = stream
        .map_err(|_| format!("no TLS handshake within {} s", HANDSHAKE_DEADLINE.as_secs()))?
        .map_err(|error| format!("TLS handshake: {error}"))?;

    let admitted = Arc::new(Admitted::default());
    let mark = Arc::clone(&admitted);
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&mark));
        request
    });
    let mut connection = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_DEADLINE)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
    );
    tokio::select! {
        biased;
        () = goodbye.cancelled() => connection.as_mut().graceful_shutdown(),
        () = nobody_admitted(&admitted) => return Err("nobody showed a key in time".to_owned()),
        ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
    }
    match tokio::time::timeout(GOODBYE_DEADLINE, connection).await {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(_) => Err("closed before the client did".to_owned()),
    }
}

/// Returns only for a connection on which nobody has shown a key in time.
async fn nobody_admitted(admitted: &Admitted) {
    tokio::time::sleep(ADMISSION_DEADLINE).await;
    if admitted.any() {
        std::future::pending::<()>().await;
    }
}
