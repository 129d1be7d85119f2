//! One table of calls and outcomes, played over gRPC, REST with protobuf and REST with JSON, each
//! against a node of its own: the transports can't disagree.

use bytes::{Buf, BufMut, Bytes};
use http::Method;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use raynode::proto::SERVICE_DESCRIPTORS;
use serde_json::{Value, json};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::NODE;
use crate::support::node::xray_version;
use crate::support::panel::channel;
use crate::support::rest::{Http, Rest};
use crate::support::users::{id, password};
use crate::support::xray::{freedom, vless_inbound};
use crate::support::{NodeProcess, ports};

/// A call and what comes of it.
struct Scenario {
    name: &'static str,
    call: &'static str,
    request: Value,
    key: Key,
    outcome: Outcome,
}

/// Which credential goes with a call.
#[derive(Clone, Copy)]
enum Key {
    Right,
    /// The right one, as a Bearer.
    Bearer,
    Wrong,
    NotAUuid,
    None,
}

enum Outcome {
    /// These fields with these values, whatever else there is.
    Reply(Value),
    /// The gRPC code, the HTTP status, and a part of the text.
    Refused(Code, u16, &'static str),
}

use Outcome::{Refused, Reply};

/// Where REST has a call.
fn route(call: &str) -> (Method, &'static str) {
    match call {
        "Start" => (Method::POST, "/start"),
        "Stop" => (Method::PUT, "/stop"),
        "GetBaseInfo" => (Method::GET, "/info"),
        "GetStats" => (Method::GET, "/stats"),
        "GetOutboundsLatency" => (Method::GET, "/stats/latency"),
        "GetUserOnlineStats" => (Method::GET, "/stats/user/online"),
        "GetUserOnlineIpListStats" => (Method::GET, "/stats/user/online_ip"),
        "GetBackendStats" => (Method::GET, "/stats/backend"),
        "GetSystemStats" => (Method::GET, "/stats/system"),
        "SyncUser" => (Method::PUT, "/user/sync"),
        "SyncUsers" => (Method::PUT, "/users/sync"),
        "SyncUsersChunked" => (Method::PUT, "/users/sync/chunked"),
        "ListRoutingRules" => (Method::GET, "/routing/rules"),
        "AddRoutingRule" => (Method::PUT, "/routing/rules"),
        "RemoveRoutingRule" => (Method::DELETE, "/routing/rules"),
        "TestRoute" => (Method::POST, "/routing/test"),
        "GetBalancerInfo" => (Method::POST, "/routing/balancer"),
        "OverrideBalancerTarget" => (Method::PUT, "/routing/balancer/override"),
        other => panic!("no route is known for {other}"),
    }
}

fn say(name: &'static str, call: &'static str, request: Value, outcome: Outcome) -> Scenario {
    say_as(Key::Right, name, call, request, outcome)
}

fn say_as(
    key: Key,
    name: &'static str,
    call: &'static str,
    request: Value,
    outcome: Outcome,
) -> Scenario {
    Scenario {
        name,
        call,
        request,
        key,
        outcome,
    }
}

fn user(email: &str, inbounds: &[&str]) -> Value {
    json!({
        "email": email,
        "proxies": { "vless": { "id": id(email) }, "trojan": { "password": password(email) } },
        "inbounds": inbounds,
    })
}

/// The rows, in the order in which they are played.
fn scenarios(config: &Value) -> Vec<Scenario> {
    let nothing = || json!({});
    let start = |users: Value| json!({ "config": config.to_string(), "users": users });
    let not_started = || Refused(Code::Unavailable, 500, "backend not initialized");
    let invalid = |text| Refused(Code::InvalidArgument, 400, text);
    let rule = |rule: Value| json!({ "rule": rule.to_string() });
    let blocked =
        json!({ "ruleTag": "blocked", "domain": ["full:blocked.example"], "outboundTag": "block" });
    let route_to = |domain: &str| json!({ "inbound_tag": "vless", "network": "tcp", "target_domain": domain, "target_port": 443 });
    let needs_core = [
        ("stats need a core", "GetStats"),
        ("the core's statistics need a core", "GetBackendStats"),
        ("the machine's load needs a core", "GetSystemStats"),
        ("who is online needs a core", "GetUserOnlineStats"),
        ("addresses need a core", "GetUserOnlineIpListStats"),
        ("one user needs a core", "SyncUser"),
        ("all users need a core", "SyncUsers"),
        ("rules need a core", "ListRoutingRules"),
        ("a test needs a core", "TestRoute"),
    ];
    let lists_rules = xray_version() >= (26, 1, 23);
    let mut rows = vec![
        say_as(
            Key::None,
            "no key",
            "GetBaseInfo",
            nothing(),
            Refused(Code::Unauthenticated, 401, "missing x-api-key header"),
        ),
        say_as(
            Key::Wrong,
            "a wrong key",
            "GetBaseInfo",
            nothing(),
            Refused(Code::PermissionDenied, 403, "api key mismatch"),
        ),
        say_as(
            Key::NotAUuid,
            "a key that is none",
            "GetBaseInfo",
            nothing(),
            Refused(
                Code::InvalidArgument,
                422,
                "invalid api key format: must be a valid UUID",
            ),
        ),
        say_as(
            Key::Bearer,
            "the key as a Bearer",
            "GetBaseInfo",
            nothing(),
            Reply(json!({ "started": false })),
        ),
        say(
            "info before a start",
            "GetBaseInfo",
            nothing(),
            Reply(json!({ "started": false, "node_version": env!("CARGO_PKG_VERSION") })),
        ),
        say("stop before a start", "Stop", nothing(), not_started()),
        say(
            "chunks before a start",
            "SyncUsersChunked",
            json!({ "users": [user("1", &[])], "last": true }),
            not_started(),
        ),
        say(
            "a rule before a start",
            "AddRoutingRule",
            rule(blocked.clone()),
            not_started(),
        ),
        say(
            "no rule to remove before a start",
            "RemoveRoutingRule",
            json!({ "rule_tag": "blocked" }),
            not_started(),
        ),
        say(
            "no balancer before a start",
            "GetBalancerInfo",
            json!({ "tag": "b" }),
            not_started(),
        ),
        say(
            "no balancer to override before a start",
            "OverrideBalancerTarget",
            json!({ "balancer_tag": "b" }),
            not_started(),
        ),
    ];
    rows.extend(needs_core.map(|(name, call)| say(name, call, nothing(), not_started())));
    rows.extend([
        say("a config that is no JSON", "Start", json!({ "config": "{ not json" }), Refused(Code::Unknown, 503, "the config is not valid JSON")),
        say("a config that Xray refuses", "Start", json!({ "config": r#"{"inbounds":[{"protocol":"nosuch","port":1}],"outbounds":[{"protocol":"freedom"}]}"# }), Refused(Code::Unknown, 503, "unknown config id: nosuch")),
        say("wireguard", "Start", json!({ "type": "WIREGUARD" }), Refused(Code::Unimplemented, 503, "this node serves xray, not wireguard")),
        say("a start", "Start", start(json!([user("1", &["vless"])])), Reply(json!({ "started": true }))),
        say("the same start", "Start", start(json!([user("1", &["vless"])])), Reply(json!({ "started": true }))),
        say("info", "GetBaseInfo", nothing(), Reply(json!({ "started": true, "session_id": "" }))),
        say("no traffic yet", "GetStats", json!({ "type": "UsersStat" }), Reply(json!({ "stats": [] }))),
        say("one user's traffic without a name", "GetStats", json!({ "type": "UserStat" }), Refused(Code::Unknown, 500, "email required")),
        say("an inbound's traffic without a name", "GetStats", json!({ "type": "Inbound" }), Refused(Code::Unknown, 500, "tag required")),
        say("a kind of traffic that nobody knows", "GetStats", json!({ "type": 17 }), Refused(Code::Unknown, 500, "not implemented stat type")),
        say("the core's statistics", "GetBackendStats", nothing(), Reply(json!({ "pause_total_ns": null }))),
        say("the machine's load", "GetSystemStats", nothing(), Reply(json!({ "mem_total": null }))),
        say("somebody who never came", "GetUserOnlineStats", json!({ "name": "1" }), Refused(Code::NotFound, 404, "not found.")),
        say("his addresses", "GetUserOnlineIpListStats", json!({ "name": "1" }), Refused(Code::NotFound, 404, "not found.")),
        say("nobody's addresses", "GetUserOnlineIpListStats", nothing(), Refused(Code::Unknown, 500, "email required")),
        say("latency without an observatory", "GetOutboundsLatency", nothing(), Refused(Code::Unknown, 502, "xray outbound latency is not available")),
        say("one user more", "SyncUser", user("2", &["vless"]), Reply(nothing())),
        say("a user without a name", "SyncUser", user("", &["vless"]), Refused(Code::Unknown, 400, "email is required")),
        say("a user with a bad secret", "SyncUser", json!({ "email": "3", "proxies": { "vless": { "id": "no id" } }, "inbounds": ["vless"] }), Refused(Code::Internal, 500, "failed to update user: user 3")),
        say("all users", "SyncUsers", json!({ "users": [user("1", &["vless"]), user("4", &["vless"])] }), Reply(nothing())),
        say("two users with one secret", "SyncUsers", json!({ "users": [user("1", &["vless"]), { "email": "5", "proxies": { "vless": { "id": id("1") } }, "inbounds": ["vless"] }] }), Refused(Code::Internal, 500, "failed to update users: ")),
        say("chunks", "SyncUsersChunked", json!({ "users": [user("5", &["vless"])], "last": true }), Reply(nothing())),
        say("chunks without an end", "SyncUsersChunked", json!({ "users": [user("5", &["vless"])] }), invalid("missing final chunk indicator")),
        say("chunks with a gap", "SyncUsersChunked", json!({ "users": [user("5", &["vless"])], "index": 1, "last": true }), invalid("missing chunk index 0")),
        say("chunks of nobody", "SyncUsersChunked", json!({ "last": true }), invalid("no users received")),
    ]);
    if lists_rules {
        rows.push(say(
            "the rules",
            "ListRoutingRules",
            nothing(),
            Reply(json!({ "rules": [
            { "outbound_tag": "block", "rule_tag": "PG_NODE_MALFORMED_DOMAIN_GUARD" },
            { "outbound_tag": "", "rule_tag": "balanced" },
        ] })),
        ));
    } else {
        rows.push(say(
            "the rules of an old core",
            "ListRoutingRules",
            nothing(),
            Refused(
                Code::Unimplemented,
                501,
                "ListRoutingRules needs xray 26.1.23 or newer",
            ),
        ));
    }
    rows.extend([
        say("no rule matches", "TestRoute", route_to("blocked.example"), Refused(Code::NotFound, 404, "no rule matches: the default outbound \"direct\" would take it")),
        say("a rule that is no JSON", "AddRoutingRule", json!({ "rule": "{" }), invalid("the rule is not valid JSON")),
        say("a rule that is no object", "AddRoutingRule", json!({ "rule": "[]" }), invalid("the rule is not a JSON object")),
        say("a rule without a condition", "AddRoutingRule", rule(json!({ "outboundTag": "block" })), invalid("this rule has no effective fields")),
        say("a rule that leads nowhere", "AddRoutingRule", rule(json!({ "domain": ["a.example"] })), invalid("neither outboundTag nor balancerTag is specified")),
        say("a rule to a balancer that is not there", "AddRoutingRule", rule(json!({ "domain": ["a.example"], "balancerTag": "nosuch" })), invalid("balancer nosuch not found")),
        // Xray panics on these, and has to do it somewhere else.
        say("a rule with a bad expression", "AddRoutingRule", rule(json!({ "attrs": { ":method": "(" }, "outboundTag": "block" })), invalid("regexp")),
        say("a rule above 4 MiB", "AddRoutingRule", json!({ "rule": json!({ "user": ["x".repeat(5 << 20)], "outboundTag": "block" }).to_string() }), invalid("larger than max")),
        say("a reset above 4 MiB", "AddRoutingRule", json!({ "rule": json!({ "user": ["x".repeat(5 << 20)], "outboundTag": "block" }).to_string(), "should_reset": true }), invalid("larger than max")),
        say("a rule to the core's API", "AddRoutingRule", rule(json!({ "domain": ["a.example"], "outboundTag": "API" })), invalid("the node's own")),
        say("a rule by one of the node's names", "AddRoutingRule", rule(json!({ "ruleTag": "raynode-api", "domain": ["a.example"], "outboundTag": "block" })), invalid("the node's own")),
        say("a rule", "AddRoutingRule", rule(blocked.clone()), Reply(nothing())),
        say("the same rule", "AddRoutingRule", rule(blocked), Reply(nothing())),
        say("another rule of its tag", "AddRoutingRule", rule(json!({ "ruleTag": "blocked", "domain": ["b.example"], "outboundTag": "block" })), Refused(Code::AlreadyExists, 409, "duplicate ruleTag blocked")),
        say("the rule matches", "TestRoute", route_to("blocked.example"), Reply(json!({ "outbound_tag": "block", "inbound_tag": "vless", "network": "tcp", "target_domain": "blocked.example" }))),
        say("the rule matches, told in part", "TestRoute", json!({ "target_domain": "blocked.example", "field_selectors": ["outbound"] }), Reply(json!({ "outbound_tag": "block", "target_domain": "" }))),
        say("a balancer's rule matches", "TestRoute", json!({ "inbound_tag": "vless", "network": "udp", "target_ip": "203.0.113.7", "target_port": 53 }), Reply(json!({ "outbound_tag": "block", "network": "udp" }))),
        say("a network that is none", "TestRoute", json!({ "network": "sctp" }), invalid("network is tcp or udp, not \"sctp\"")),
        say("an address that is none", "TestRoute", json!({ "target_ip": "1.2.3" }), invalid("target_ip is not an address")),
        say("a port that is none", "TestRoute", json!({ "target_port": 65536 }), invalid("target_port is above 65535")),
        say("a balancer", "GetBalancerInfo", json!({ "tag": "even" }), Reply(json!({ "override_target": "" }))),
        say("a balancer without a tag", "GetBalancerInfo", nothing(), invalid("tag is required")),
        say("a balancer that is not there", "GetBalancerInfo", json!({ "tag": "nosuch" }), Refused(Code::NotFound, 404, "balancer \"nosuch\" not found")),
        say("a balancer is told", "OverrideBalancerTarget", json!({ "balancer_tag": "even", "target": "direct" }), Reply(nothing())),
        say("a balancer that is not there is told", "OverrideBalancerTarget", json!({ "balancer_tag": "nosuch", "target": "direct" }), Refused(Code::NotFound, 404, "balancer \"nosuch\" not found")),
        say("a balancer is told of the core's API", "OverrideBalancerTarget", json!({ "balancer_tag": "even", "target": "API" }), Refused(Code::NotFound, 404, "outbound \"API\" not found")),
        say("no balancer is told", "OverrideBalancerTarget", json!({ "target": "direct" }), invalid("balancer_tag is required")),
        say("a balancer does as it is told", "GetBalancerInfo", json!({ "tag": "even" }), Reply(json!({ "override_target": "direct" }))),
        say("and sends there", "TestRoute", json!({ "inbound_tag": "vless", "network": "udp", "target_ip": "203.0.113.7", "target_port": 53 }), Reply(json!({ "outbound_tag": "direct" }))),
        say("a balancer is free again", "OverrideBalancerTarget", json!({ "balancer_tag": "even" }), Reply(nothing())),
        say("the rule goes", "RemoveRoutingRule", json!({ "rule_tag": "blocked" }), Reply(nothing())),
        say("the rule is gone", "RemoveRoutingRule", json!({ "rule_tag": "blocked" }), Reply(nothing())),
        say("no rule goes without a tag", "RemoveRoutingRule", nothing(), invalid("rule_tag is required")),
        say("the node's own rule stays", "RemoveRoutingRule", json!({ "rule_tag": "PG_NODE_MALFORMED_DOMAIN_GUARD" }), invalid("the node's own")),
        say("no rule matches any more", "TestRoute", route_to("blocked.example"), Refused(Code::NotFound, 404, "no rule matches")),
        say("a reset that Xray would not run", "AddRoutingRule", json!({ "rule": json!({ "domain": ["a.example"], "balancerTag": "even" }).to_string(), "should_reset": true }), invalid("even")),
        say("the balancer is still there", "GetBalancerInfo", json!({ "tag": "even" }), Reply(nothing())),
        say("a reset", "AddRoutingRule", json!({ "rule": json!({ "ruleTag": "only", "port": "443", "outboundTag": "block" }).to_string(), "should_reset": true }), Reply(nothing())),
        say("the balancer is gone", "GetBalancerInfo", json!({ "tag": "even" }), Refused(Code::NotFound, 404, "balancer \"even\" not found")),
        say("only that rule is left", "TestRoute", route_to("anything.example"), Reply(json!({ "outbound_tag": "block" }))),
    ]);
    if lists_rules {
        rows.push(say(
            "and the node's own",
            "ListRoutingRules",
            nothing(),
            Reply(json!({ "rules": [
            { "outbound_tag": "block", "rule_tag": "PG_NODE_MALFORMED_DOMAIN_GUARD" },
            { "outbound_tag": "block", "rule_tag": "only" },
        ] })),
        ));
    }
    rows.extend([
        say("stop", "Stop", nothing(), Reply(nothing())),
        say("stop again", "Stop", nothing(), not_started()),
        say(
            "info after the stop",
            "GetBaseInfo",
            nothing(),
            Reply(json!({ "started": false })),
        ),
    ]);
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transport_answers_the_same() {
    let played =
        [Transport::Grpc, Transport::Protobuf, Transport::Json].map(|transport| async move {
            let node = NodeProcess::start(NODE);
            let config = json!({
                "log": { "loglevel": "warning" },
                "inbounds": [vless_inbound("vless", ports::free())],
                "outbounds": [freedom(), { "tag": "block", "protocol": "blackhole" }],
                "routing": {
                    "balancers": [{ "tag": "even", "selector": ["block"] }],
                    "rules": [{ "ruleTag": "balanced", "network": "udp", "balancerTag": "even" }],
                },
            });
            let (mut rows, mut core) = (0, None);
            for scenario in scenarios(&config) {
                play(transport, &node, &scenario).await;
                match scenario.name {
                    "a start" => core = Some(node.core()),
                    "stop" => core = None,
                    name => assert!(core.is_none_or(|core| node.core() == core), "{name}"),
                }
                rows += 1;
            }
            rows
        });
    let [grpc, protobuf, json] = played;
    let rows = tokio::join!(grpc, protobuf, json);
    assert!(
        rows.0 > 70 && rows.0 == rows.1 && rows.1 == rows.2,
        "{rows:?}"
    );
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Grpc,
    Protobuf,
    Json,
}

async fn play(transport: Transport, node: &NodeProcess, scenario: &Scenario) {
    let method = method(scenario.call);
    let key = match scenario.key {
        Key::Right => Some(("x-api-key", node.api_key.to_string())),
        Key::Bearer => Some(("authorization", format!("Bearer {}", node.api_key))),
        Key::Wrong => Some(("x-api-key", Uuid::new_v4().to_string())),
        Key::NotAUuid => Some(("x-api-key", "secret".to_owned())),
        Key::None => None,
    };
    let request = decode_json(method.input(), &scenario.request).encode_to_vec();
    let what = format!("{transport:?}: {}", scenario.name);
    match (transport, &scenario.outcome) {
        (Transport::Grpc, outcome) => {
            match (
                grpc(node, scenario.call, key, request.into()).await,
                outcome,
            ) {
                (Ok(reply), Reply(wanted)) => has(&what, &to_json(method.output(), &reply), wanted),
                (Err(status), Refused(code, _, text)) => assert!(
                    status.code() == *code && status.message().contains(text),
                    "{what}: {status}"
                ),
                (outcome, _) => panic!("{what}: {outcome:?}"),
            }
        }
        (Transport::Protobuf | Transport::Json, outcome) => {
            let json = matches!(transport, Transport::Json);
            let mut rest = Rest::with_key(node, Http::OneDespiteH2, None);
            rest.headers.extend(key);
            let body = if json {
                rest.headers
                    .push(("content-type", "application/json".to_owned()));
                rest.headers.push(("accept", "application/json".to_owned()));
                scenario.request.to_string().into_bytes()
            } else if scenario.call == "SyncUsersChunked" {
                let mut framed = Vec::new();
                prost::encode_length_delimiter(request.len(), &mut framed).unwrap();
                framed.extend(request);
                framed
            } else {
                request
            };
            let (http_method, path) = route(scenario.call);
            let answer = rest.call(http_method, path, body).await;
            match outcome {
                Reply(wanted) => {
                    assert_eq!(answer.status, 200, "{what}: {:?}", answer.body);
                    let reply = if json {
                        answer.json()
                    } else {
                        to_json(method.output(), &answer.body)
                    };
                    has(&what, &reply, wanted);
                }
                Refused(_, status, text) => assert!(
                    answer.status.as_u16() == *status && answer.text().contains(text),
                    "{what}: {} {:?}",
                    answer.status,
                    answer.body
                ),
            }
        }
    }
}

fn method(call: &str) -> prost_reflect::MethodDescriptor {
    let pool = DescriptorPool::decode(SERVICE_DESCRIPTORS).unwrap();
    let service = pool.get_service_by_name("service.NodeService").unwrap();
    service
        .methods()
        .find(|method| method.name() == call)
        .unwrap()
}

fn decode_json(message: MessageDescriptor, json: &Value) -> DynamicMessage {
    DynamicMessage::deserialize(message, json).unwrap()
}

fn to_json(message: MessageDescriptor, bytes: &[u8]) -> Value {
    let options = prost_reflect::SerializeOptions::new()
        .skip_default_fields(false)
        .use_proto_field_name(true);
    let message = DynamicMessage::decode(message, bytes).unwrap();
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap()
}

/// `null` stands for any value.
fn has(what: &str, reply: &Value, wanted: &Value) {
    for (field, value) in wanted.as_object().unwrap() {
        let found = reply.get(field);
        assert!(found.is_some(), "{what}: no {field} in {reply}");
        assert!(
            value.is_null() || found == Some(value),
            "{what}: {field} is {found:?}"
        );
    }
}

/// A call by its name, with bytes for messages.
async fn grpc(
    node: &NodeProcess,
    call: &str,
    key: Option<(&'static str, String)>,
    message: Bytes,
) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel(node));
    client.ready().await.unwrap();
    let mut request = Request::new(message);
    if let Some((name, value)) = key {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let path = format!("/service.NodeService/{call}").parse().unwrap();
    let reply = client.unary(request, path, Raw).await?;
    Ok(reply.into_inner())
}

#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
