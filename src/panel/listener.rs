//! The port: accepts, encrypts, serves, and lets go in order.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use super::client_cert::Certified;
use super::crowd::Crowd;
use super::delivery::{Frames, Wire};
use super::doorman::Peer;
use super::gate::Counted;
use super::ports;
use super::usage::Usage;
use crate::settings::Limits;
use crate::shutdown::{How, Shutdown};
use crate::telemetry::metrics::Connections;

/// Room for a panel far away: 64 KiB per round trip would make a large Start take minutes.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// A peer that has vanished is found by pings: a log viewer could otherwise stay open forever.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(20);
/// How long replies that are on their way are waited for at the end.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// How long replies get from the node's hands to the wire.
const FLUSH: Duration = Duration::from_millis(150);
/// How long a connection gets to say goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);
/// Accepting fails when there are no descriptors left; asking at once again would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What answers the requests of one port.
pub trait Answers:
    Service<Request<Body>, Response = Response<Counted>, Error = Infallible> + Clone + Send + 'static
{
}

impl<S> Answers for S where
    S: Service<Request<Body>, Response = Response<Counted>, Error = Infallible>
        + Clone
        + Send
        + 'static
{
}

/// What is waited for at the end.
#[derive(Clone, Debug, Default)]
pub struct UnderWay {
    /// Replies that are on their way to the wire.
    pub replies: TaskTracker,
    /// Reports of usage of which it is not known yet whether they arrived.
    pub reports: TaskTracker,
}

/// A bound port.
pub struct Listener {
    tcp: TcpListener,
    tls: TlsAcceptor,
    limits: Limits,
    open: Connections,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

impl Listener {
    /// Binds the port, so that one that is taken is known before anything else is started. Its connections
    /// are counted as `open`.
    ///
    /// # Errors
    /// When it can't be had.
    pub async fn bind(
        address: SocketAddr,
        tls: TlsAcceptor,
        limits: Limits,
        open: Connections,
    ) -> io::Result<Self> {
        let tcp = match ports::inherited(address) {
            Some(port) => TcpListener::from_std(port)?,
            None => TcpListener::bind(address).await?,
        };
        Ok(Self {
            tcp,
            tls,
            limits,
            open,
        })
    }

    /// Where it listens; with port 0 this is the one that was given.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `shutdown`; returns when every connection is closed, with the port when it is to
    /// stay open. Replies that are on their way are waited for before any client is told to go, because
    /// one that is told may hang up at once and lose what it has asked for.
    pub async fn serve<S: Answers>(
        self,
        service: S,
        under_way: UnderWay,
        shutdown: Shutdown,
    ) -> Option<std::net::TcpListener>
    where
        S::Future: Send,
    {
        let connections = TaskTracker::new();
        let goodbye = CancellationToken::new();
        let limits = self.limits;
        let crowd = Crowd::new(limits.connections, limits.connections_per_address);
        loop {
            let room = tokio::select! {
                biased;
                () = shutdown.begun() => break,
                room = crowd.room() => room,
            };
            let (stream, peer) = tokio::select! {
                biased;
                () = shutdown.begun() => break,
                accepted = self.tcp.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let peer = peer.ip();
            let Some(place) = room.and_then(|room| crowd.enter(peer, room)) else {
                tracing::debug!(%peer, "closed a connection: too many from one address");
                continue;
            };
            let (tls, service, goodbye) = (self.tls.clone(), service.clone(), goodbye.clone());
            let reports = under_way.reports.clone();
            let open = self.open.open();
            connections.spawn(async move {
                let _place = (place, open);
                let wire = Wire::new(&stream, reports);
                let stream = (stream, wire);
                let served = connection(stream, peer, limits, tls, service, goodbye);
                if let Err(error) = served.await {
                    tracing::debug!(%peer, error, "a connection ended");
                }
            });
        }
        // Who connects from now on waits for the next daemon, or is refused.
        let port = (shutdown.how() == How::Exec).then_some(self.tcp);
        under_way.replies.close();
        if tokio::time::timeout(REPLY_DEADLINE, under_way.replies.wait())
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
        port.and_then(|port| port.into_std().ok())
    }
}

async fn connection<S: Answers>(
    (stream, wire): (TcpStream, Arc<Wire>),
    peer: IpAddr,
    limits: Limits,
    tls: TlsAcceptor,
    service: S,
    goodbye: CancellationToken,
) -> Result<(), String>
where
    S::Future: Send,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection keeps small writes back");
    }
    let stream = wire.meter(stream);
    let stream = tokio::select! {
        biased;
        () = goodbye.cancelled() => return Ok(()),
        stream = tokio::time::timeout(limits.handshake_timeout, tls.accept(stream)) => stream,
    };
    let stream = stream
        .map_err(|_| "no TLS handshake in time".to_owned())?
        .map_err(|error| format!("TLS handshake: {error}"))?;

    // The handshake has checked it: who shows a certificate that is not trusted is not here.
    let certified = stream.get_ref().1.peer_certificates().is_some();
    let stream = Frames::new(stream, Arc::clone(&wire));
    let reports = Arc::clone(&wire);
    let usage = Arc::new(Usage::default());
    let mark = Arc::clone(&usage);
    let service = service.map_request(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&mark));
        request.extensions_mut().insert(Arc::clone(&wire));
        request.extensions_mut().insert(Peer(peer));
        if certified {
            request.extensions_mut().insert(Certified);
        }
        request
    });
    // The first bytes say which version of HTTP it is. What ALPN agreed on does not: the panel's own
    // REST client asks for h2 and then speaks HTTP/1.1.
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header as usize);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(limits.header)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_DEADLINE);
    let service = TowerToHyperService::new(service);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        biased;
        () = goodbye.cancelled() => {}
        () = nobody_admitted(&usage, limits.admission_timeout) => {
            return Err("nobody showed a key in time".to_owned());
        }
        () = reports.given_up() => {
            return Err("a report of usage got nowhere".to_owned());
        }
        () = usage.idle(limits.idle_timeout) => {}
        ended = connection.as_mut() => return ended.map_err(|error| error.to_string()),
    }
    // Replies that were handed over may still wait for the wire; a GOAWAY would overtake them, and
    // there are clients that hang up at once when they see one.
    if let Ok(ended) = tokio::time::timeout(FLUSH, connection.as_mut()).await {
        return ended.map_err(|error| error.to_string());
    }
    connection.as_mut().graceful_shutdown();
    match tokio::time::timeout(GOODBYE_DEADLINE, connection).await {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(_) => Err("closed before the client did".to_owned()),
    }
}

/// Returns only for a connection on which nobody has shown a key in time.
async fn nobody_admitted(usage: &Usage, patience: Duration) {
    tokio::time::sleep(patience).await;
    if usage.is_admitted() {
        std::future::pending::<()>().await;
    }
}
