//! The API that panels call to look after a node: on a port of its own, JSON, with the key.
//!
//! It stands in for the side service of the PasarGuard installer, so no second daemon is needed.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use serde_json::json;
use tonic::body::Body;

use super::auth::Keys;
use super::doorman::Doorman;
use super::gate::{self, Counted};
use super::methods;
use super::usage::Usage;
use crate::node::Node;

/// The largest body that is read.
const MAX_BODY: usize = 1 << 20;

/// Brings other versions of the core and of its geo files.
pub trait Installer: std::fmt::Debug + Send + Sync {
    /// Installs that version of Xray (`v26.3.27`, or `latest`) and makes the node use it.
    fn install_core<'a>(&'a self, version: &'a str) -> BoxFuture<'a, Result<(), Failure>>;
    /// Installs the geo files for a region.
    fn update_geo_files<'a>(&'a self, region: &'a str) -> BoxFuture<'a, Result<(), Failure>>;
}

/// Why nothing was installed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// This node does not install what its operator has chosen himself.
    #[error("{0}")]
    NotHere(String),
    /// There is no such version or region.
    #[error("{0}")]
    NoSuch(String),
    /// It did not come, or does not work.
    #[error("{0}")]
    Failed(String),
}

/// The service behind that port.
#[derive(Clone, Debug)]
pub struct Maintenance {
    node: Node,
    keys: Arc<Keys>,
    installer: Arc<dyn Installer>,
    doorman: Arc<Doorman>,
    body_timeout: Duration,
}

#[derive(Deserialize)]
struct CoreUpdate {
    core_version: String,
}

#[derive(Deserialize)]
struct GeoFiles {
    region: String,
}

type Answer = Result<&'static str, (StatusCode, String)>;

impl Maintenance {
    /// Looks after `node`.
    #[must_use]
    pub fn new(
        node: Node,
        keys: Arc<Keys>,
        installer: Arc<dyn Installer>,
        doorman: Arc<Doorman>,
        body_timeout: Duration,
    ) -> Self {
        Self {
            node,
            keys,
            installer,
            doorman,
            body_timeout,
        }
    }

    async fn admit(&self, head: &Parts) -> Result<(), &'static str> {
        let denied = match head.headers.get("x-api-key") {
            Some(key) if self.keys.holds(key.as_bytes()) => return Ok(()),
            Some(_) => "invalid api key",
            None => "missing api key",
        };
        self.doorman.turn_away(&head.extensions, denied).await;
        Err(denied)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        if let Err(denied) = self.admit(&head).await {
            return detail(StatusCode::UNAUTHORIZED, denied);
        }
        if let Some(usage) = head.extensions.get::<Arc<Usage>>() {
            usage.admit();
        }
        let path = head.uri.path().trim_end_matches('/');
        let call = methods::of_maintenance(&head.method, path);
        let observed = self.doorman.observe(call);
        let response = self.made(&head.method, path, body).await;
        observed.answered(&response);
        response
    }

    async fn made(&self, method: &Method, path: &str, body: Body) -> Response<Body> {
        let answer = match (method, path) {
            (&Method::GET, "") => return reply(StatusCode::OK, &json!({ "status": "ok" })),
            (&Method::POST, "/node/update") => Err((
                StatusCode::NOT_IMPLEMENTED,
                "this node is not updated from here: install the new version on the server"
                    .to_owned(),
            )),
            (&Method::POST, "/node/core_update") => self.update_core(body).await,
            (&Method::POST, "/node/geofiles") => self.update_geo_files(body).await,
            (&Method::POST, "/node/hard_reset") => self.reset().await,
            _ => Err((StatusCode::NOT_FOUND, "Not found".to_owned())),
        };
        match answer {
            Ok(text) => detail(StatusCode::OK, text),
            Err((status, text)) => detail(status, &text),
        }
    }

    async fn update_core(&self, body: Body) -> Answer {
        let CoreUpdate { core_version } = self.read(body).await?;
        let number = core_version.strip_prefix('v').unwrap_or(&core_version);
        let is_version =
            number == "latest" || number.parse::<crate::xray::version::Version>().is_ok();
        if !is_version {
            let text = "core_version is neither latest nor a version like v26.3.27";
            return Err((StatusCode::BAD_REQUEST, text.to_owned()));
        }
        self.installer
            .install_core(&core_version)
            .await
            .map_err(|failure| refused(&failure))?;
        Ok("node core updated successfully")
    }

    async fn update_geo_files(&self, body: Body) -> Answer {
        let GeoFiles { region } = self.read(body).await?;
        if !["iran", "russia", "china"].contains(&region.as_str()) {
            return Err((
                StatusCode::BAD_REQUEST,
                "region is not iran, russia or china".to_owned(),
            ));
        }
        self.installer
            .update_geo_files(&region)
            .await
            .map_err(|failure| refused(&failure))?;
        Ok("geofiles updated successfully")
    }

    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        body: Body,
    ) -> Result<T, (StatusCode, String)> {
        let bad = |text: String| (StatusCode::BAD_REQUEST, text);
        let whole = Limited::new(body, MAX_BODY).collect();
        let Ok(body) = tokio::time::timeout(self.body_timeout, whole).await else {
            let text = "the body took too long".to_owned();
            return Err((StatusCode::REQUEST_TIMEOUT, text));
        };
        let body = body.map_err(|error| bad(error.to_string()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(format!("bad JSON: {error}")))
    }

    async fn reset(&self) -> Answer {
        let failed =
            |error: crate::node::Error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        self.node.restart_core().await.map_err(failed)?;
        Ok("node restarted successfully")
    }
}

impl tower::Service<Request<Body>> for Maintenance {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let maintenance = self.clone();
        let tokens = self.doorman.let_in(request.extensions(), false);
        Box::pin(async move {
            let answer = AssertUnwindSafe(maintenance.answer(request)).catch_unwind();
            let response = answer
                .await
                .unwrap_or_else(|_| detail(StatusCode::INTERNAL_SERVER_ERROR, &gate::panic_text()));
            Ok(response.map(|body| Counted::new(body, tokens, None)))
        })
    }
}

fn refused(failure: &Failure) -> (StatusCode, String) {
    match failure {
        Failure::NotHere(_) => (StatusCode::NOT_IMPLEMENTED, failure.to_string()),
        Failure::NoSuch(_) => (StatusCode::NOT_FOUND, failure.to_string()),
        Failure::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
    }
}

fn detail(status: StatusCode, text: &str) -> Response<Body> {
    reply(status, &json!({ "detail": text }))
}

fn reply(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(value.to_string()))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
