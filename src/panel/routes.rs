//! Every path that REST serves: one table, which routes and describes itself.

use http::Method;

use crate::proto::service::StatType;

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Start,
    Info,
    Stop,
    Logs,
    Stats,
    /// A route of before the types: the kind stands in the path.
    StatsOf(StatType),
    Latency,
    Online,
    OnlineAddresses,
    BackendStats,
    SystemStats,
    UpdateUser,
    ReplaceUsers,
    UpdateChunked,
    ListRules,
    AddRule,
    RemoveRule,
    TestRoute,
    Balancer,
    OverrideBalancer,
    OpenApi,
}

impl Call {
    /// The name of the same call over gRPC.
    pub(super) fn method(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Info => "GetBaseInfo",
            Self::Stop => "Stop",
            Self::Logs => "GetLogs",
            Self::Stats | Self::StatsOf(_) => "GetStats",
            Self::Latency => "GetOutboundsLatency",
            Self::Online => "GetUserOnlineStats",
            Self::OnlineAddresses => "GetUserOnlineIpListStats",
            Self::BackendStats => "GetBackendStats",
            Self::SystemStats => "GetSystemStats",
            Self::UpdateUser => "SyncUser",
            Self::ReplaceUsers => "SyncUsers",
            Self::UpdateChunked => "SyncUsersChunked",
            Self::ListRules => "ListRoutingRules",
            Self::AddRule => "AddRoutingRule",
            Self::RemoveRule => "RemoveRoutingRule",
            Self::TestRoute => "TestRoute",
            Self::Balancer => "GetBalancerInfo",
            Self::OverrideBalancer => "OverrideBalancerTarget",
            Self::OpenApi => "OpenApi",
        }
    }
}

/// One path and method.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) call: Call,
    /// The message that the body is, empty for none.
    pub(super) input: &'static str,
    /// The message that the reply is, empty for a text.
    pub(super) output: &'static str,
    pub(super) summary: &'static str,
}

const fn route(
    method: Method,
    path: &'static str,
    call: Call,
    [input, output]: [&'static str; 2],
    summary: &'static str,
) -> Route {
    Route {
        method,
        path,
        call,
        input,
        output,
        summary,
    }
}

/// Every route. A trailing slash makes no difference.
pub(super) static ROUTES: [Route; 29] = [
    route(
        Method::POST,
        "/start",
        Call::Start,
        ["Backend", "BaseInfoResponse"],
        "Run this configuration with these users",
    ),
    route(
        Method::GET,
        "/info",
        Call::Info,
        ["", "BaseInfoResponse"],
        "Whether the core runs, and the versions",
    ),
    route(
        Method::PUT,
        "/stop",
        Call::Stop,
        ["", "Empty"],
        "End the session and the core",
    ),
    route(
        Method::GET,
        "/logs",
        Call::Logs,
        ["", ""],
        "The core's log, a line each, as it comes",
    ),
    route(
        Method::GET,
        "/stats",
        Call::Stats,
        ["StatRequest", "StatResponse"],
        "Traffic counters",
    ),
    route(
        Method::GET,
        "/stats/latency",
        Call::Latency,
        ["LatencyRequest", "LatencyResponse"],
        "What the core measured of its outbounds",
    ),
    route(
        Method::GET,
        "/stats/user/online",
        Call::Online,
        ["StatRequest", "OnlineStatResponse"],
        "How many addresses a user is connected from",
    ),
    route(
        Method::GET,
        "/stats/user/online_ip",
        Call::OnlineAddresses,
        ["StatRequest", "StatsOnlineIpListResponse"],
        "The addresses a user is connected from",
    ),
    route(
        Method::GET,
        "/stats/backend",
        Call::BackendStats,
        ["", "BackendStatsResponse"],
        "The core's own statistics",
    ),
    route(
        Method::GET,
        "/stats/system",
        Call::SystemStats,
        ["", "SystemStatsResponse"],
        "The machine's load",
    ),
    route(
        Method::PUT,
        "/user/sync",
        Call::UpdateUser,
        ["User", "Empty"],
        "Change one user",
    ),
    route(
        Method::PUT,
        "/users/sync",
        Call::ReplaceUsers,
        ["Users", "Empty"],
        "Make these users the only ones",
    ),
    // Clients up to 0.0.45 send it so.
    route(
        Method::POST,
        "/users/sync",
        Call::ReplaceUsers,
        ["Users", "Empty"],
        "Make these users the only ones",
    ),
    route(
        Method::PUT,
        "/users/sync/chunked",
        Call::UpdateChunked,
        ["UsersChunk", "Empty"],
        "Change the listed users; chunks, each behind its length",
    ),
    route(
        Method::GET,
        "/routing/rules",
        Call::ListRules,
        ["", "RoutingRulesResponse"],
        "The core's routing rules in their order",
    ),
    route(
        Method::PUT,
        "/routing/rules",
        Call::AddRule,
        ["AddRoutingRuleRequest", "Empty"],
        "Put a routing rule behind all others, or in their place",
    ),
    route(
        Method::DELETE,
        "/routing/rules",
        Call::RemoveRule,
        ["RemoveRoutingRuleRequest", "Empty"],
        "Remove the routing rule of a tag",
    ),
    route(
        Method::POST,
        "/routing/test",
        Call::TestRoute,
        ["TestRouteRequest", "RouteResult"],
        "Where the rules would send a connection",
    ),
    route(
        Method::POST,
        "/routing/balancer",
        Call::Balancer,
        ["BalancerInfoRequest", "BalancerInfoResponse"],
        "What a balancer does",
    ),
    route(
        Method::PUT,
        "/routing/balancer/override",
        Call::OverrideBalancer,
        ["OverrideBalancerTargetRequest", "Empty"],
        "Make a balancer take one outbound",
    ),
    route(
        Method::GET,
        "/stats/outbounds",
        Call::StatsOf(StatType::Outbounds),
        ["StatRequest", "StatResponse"],
        "Traffic of all outbounds",
    ),
    route(
        Method::GET,
        "/stats/outbound",
        Call::StatsOf(StatType::Outbound),
        ["StatRequest", "StatResponse"],
        "Traffic of one outbound",
    ),
    route(
        Method::GET,
        "/stats/inbounds",
        Call::StatsOf(StatType::Inbounds),
        ["StatRequest", "StatResponse"],
        "Traffic of all inbounds",
    ),
    route(
        Method::GET,
        "/stats/inbound",
        Call::StatsOf(StatType::Inbound),
        ["StatRequest", "StatResponse"],
        "Traffic of one inbound",
    ),
    route(
        Method::GET,
        "/stats/users",
        Call::StatsOf(StatType::UsersStat),
        ["StatRequest", "StatResponse"],
        "Traffic of all users",
    ),
    route(
        Method::GET,
        "/stats/user",
        Call::StatsOf(StatType::UserStat),
        ["StatRequest", "StatResponse"],
        "Traffic of one user",
    ),
    route(
        Method::GET,
        "/",
        Call::Info,
        ["", "BaseInfoResponse"],
        "The same as /info",
    ),
    route(
        Method::GET,
        "/ping",
        Call::Info,
        ["", "BaseInfoResponse"],
        "The same as /info",
    ),
    route(
        Method::GET,
        "/openapi.json",
        Call::OpenApi,
        ["", ""],
        "This description",
    ),
];
