//! Which transport a request speaks: gRPC says so in its content type, everything else is REST.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response, StatusCode};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use super::rest::{Refusal, Rest};
use crate::settings::Protocols;

/// Whether a request speaks gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Both transports behind one door.
#[derive(Clone, Debug)]
pub struct Front {
    grpc: Routes,
    rest: Rest,
    protocols: Protocols,
}

impl Front {
    /// Sends gRPC requests to the one and all others to the other, as far as `protocols` go.
    #[must_use]
    pub fn new(grpc: Routes, rest: Rest, protocols: Protocols) -> Self {
        Self {
            grpc,
            rest,
            protocols,
        }
    }
}

impl Service<Request<Body>> for Front {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.grpc, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match (is_grpc(request.headers()), self.protocols) {
            (true, Protocols::Both | Protocols::Grpc) => {
                let ready = self.grpc.clone();
                Box::pin(std::mem::replace(&mut self.grpc, ready).call(request))
            }
            (false, Protocols::Both | Protocols::Rest) => Box::pin(self.rest.call(request)),
            (true, Protocols::Rest) => {
                let refusal =
                    Status::unimplemented("this node serves REST only (SERVICE_PROTOCOL)");
                Box::pin(async move { Ok(refusal.into_http()) })
            }
            (false, Protocols::Grpc) => {
                let text = "this node serves gRPC only (SERVICE_PROTOCOL)";
                Box::pin(
                    async move { Ok(Refusal::new(StatusCode::NOT_FOUND, text).into_response()) },
                )
            }
        }
    }
}
