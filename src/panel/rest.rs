//! The panel's contract over REST: the same calls as over gRPC, by path.
//!
//! Bodies are protobuf, also on GET; whoever sends or accepts `application/json` gets JSON. Errors
//! are plain text. One table has every route: it routes, and it describes itself at
//! `/openapi.json`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::{BodyExt, Full, StreamBody};
use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};

use super::grpc::Service;
use super::routes::{Call, ROUTES, Route};
use super::wire::{Backend, UserList};
use super::{frames, json, openapi, status};
use crate::proto::service::node_service_server::NodeService;
use crate::proto::service::{Empty, LatencyRequest, StatRequest, StatType, User};
use crate::settings::Limits;
use crate::usage::ledger::Ticket;

/// How often an idle log says that it is alive. Clients skip blank lines, proxies count them.
const HEARTBEAT: Duration = Duration::from_secs(15);

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A refusal on its way out.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }

    /// The plain text that clients read.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(body(Bytes::from(format!("{}\n", self.text))));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        let nosniff = HeaderValue::from_static("nosniff");
        response
            .headers_mut()
            .insert("x-content-type-options", nosniff);
        response
    }
}

/// The service, for any request that is not gRPC.
#[derive(Clone, Debug)]
pub struct Rest {
    service: Service,
    max_body: usize,
    body_timeout: Duration,
}

impl Rest {
    /// The same service by path.
    #[must_use]
    pub fn new(service: Service, limits: &Limits) -> Self {
        Self {
            service,
            max_body: limits.message,
            body_timeout: limits.body_timeout,
        }
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let route = find(request.method(), request.uri().path())?;
        let (parts, body) = request.into_parts();
        let wants_json = mentions_json(&parts.headers, ACCEPT.as_str());
        match route.call {
            Call::Logs => return self.logs(parts.version),
            Call::OpenApi => return Ok(reply(Bytes::from(openapi::describe(&ROUTES)), JSON)),
            _ => {}
        }
        let mut input = self.read(body).await?;
        if mentions_json(&parts.headers, CONTENT_TYPE.as_str()) {
            input = from_json(route, &input)?;
        }
        let Output { bytes, report } = self.call(route.call, input).await.map_err(|failure| {
            Refusal::new(http_status(route.call, &failure), failure.message())
        })?;
        let mut response = if wants_json {
            let json = json::from_protobuf(route.output, &bytes);
            let json = json.map_err(|error| {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            })?;
            reply(json.into(), JSON)
        } else {
            reply(bytes.into(), PROTOBUF)
        };
        if let Some(report) = report {
            response.extensions_mut().insert(report);
        }
        Ok(response)
    }

    async fn read(&self, body: Body) -> Result<Bytes, Refusal> {
        let too_large = || {
            let text = format!("the body is larger than {} bytes", self.max_body);
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        if body.size_hint().lower() > self.max_body as u64 {
            return Err(too_large());
        }
        let whole = self.collect(body);
        match tokio::time::timeout(self.body_timeout, whole).await {
            Ok(Ok(Some(body))) => Ok(body),
            Ok(Ok(None)) => Err(too_large()),
            Ok(Err(error)) => Err(Refusal::new(StatusCode::BAD_REQUEST, error.to_string())),
            Err(_) => Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "the body took too long",
            )),
        }
    }

    /// The whole body; `None` for one that is too large. Of that one as much again is read and thrown
    /// away: a client that is still sending would lose the answer with its connection.
    async fn collect(&self, mut body: Body) -> Result<Option<Bytes>, Status> {
        let mut kept = BytesMut::new();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            length += data.len();
            if length <= self.max_body {
                kept.extend_from_slice(&data);
            } else {
                kept = BytesMut::new();
            }
            if length > self.max_body.saturating_mul(2) {
                break;
            }
        }
        Ok((length <= self.max_body).then(|| kept.freeze()))
    }

    /// Makes the call and encodes its answer.
    async fn call(&self, call: Call, input: Bytes) -> Result<Output, Status> {
        let service = &self.service;
        match call {
            Call::Start => encoded(service.start(decoded::<Backend>(input)?).await),
            Call::Info => encoded(service.get_base_info(empty()).await),
            Call::Stop => encoded(service.stop(empty()).await),
            Call::Stats => encoded(service.get_stats(decoded::<StatRequest>(input)?).await),
            Call::StatsOf(kind) => {
                let mut request = decoded::<StatRequest>(input)?;
                request.get_mut().r#type = kind.into();
                let singular = matches!(
                    kind,
                    StatType::Inbound | StatType::Outbound | StatType::UserStat
                );
                if singular && request.get_ref().name.is_empty() {
                    return Err(Status::invalid_argument("name is required"));
                }
                encoded(service.get_stats(request).await)
            }
            Call::Latency => {
                service.require_session()?;
                encoded(
                    service
                        .get_outbounds_latency(decoded::<LatencyRequest>(input)?)
                        .await,
                )
            }
            Call::Online => encoded(
                service
                    .get_user_online_stats(decoded::<StatRequest>(input)?)
                    .await,
            ),
            Call::OnlineAddresses => encoded(
                service
                    .get_user_online_ip_list_stats(decoded::<StatRequest>(input)?)
                    .await,
            ),
            Call::BackendStats => encoded(service.get_backend_stats(empty()).await),
            Call::SystemStats => encoded(service.get_system_stats(empty()).await),
            Call::UpdateUser => encoded(
                service
                    .change_user(decoded::<User>(input)?.into_inner())
                    .await,
            ),
            Call::ReplaceUsers => encoded(service.sync_users(decoded::<UserList>(input)?).await),
            Call::UpdateChunked => {
                let chunks = frames::read(input)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
                encoded(service.update_chunked(chunks).await)
            }
            Call::ListRules => encoded(service.list_routing_rules(empty()).await),
            Call::AddRule => encoded(service.add_routing_rule(decoded(input)?).await),
            Call::RemoveRule => encoded(service.remove_routing_rule(decoded(input)?).await),
            Call::TestRoute => encoded(service.test_route(decoded(input)?).await),
            Call::Balancer => encoded(service.get_balancer_info(decoded(input)?).await),
            Call::OverrideBalancer => {
                encoded(service.override_balancer_target(decoded(input)?).await)
            }
            Call::Logs | Call::OpenApi => Err(Status::internal("this route has no message")),
        }
    }

    /// The log as raw lines. The headers leave at once, so that a viewer knows that he is connected.
    fn logs(&self, version: Version) -> Result<Response<Body>, Refusal> {
        let failed =
            |failure: &Status| Refusal::new(http_status(Call::Logs, failure), failure.message());
        let log = self.service.log().map_err(|failure| failed(&failure))?;
        let lines = futures_util::stream::unfold(Box::pin(log), |mut log| async {
            match tokio::time::timeout(HEARTBEAT, log.next()).await {
                Ok(Some(line)) => Some((line + "\n", log)),
                Ok(None) => None,
                Err(_) => Some(("\n".to_owned(), log)),
            }
        });
        let frames =
            lines.map(|line| Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(line))));
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        if version < Version::HTTP_2 {
            headers.insert(
                http::header::CONNECTION,
                HeaderValue::from_static("keep-alive"),
            );
        }
        Ok(response)
    }
}

impl tower::Service<Request<Body>> for Rest {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let rest = self.clone();
        // A reply to HEAD has no body, also where it refuses (RFC 9110, section 9.3.2).
        let is_head = *request.method() == Method::HEAD;
        Box::pin(async move {
            let answer = rest.answer(request).await;
            let response = answer.unwrap_or_else(Refusal::into_response);
            Ok(if is_head {
                response.map(|_| Body::empty())
            } else {
                response
            })
        })
    }
}

fn find(method: &Method, path: &str) -> Result<&'static Route, Refusal> {
    let trimmed = path.trim_end_matches('/');
    let path = if trimmed.is_empty() { "/" } else { trimmed };
    let mut there = false;
    for route in ROUTES.iter().filter(|route| route.path == path) {
        if route.method == *method {
            return Ok(route);
        }
        there = true;
    }
    Err(if there {
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
    } else {
        Refusal::new(StatusCode::NOT_FOUND, "no such route; see /openapi.json")
    })
}

/// JSON stands for one message; for a chunked sync it stands for one chunk, or a list of them.
fn from_json(route: &Route, input: &[u8]) -> Result<Bytes, Refusal> {
    let refused = |text: String| Refusal::new(StatusCode::BAD_REQUEST, text);
    if route.call != Call::UpdateChunked {
        if route.input.is_empty() {
            return Ok(Bytes::new());
        }
        return json::to_protobuf(route.input, input)
            .map(Bytes::from)
            .map_err(|error| refused(error.to_string()));
    }
    let chunks: serde_json::Value =
        serde_json::from_slice(input).map_err(|error| refused(error.to_string()))?;
    let chunks = match chunks {
        serde_json::Value::Array(chunks) => chunks,
        chunk => vec![chunk],
    };
    let mut framed = Vec::new();
    for chunk in chunks {
        let chunk = json::to_protobuf(route.input, chunk.to_string().as_bytes())
            .map_err(|error| refused(error.to_string()))?;
        prost::encode_length_delimiter(chunk.len(), &mut framed)
            .map_err(|error| refused(error.to_string()))?;
        framed.extend(chunk);
    }
    Ok(framed.into())
}

fn decoded<M: Message + Default>(input: Bytes) -> Result<tonic::Request<M>, Status> {
    M::decode(input).map(tonic::Request::new).map_err(|error| {
        Status::invalid_argument(format!("the body could not be decoded: {error}"))
    })
}

/// What a call answers.
struct Output {
    bytes: Vec<u8>,
    /// Set where it matters whether it arrives.
    report: Option<Ticket>,
}

fn encoded<M: Message>(reply: Result<tonic::Response<M>, Status>) -> Result<Output, Status> {
    let mut reply = reply?;
    Ok(Output {
        report: reply.extensions_mut().remove(),
        bytes: reply.get_ref().encode_to_vec(),
    })
}

fn empty() -> tonic::Request<Empty> {
    tonic::Request::new(Empty {})
}

/// The one table of [`status`], and where REST clients expect something else.
fn http_status(call: Call, failure: &Status) -> StatusCode {
    let text = failure.message();
    let code = failure.code();
    if code == Code::InvalidArgument {
        return StatusCode::BAD_REQUEST;
    }
    if code == Code::Unavailable && text == crate::node::Error::NotInitialized.to_string() {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    match call {
        Call::Start => StatusCode::SERVICE_UNAVAILABLE,
        Call::Latency if code != Code::Unavailable => StatusCode::BAD_GATEWAY,
        Call::UpdateUser | Call::ReplaceUsers | Call::UpdateChunked if code == Code::Unknown => {
            StatusCode::BAD_REQUEST
        }
        _ => status::http(code),
    }
}

fn mentions_json(headers: &HeaderMap, name: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|value| value.to_ascii_lowercase().contains("application/json"))
    })
}

fn reply(bytes: Bytes, content_type: HeaderValue) -> Response<Body> {
    let mut response = Response::new(body(bytes));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn body(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes))
}
