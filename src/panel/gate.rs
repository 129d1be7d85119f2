//! What every call passes, whichever method it names: authentication, the pulse of the session,
//! and the count of replies that must get out before the node ends.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use super::auth::{Denied, Keys, Shown};
use super::client_cert::Certified;
use super::delivery::{Track, Wire};
use super::doorman::{Doorman, Peer, Tokens};
use super::front::{self, Front};
use super::rest::Refusal;
use super::usage::Usage;
use super::{health, methods};
use crate::node::Node;
use crate::usage::ledger::Ticket;

/// The call that takes control.
const START: &str = "/service.NodeService/Start";
/// What tonic says of a message above the limit. Go servers answer `RESOURCE_EXHAUSTED`, and so do
/// we: panels know that code.
const TOO_LARGE: &str = "message length too large";

/// Wraps the service that answers.
#[derive(Clone, Debug)]
pub struct Gate {
    front: Front,
    guard: Arc<Guard>,
}

/// What all connections share.
#[derive(Debug)]
struct Guard {
    keys: Arc<Keys>,
    node: Node,
    doorman: Arc<Doorman>,
}

impl Gate {
    /// Lets those callers through to `front` who show one of `keys`.
    #[must_use]
    pub fn new(front: Front, keys: Arc<Keys>, node: Node, doorman: Arc<Doorman>) -> Self {
        let guard = Guard {
            keys,
            node,
            doorman,
        };
        Self {
            front,
            guard: Arc::new(guard),
        }
    }
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.front.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let guard = Arc::clone(&self.guard);
        if let Err(denied) = guard.admit(&request) {
            let (head, _) = request.into_parts();
            return Box::pin(async move { Ok(guard.turn_away(denied, &head).await) });
        }
        // A log goes on for as long as somebody looks at it: nobody waits for its end.
        let path = request.uri().path().trim_end_matches('/');
        let endless = path.ends_with("/GetLogs") || path == "/logs" || path.ends_with("/Watch");
        let tokens = guard.doorman.let_in(request.extensions(), endless);
        let grpc = front::is_grpc(request.headers());
        let wire = request.extensions().get::<Arc<Wire>>().map(Arc::clone);
        let version = request.version();
        let observed = guard.doorman.observe(methods::called(&request));
        // The clone is not ready yet; the one that was asked is.
        let ready = self.front.clone();
        let answer = std::mem::replace(&mut self.front, ready).call(request);
        Box::pin(async move {
            let Ok(response) = AssertUnwindSafe(answer).catch_unwind().await else {
                let response = after_a_panic(grpc);
                observed.answered(&response);
                return Ok(response.map(Counted::uncounted));
            };
            let mut response = response?;
            let report = response.extensions_mut().remove::<Ticket>();
            let mut response = match Status::from_header_map(response.headers()) {
                Some(status) if status.code() != Code::Ok => as_go_says_it(&status, response),
                _ if !response.status().is_success() => response,
                _ => {
                    guard.node.touch();
                    response
                }
            };
            observed.answered(&response);
            let track = match (report, wire) {
                (Some(ticket), Some(wire)) => {
                    let ((name, value), track) = wire.send(ticket, version);
                    response.headers_mut().insert(name, value);
                    Some(track)
                }
                _ => None,
            };
            Ok(response.map(|body| Counted::new(body, tokens, track)))
        })
    }
}

impl Guard {
    /// Whether this request may pass. Only a key or a session lets one pass, except for the one call
    /// that probes make without.
    fn admit(&self, request: &Request<Body>) -> Result<(), Denied> {
        let path = request.uri().path();
        if path == health::CHECK {
            return Ok(());
        }
        let is_start = path == START || path.trim_end_matches('/') == "/start";
        let session = self.node.session().map(|session| session.id());
        let certified = request.extensions().get::<Certified>().is_some();
        let shown = match self.keys.admit(request.headers(), session) {
            Ok(shown) => shown,
            // Panels of the session generations have no key: their certificate opens a session.
            Err(_) if certified && is_start => Shown::Certificate,
            // Who shows no key at all is of those generations, and hears what they know.
            Err(_) if certified && session.is_none() && !has_key(request) => {
                return Err(Denied::NoSession);
            }
            Err(denied) => return Err(denied),
        };
        if is_start {
            let peer = request.extensions().get::<Peer>();
            let peer = peer.map(|peer| tracing::field::display(peer.0));
            tracing::info!(%shown, peer, "a panel sends a start");
        }
        if let Some(usage) = request.extensions().get::<Arc<Usage>>() {
            usage.admit();
        }
        Ok(())
    }

    /// Tells a caller why, after the wait that his address has earned.
    async fn turn_away(&self, denied: Denied, head: &Parts) -> Response<Counted> {
        let reason = denied.to_string();
        self.doorman.turn_away(&head.extensions, &reason).await;
        let response = if front::is_grpc(&head.headers) {
            Status::from(denied).into_http()
        } else {
            Refusal::from(denied.over_rest(&head.headers)).into_response()
        };
        response.map(Counted::uncounted)
    }
}

fn has_key(request: &Request<Body>) -> bool {
    request.headers().contains_key("x-api-key")
}

/// The caller gets a number; what went wrong is none of his business.
fn after_a_panic(grpc: bool) -> Response<Body> {
    let text = panic_text();
    if grpc {
        Status::internal(text).into_http()
    } else {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
    }
}

/// What is said of a call that panicked, with a number that the log has, too.
pub(super) fn panic_text() -> String {
    let id = format!("{:08x}", rand::random::<u32>());
    tracing::error!(id, "a call panicked");
    format!("internal error {id}: the node's log says more")
}

fn as_go_says_it(status: &Status, response: Response<Body>) -> Response<Body> {
    if status.code() == Code::OutOfRange && status.message().contains(TOO_LARGE) {
        return Status::resource_exhausted(status.message()).into_http();
    }
    response
}

/// A reply that counts as being on its way, and its call as open, until its last byte is handed over.
#[derive(Debug)]
pub struct Counted {
    body: Body,
    _tokens: Tokens,
    report: Option<Report>,
}

/// What is noted of the body of a report of usage.
#[derive(Debug)]
struct Report {
    track: Track,
    /// How much of it has not been handed over, where that was said in advance: its end is not asked for then.
    left: Option<u64>,
}

impl Counted {
    pub(super) fn new(body: Body, tokens: Tokens, track: Option<Track>) -> Self {
        let left = body.size_hint().exact();
        Self {
            body,
            _tokens: tokens,
            report: track.map(|track| Report { track, left }),
        }
    }

    pub(super) fn uncounted(body: Body) -> Self {
        Self::new(body, [None, None], None)
    }
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(report) = &mut self.report {
            report.note(&polled);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.report {
            // What ends a report is seen on the wire: its last bytes, or trailers behind them.
            Some(report) => report.left == Some(0),
            None => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Report {
    fn note(&mut self, polled: &Poll<Option<Result<Frame<bytes::Bytes>, Status>>>) {
        let is_complete = match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let data = frame.data_ref().map_or(0, bytes::Bytes::len) as u64;
                self.left = self.left.map(|left| left.saturating_sub(data));
                // A message that is too large becomes an error when it is encoded.
                let status = frame.trailers_ref().and_then(Status::from_header_map);
                if status.is_some_and(|status| status.code() != Code::Ok) {
                    self.track.replaced();
                }
                frame.is_trailers() || self.left == Some(0)
            }
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(_))) => {
                self.track.replaced();
                false
            }
            Poll::Pending => false,
        };
        if is_complete {
            self.track.complete();
        }
    }
}
