//! Which method a request calls, by the names of the contract: the words that are told of it. Whatever a
//! stranger calls beside them has one word.

use http::{Method, Request};

use super::routes::{Call as Route, ROUTES};
use super::{front, health};
use crate::telemetry::metrics::Call;

/// What is in no table.
const UNKNOWN: &str = "unknown";

/// The methods of the services with one request and one reply each.
const UNARY: [(&str, &[&str]); 3] = [
    (
        "service.NodeService",
        &[
            "Start",
            "Stop",
            "GetBaseInfo",
            "GetSystemStats",
            "GetBackendStats",
            "GetStats",
            "GetOutboundsLatency",
            "GetUserOnlineStats",
            "GetUserOnlineIpListStats",
            "SyncUsers",
            "ListRoutingRules",
            "AddRoutingRule",
            "RemoveRoutingRule",
            "TestRoute",
            "GetBalancerInfo",
            "OverrideBalancerTarget",
            "GetOutboundsStats",
            "GetOutboundStats",
            "GetInboundsStats",
            "GetInboundStats",
            "GetUsersStats",
            "GetUserStats",
            "GetUserOnlineStat",
            "GetNodeStats",
            "AddUser",
            "UpdateUser",
            "RemoveUser",
        ],
    ),
    ("raynode.v1.CoreService", &["ListCores", "RenewCore"]),
    (
        "raynode.v1.UsageService",
        &["CollectUsage", "AcknowledgeUsage", "ListOnlineUsers"],
    ),
];

/// Those that last as long as their caller likes.
const STREAMS: [(&str, &[&str]); 4] = [
    (
        "service.NodeService",
        &["GetLogs", "SyncUser", "SyncUsersChunked"],
    ),
    ("grpc.health.v1.Health", &["Watch"]),
    (
        "grpc.reflection.v1.ServerReflection",
        &["ServerReflectionInfo"],
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection",
        &["ServerReflectionInfo"],
    ),
];

/// What a request to the panel's port calls.
pub(super) fn called<B>(request: &Request<B>) -> Call {
    let path = request.uri().path();
    if front::is_grpc(request.headers()) {
        over_grpc(path)
    } else {
        over_rest(request.method(), path)
    }
}

fn over_grpc(path: &str) -> Call {
    let call = |method, streams| Call {
        transport: "grpc",
        method,
        streams,
    };
    if path == health::CHECK {
        return call("Check", false);
    }
    let stream = || find(&STREAMS, path).map(|method| call(method, true));
    let unary = find(&UNARY, path).map(|method| call(method, false));
    unary.or_else(stream).unwrap_or(call(UNKNOWN, false))
}

fn find(services: &[(&str, &[&'static str])], path: &str) -> Option<&'static str> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = services.iter().find(|(name, _)| *name == service)?;
    methods.iter().find(|name| **name == method).copied()
}

fn over_rest(method: &Method, path: &str) -> Call {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let mut routes = ROUTES.iter();
    let route = routes.find(|route| route.path == path && route.method == *method);
    Call {
        transport: "rest",
        method: route.map_or(UNKNOWN, |route| route.call.method()),
        streams: route.is_some_and(|route| route.call == Route::Logs),
    }
}

/// What a request to the port of the panel's buttons calls.
pub(super) fn of_maintenance(method: &Method, path: &str) -> Call {
    let method = match (method, path) {
        (&Method::GET, "") => "status",
        (&Method::POST, "/node/update") => "update",
        (&Method::POST, "/node/core_update") => "core_update",
        (&Method::POST, "/node/geofiles") => "geofiles",
        (&Method::POST, "/node/hard_reset") => "hard_reset",
        _ => UNKNOWN,
    };
    Call {
        transport: "maintenance",
        method,
        streams: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panel::json::DESCRIPTORS;
    use crate::panel::reflection;

    #[test]
    fn every_method_of_the_contract_has_its_name() {
        let served = |name: &str| reflection::SERVED.contains(&name);
        for service in DESCRIPTORS
            .services()
            .filter(|service| served(service.full_name()))
        {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                let call = over_grpc(&path);
                let streams = method.is_client_streaming() || method.is_server_streaming();
                assert_eq!(
                    (call.method, call.streams),
                    (method.name(), streams),
                    "{path}"
                );
            }
        }
        for path in [
            "/grpc.health.v1.Health/Watch",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(over_grpc(path).streams, "{path}");
        }
    }

    #[test]
    fn what_a_stranger_calls_has_one_name() {
        for path in [
            "",
            "/",
            "/x",
            "/service.NodeService/",
            "/a/Start",
            "/service.NodeService/Start/x",
        ] {
            assert_eq!(over_grpc(path).method, UNKNOWN, "{path}");
        }
        let rest = |method: Method, path: &str| over_rest(&method, path).method;
        assert_eq!(rest(Method::GET, "/info/"), "GetBaseInfo");
        assert_eq!(rest(Method::GET, ""), "GetBaseInfo");
        assert_eq!(rest(Method::PUT, "/user/sync"), "SyncUser");
        assert_eq!(rest(Method::PUT, "/info"), UNKNOWN);
        assert_eq!(rest(Method::GET, "/etc/passwd"), UNKNOWN);
        assert!(over_rest(&Method::GET, "/logs").streams);
    }
}
