//! What every call passes, whichever method it names: authentication, the pulse of the session,
//! and the count of replies that must get out before the node ends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Status};
use tower::Service;

use super::auth::Keys;
use crate::node::Node;

/// What tonic says of a message above the limit. Go servers answer `RESOURCE_EXHAUSTED`, and so do
/// we: panels know that code.
const TOO_LARGE: &str = "message length too large";

/// Set on a connection once a caller on it has shown a key.
#[derive(Debug, Default)]
pub struct Admitted(AtomicBool);

impl Admitted {
    /// Whether anybody on this connection has shown a key.
    #[must_use]
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Wraps the service that answers.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    inner: S,
    keys: Arc<Keys>,
    node: Node,
    replies: TaskTracker,
}

impl<S> Gate<S> {
    /// Lets those callers through to `inner` who show one of `keys`. Whoever waits for `replies`
    /// waits until the last one has left.
    pub fn new(inner: S, keys: Arc<Keys>, node: Node, replies: TaskTracker) -> Self {
        Self {
            inner,
            keys,
            node,
            replies,
        }
    }
}

impl<S, B, R> Service<Request<B>> for Gate<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Body + Default + Send + 'static,
{
    type Response = Response<Counted<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let session = self.node.session().map(|session| session.id());
        if let Err(denied) = self.keys.admit(request.headers(), session) {
            tracing::debug!(path = request.uri().path(), reason = %denied, "turned a caller away");
            let response = Status::from(denied).into_http::<R>();
            return Box::pin(async { Ok(response.map(Counted::uncounted)) });
        }
        if let Some(admitted) = request.extensions().get::<Arc<Admitted>>() {
            admitted.0.store(true, Ordering::Relaxed);
        }
        // A log goes on for as long as somebody looks at it: nobody waits for its end.
        let endless = request.uri().path().ends_with("/GetLogs");
        let token = (!endless).then(|| self.replies.token());
        let node = self.node.clone();
        // The clone is not ready yet; the one that was asked is.
        let ready = self.inner.clone();
        let call = std::mem::replace(&mut self.inner, ready).call(request);
        Box::pin(async move {
            let response = call.await?;
            let response = match Status::from_header_map(response.headers()) {
                Some(status) if status.code() != Code::Ok => as_go_says_it(&status, response),
                _ => {
                    node.touch();
                    response
                }
            };
            Ok(response.map(|body| Counted {
                body,
                _token: token,
            }))
        })
    }
}

fn as_go_says_it<R: Default>(status: &Status, response: Response<R>) -> Response<R> {
    if status.code() == Code::OutOfRange && status.message().contains(TOO_LARGE) {
        return Status::resource_exhausted(status.message()).into_http();
    }
    response
}

/// A reply that counts as being on its way until its last byte is handed over.
#[derive(Debug)]
pub struct Counted<R> {
    body: R,
    _token: Option<TaskTrackerToken>,
}

impl<R> Counted<R> {
    fn uncounted(body: R) -> Self {
        Self { body, _token: None }
    }
}

impl<R: Body + Unpin> Body for Counted<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
