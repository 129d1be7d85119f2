//! The panel's contract over gRPC: `service.NodeService`.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::chunks::Chunks;
use super::{routing, status, wire};
use crate::node::{BaseInfo, Latency, Node, Start};
use crate::proto::service::node_service_server::{NodeService, NodeServiceServer};
use crate::proto::service::{
    AddRoutingRuleRequest, BackendStatsResponse, BackendType, BalancerInfoRequest,
    BalancerInfoResponse, BaseInfoResponse, Empty, LatencyRequest, LatencyResponse, Log,
    OnlineStatResponse, OverrideBalancerTargetRequest, RemoveRoutingRuleRequest, RouteResult,
    RoutingRulesResponse, Stat, StatRequest, StatResponse, StatType, StatsOnlineIpListResponse,
    SystemStatsResponse, TestRouteRequest, User,
};
use crate::usage::book::{Entry, Of};
use crate::usage::counter::{Bytes, Kind};
use crate::usage::ledger::Report;
use crate::xray::config::Rule;

/// How many users of one stream are applied together, when so many have come.
const BATCH: usize = 512;

/// The service, over one node.
#[derive(Clone, Debug)]
pub struct Service {
    node: Node,
    shutdown: CancellationToken,
}

impl Service {
    /// Serves `node`; open log streams end with `shutdown`.
    #[must_use]
    pub fn new(node: Node, shutdown: CancellationToken) -> Self {
        Self { node, shutdown }
    }

    /// The service as gRPC serves it, with messages of at most so many bytes.
    #[must_use]
    pub fn into_server(self, max_message: usize) -> NodeServiceServer<Self> {
        NodeServiceServer::new(self)
            .max_decoding_message_size(max_message)
            .max_encoding_message_size(max_message)
    }

    /// The core's log, line by line, until the node ends.
    pub(super) fn log(&self) -> Result<impl Stream<Item = String> + Send + use<>, Status> {
        let log = self.node.logs().map_err(|error| status::of(&error))?;
        let lines = stream::unfold(log, |mut log| async { Some((log.next().await?, log)) });
        Ok(lines.take_until(self.shutdown.clone().cancelled_owned()))
    }

    /// Fails without a session.
    pub(super) fn require_session(&self) -> Result<(), Status> {
        match self.node.session() {
            Some(_) => Ok(()),
            None => Err(status::of(&crate::node::Error::NotInitialized)),
        }
    }

    /// Changes one user.
    pub(super) async fn change_user(&self, user: User) -> Reply<Empty> {
        let users = Box::new(std::iter::once(Ok(wire::user(user))));
        self.node
            .update_users(users, false)
            .await
            .map_err(|error| status::of_user_update(&error))?;
        Ok(Response::new(Empty {}))
    }

    /// Changes the users that the chunks list.
    pub(super) async fn update_chunked(&self, chunks: Chunks) -> Reply<Empty> {
        let users = chunks
            .into_users()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.node
            .update_users(wire::users(users), true)
            .await
            .map_err(|error| status::of_users_update(&error))?;
        Ok(Response::new(Empty {}))
    }

    async fn stats_of(&self, kind: StatType, request: Request<StatRequest>) -> Reply<StatResponse> {
        let request = StatRequest {
            r#type: kind.into(),
            ..request.into_inner()
        };
        self.get_stats(Request::new(request)).await
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl NodeService for Service {
    type GetLogsStream = Pin<Box<dyn Stream<Item = Result<Log, Status>> + Send>>;

    async fn start(&self, request: Request<wire::Backend>) -> Reply<BaseInfoResponse> {
        let backend = request.into_inner();
        match BackendType::try_from(backend.r#type) {
            Ok(BackendType::Xray) => {}
            Ok(BackendType::Wireguard) => {
                return Err(Status::unimplemented(
                    "this node serves xray, not wireguard",
                ));
            }
            Err(_) => {
                let text = format!("unknown backend type {}", backend.r#type);
                return Err(Status::invalid_argument(text));
            }
        }
        let start = Start {
            config: backend.config,
            users: wire::users(backend.users),
            keep_alive: (backend.keep_alive > 0)
                .then(|| std::time::Duration::from_secs(backend.keep_alive)),
            exclude_inbounds: backend.exclude_inbounds,
        };
        let (session, info) = self
            .node
            .start(start)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(BaseInfoResponse {
            session_id: session.to_string(),
            ..base_info(info)
        }))
    }

    async fn stop(&self, _: Request<Empty>) -> Reply<Empty> {
        self.node.stop().await.map_err(|error| status::of(&error))?;
        Ok(Response::new(Empty {}))
    }

    async fn get_base_info(&self, _: Request<Empty>) -> Reply<BaseInfoResponse> {
        Ok(Response::new(base_info(self.node.base_info().await)))
    }

    async fn get_logs(&self, _: Request<Empty>) -> Reply<Self::GetLogsStream> {
        Ok(Response::new(Box::pin(
            self.log()?.map(|detail| Ok(Log { detail })),
        )))
    }

    async fn get_system_stats(&self, _: Request<Empty>) -> Reply<SystemStatsResponse> {
        let (sample, uptime) = self
            .node
            .system_stats()
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(SystemStatsResponse {
            mem_total: sample.memory_total,
            mem_used: sample.memory_used,
            cpu_cores: sample.processors,
            cpu_usage: sample.processor_usage,
            incoming_bandwidth_speed: sample.received_per_second,
            outgoing_bandwidth_speed: sample.sent_per_second,
            uptime,
        }))
    }

    async fn get_backend_stats(&self, _: Request<Empty>) -> Reply<BackendStatsResponse> {
        let stats = self
            .node
            .backend_stats()
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(BackendStatsResponse {
            num_goroutine: stats.num_goroutine,
            num_gc: stats.num_gc,
            alloc: stats.alloc,
            total_alloc: stats.total_alloc,
            sys: stats.sys,
            mallocs: stats.mallocs,
            frees: stats.frees,
            live_objects: stats.live_objects,
            pause_total_ns: stats.pause_total_ns,
            uptime: stats.uptime,
        }))
    }

    async fn get_stats(&self, request: Request<StatRequest>) -> Reply<StatResponse> {
        let StatRequest {
            name,
            reset,
            r#type,
        } = request.into_inner();
        let of = match StatType::try_from(r#type) {
            Ok(StatType::Outbounds) => Of::All(Kind::Outbound),
            Ok(StatType::Outbound) => Of::One(Kind::Outbound, name),
            Ok(StatType::Inbounds) => Of::All(Kind::Inbound),
            Ok(StatType::Inbound) => Of::One(Kind::Inbound, name),
            Ok(StatType::UsersStat) => Of::All(Kind::User),
            Ok(StatType::UserStat) => Of::One(Kind::User, name),
            Err(_) => return Err(Status::unknown("not implemented stat type")),
        };
        // Nobody bills what is nothing, and most users use nothing most of the time.
        let without_zeros = reset && matches!(of, Of::All(_));
        let report = if reset {
            self.node.report(of).await
        } else {
            let counted = self.node.counted(of).await;
            counted.map(|entries| Report {
                entries,
                ticket: None,
            })
        };
        let Report { entries, ticket } = report.map_err(|error| status::of(&error))?;
        let stats = entries.iter().flat_map(stats);
        let mut response = Response::new(StatResponse {
            stats: stats
                .filter(|stat| stat.value != 0 || !without_zeros)
                .collect(),
        });
        if let Some(ticket) = ticket {
            response.extensions_mut().insert(ticket);
        }
        Ok(response)
    }

    async fn get_outbounds_latency(
        &self,
        request: Request<LatencyRequest>,
    ) -> Reply<LatencyResponse> {
        let name = request.into_inner().name;
        let latencies = self
            .node
            .latencies(&name)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(LatencyResponse {
            latencies: latencies.into_iter().map(latency).collect(),
        }))
    }

    async fn get_user_online_stats(
        &self,
        request: Request<StatRequest>,
    ) -> Reply<OnlineStatResponse> {
        let name = request.into_inner().name;
        let value = self
            .node
            .online(&name)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(OnlineStatResponse { name, value }))
    }

    async fn get_user_online_ip_list_stats(
        &self,
        request: Request<StatRequest>,
    ) -> Reply<StatsOnlineIpListResponse> {
        let name = request.into_inner().name;
        let ips = self
            .node
            .online_addresses(&name)
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Response::new(StatsOnlineIpListResponse {
            name,
            ips: ips.into_iter().collect(),
        }))
    }

    /// Applies users as they come, so a stream may stay open for as long as its panel likes.
    async fn sync_user(&self, request: Request<Streaming<User>>) -> Reply<Empty> {
        self.node
            .require_core()
            .map_err(|error| status::of(&error))?;
        let mut batches = request.into_inner().ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            let mut broken = None;
            let mut users = Vec::with_capacity(batch.len());
            for message in batch {
                match message {
                    Ok(user) => users.push(Ok(wire::user(user))),
                    Err(status) => {
                        broken = Some(status);
                        break;
                    }
                }
            }
            if !users.is_empty() {
                let users = Box::new(users.into_iter());
                self.node
                    .update_users(users, false)
                    .await
                    .map_err(|error| status::of_user_update(&error))?;
                self.node.touch();
            }
            if let Some(status) = broken {
                return Err(status);
            }
        }
        Ok(Response::new(Empty {}))
    }

    async fn sync_users(&self, request: Request<wire::UserList>) -> Reply<Empty> {
        let users = wire::users(request.into_inner().users);
        self.node
            .replace_users(users)
            .await
            .map_err(|error| status::of_users_update(&error))?;
        Ok(Response::new(Empty {}))
    }

    async fn sync_users_chunked(
        &self,
        request: Request<Streaming<wire::UsersChunk>>,
    ) -> Reply<Empty> {
        self.node
            .require_core()
            .map_err(|error| status::of(&error))?;
        let mut stream = request.into_inner();
        let mut chunks = Chunks::default();
        while !chunks.is_complete() {
            let Some(chunk) = stream.message().await? else {
                break;
            };
            chunks
                .add(chunk)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
        }
        self.update_chunked(chunks).await
    }

    async fn list_routing_rules(&self, _: Request<Empty>) -> Reply<RoutingRulesResponse> {
        let rules = self.node.routing_rules().await;
        let rules = rules.map_err(|error| status::of(&error))?.into_iter();
        Ok(Response::new(RoutingRulesResponse {
            rules: rules.map(routing::rule).collect(),
        }))
    }

    async fn add_routing_rule(&self, request: Request<AddRoutingRuleRequest>) -> Reply<Empty> {
        let AddRoutingRuleRequest { rule, should_reset } = request.into_inner();
        let rule = Rule::parse(&rule).map_err(|error| status::of(&error.into()))?;
        let added = self.node.add_routing_rule(rule, should_reset).await;
        added.map_err(|error| status::of(&error))?;
        Ok(Response::new(Empty {}))
    }

    async fn remove_routing_rule(
        &self,
        request: Request<RemoveRoutingRuleRequest>,
    ) -> Reply<Empty> {
        let tag = routing::required("rule_tag", request.into_inner().rule_tag)?;
        let removed = self.node.remove_routing_rule(tag).await;
        removed.map_err(|error| status::of(&error))?;
        Ok(Response::new(Empty {}))
    }

    async fn test_route(&self, request: Request<TestRouteRequest>) -> Reply<RouteResult> {
        let mut request = request.into_inner();
        let selectors = std::mem::take(&mut request.field_selectors);
        let publish = request.publish_result;
        let connection = routing::connection(request)?;
        let route = self.node.test_route(connection, selectors, publish).await;
        let route = route.map_err(|error| status::of(&error))?;
        Ok(Response::new(routing::result(route)))
    }

    async fn get_balancer_info(
        &self,
        request: Request<BalancerInfoRequest>,
    ) -> Reply<BalancerInfoResponse> {
        let tag = routing::required("tag", request.into_inner().tag)?;
        let balancer = self.node.balancer(&tag).await;
        let balancer = balancer.map_err(|error| status::of(&error))?;
        Ok(Response::new(BalancerInfoResponse {
            override_target: balancer.override_target,
            principle_target: balancer.principle_target,
        }))
    }

    async fn override_balancer_target(
        &self,
        request: Request<OverrideBalancerTargetRequest>,
    ) -> Reply<Empty> {
        let request = request.into_inner();
        let tag = routing::required("balancer_tag", request.balancer_tag)?;
        let overridden = self.node.override_balancer(tag, request.target).await;
        overridden.map_err(|error| status::of(&error))?;
        Ok(Response::new(Empty {}))
    }

    async fn get_outbounds_stats(&self, request: Request<StatRequest>) -> Reply<StatResponse> {
        self.stats_of(StatType::Outbounds, request).await
    }

    async fn get_outbound_stats(&self, request: Request<StatRequest>) -> Reply<StatResponse> {
        self.stats_of(StatType::Outbound, request).await
    }

    async fn get_inbounds_stats(&self, request: Request<StatRequest>) -> Reply<StatResponse> {
        self.stats_of(StatType::Inbounds, request).await
    }

    async fn get_inbound_stats(&self, request: Request<StatRequest>) -> Reply<StatResponse> {
        self.stats_of(StatType::Inbound, request).await
    }

    async fn get_users_stats(&self, request: Request<StatRequest>) -> Reply<StatResponse> {
        self.stats_of(StatType::UsersStat, request).await
    }

    async fn get_user_stats(&self, request: Request<StatRequest>) -> Reply<StatResponse> {
        self.stats_of(StatType::UserStat, request).await
    }

    async fn get_user_online_stat(
        &self,
        request: Request<StatRequest>,
    ) -> Reply<OnlineStatResponse> {
        self.get_user_online_stats(request).await
    }

    async fn get_node_stats(&self, request: Request<Empty>) -> Reply<SystemStatsResponse> {
        self.get_system_stats(request).await
    }

    async fn add_user(&self, request: Request<User>) -> Reply<Empty> {
        self.change_user(request.into_inner()).await
    }

    async fn update_user(&self, request: Request<User>) -> Reply<Empty> {
        self.change_user(request.into_inner()).await
    }

    async fn remove_user(&self, request: Request<User>) -> Reply<Empty> {
        let user = User {
            inbounds: Vec::new(),
            ..request.into_inner()
        };
        self.change_user(user).await
    }
}

fn base_info(info: BaseInfo) -> BaseInfoResponse {
    BaseInfoResponse {
        started: info.started,
        core_version: info.core_version,
        node_version: env!("CARGO_PKG_VERSION").to_owned(),
        session_id: String::new(),
        extra: String::new(),
    }
}

fn stats(entry: &Entry) -> [Stat; 2] {
    let Bytes { up, down } = entry.bytes;
    [("uplink", up), ("downlink", down)].map(|(way, bytes)| Stat {
        name: entry.name.as_ref().to_owned(),
        r#type: way.to_owned(),
        link: "traffic".to_owned(),
        value: i64::try_from(bytes).unwrap_or(i64::MAX),
    })
}

fn latency(latency: Latency) -> crate::proto::service::Latency {
    crate::proto::service::Latency {
        link: latency.tag.clone(),
        name: latency.tag,
        alive: latency.alive,
        delay: latency.delay_ms,
        last_seen_time: latency.last_seen,
        last_try_time: latency.last_try,
        source: "xray-observatory".to_owned(),
    }
}
