//! The port: plain HTTP/1.1, one request for each connection, and few of them at a time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::page::Page;
use super::text::Format;

/// How many connections are served at a time; more of them wait.
const PLACES: usize = 8;
/// The largest head of a request; the least that hyper knows.
const HEAD: usize = 8 << 10;
/// How long a client may take for its head.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection lasts at most.
const DEADLINE: Duration = Duration::from_secs(20);
/// Accepting fails when there are no descriptors left; asking at once again would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const PATH: &str = "/metrics";

/// Serves the page until it is dropped, and says where once it does. Without the port the node does everything else
/// all the same.
pub async fn serve(address: SocketAddr, page: Page, served_at: Arc<OnceLock<SocketAddr>>) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%address, %error, "metrics are not served, set METRICS_LISTEN to an address and a port that are free, or to off");
            return;
        }
    };
    tracing::info!(%address, "serving metrics");
    served_at.get_or_init(|| listener.local_addr().unwrap_or(address));
    let places = Arc::new(Semaphore::new(PLACES));
    let mut connections = JoinSet::new();
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let page = page.clone();
        connections.spawn(async move {
            let _place = place;
            drop(tokio::time::timeout(DEADLINE, connection(stream, page)).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, page: Page) {
    let answers = service_fn(move |request| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(answer(&request, &page).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answers);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection of somebody who looks at metrics ended");
    }
}

async fn answer(request: &Request<Incoming>, page: &Page) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return refusal(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let Some(text) = page.read().await else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "not in time\n");
    };
    let format = Format::wanted(request.headers());
    let mut response = Response::new(Full::new(format.of(&text).into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, format.content_type());
    response
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}
