//! The same node over REST, and the older methods over gRPC: what one transport says, the other
//! says too.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use prost::Message;
use raynode::panel::wire::{UserList, UsersChunk};
use raynode::proto::service::{
    BackendStatsResponse, BaseInfoResponse, Empty, LatencyRequest, OnlineStatResponse, Stat,
    StatRequest, StatResponse, StatType, SystemStatsResponse,
};
use serde_json::json;
use uuid::Uuid;

use crate::NODE;
use crate::support::panel::{backend, encoded};
use crate::support::rest::{Http, Rest};
use crate::support::users::{self, numbered, user};
use crate::support::xray::{vless_config, vless_outbound};
use crate::support::{NodeProcess, Origin, Panel, XrayClient, origin, ports};

const EVERY_HTTP: [Http; 3] = [Http::One, Http::OneDespiteH2, Http::Two];

fn named(name: &str) -> Bytes {
    StatRequest {
        name: name.to_owned(),
        ..StatRequest::default()
    }
    .encode_to_vec()
    .into()
}

async fn is_served(port: u16, origin: &Origin, email: &str) -> bool {
    let client = XrayClient::start(&vless_outbound(port, users::id(email)));
    let attempt = async {
        let mut stream = client.connect(origin.address).await?;
        origin::exchange(&mut stream, 1000, 2000).await
    };
    matches!(
        tokio::time::timeout(Duration::from_secs(5), attempt).await,
        Ok(Ok(()))
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panel_can_do_everything_over_rest() {
    for http in EVERY_HTTP {
        let node = NodeProcess::start(NODE);
        let rest = Rest::of(&node, http);
        let (origin, port) = (Origin::start().await, ports::free());
        let info: BaseInfoResponse = rest.get("/info", "").await.message();
        assert!(!info.started && info.node_version == env!("CARGO_PKG_VERSION"));

        let start = backend(&vless_config(port), &numbered(1..2, &["vless"]));
        let reply = rest.post("/start", start.encode_to_vec()).await;
        assert_eq!(reply.header("content-type"), "application/x-protobuf");
        let info: BaseInfoResponse = reply.message();
        assert!(info.started && !info.session_id.is_empty());
        let core = node.core();
        assert!(is_served(port, &origin, "1").await);

        // Protobuf bodies on GET; the kind in the message, and in the path as of old.
        let stats = StatRequest {
            name: "1".to_owned(),
            r#type: StatType::UserStat.into(),
            ..Default::default()
        };
        for (path, request) in [
            ("/stats", stats.encode_to_vec()),
            ("/stats/", stats.encode_to_vec()),
            ("/stats/user", named("1").to_vec()),
            ("/stats/users", Vec::new()),
        ] {
            let stats = rest
                .get(path, request)
                .await
                .message::<StatResponse>()
                .stats;
            let value = |kind: &str| stats.iter().find(|stat| stat.r#type == kind).unwrap().value;
            assert_eq!((value("uplink"), value("downlink")), (1000, 2000), "{path}");
            assert!(
                stats
                    .iter()
                    .all(|stat| stat.name == "1" && stat.link == "traffic")
            );
        }
        for (path, name) in [
            ("/stats/outbounds", ""),
            ("/stats/outbound", "direct"),
            ("/stats/inbounds", ""),
            ("/stats/inbound", "vless"),
        ] {
            assert!(
                !rest
                    .get(path, named(name))
                    .await
                    .message::<StatResponse>()
                    .stats
                    .is_empty(),
                "{path}"
            );
        }
        assert!(
            rest.get("/stats/backend", "")
                .await
                .message::<BackendStatsResponse>()
                .num_goroutine
                > 0
        );
        rest.get("/stats/system", "")
            .await
            .message::<SystemStatsResponse>();

        // One user, all users, and chunks in both framings that clients write.
        assert!(
            rest.put("/user/sync", user("2", &["vless"]).encode_to_vec())
                .await
                .body
                .is_empty()
        );
        assert!(is_served(port, &origin, "2").await);
        let all = UserList {
            users: encoded(&numbered(2..4, &["vless"])),
        }
        .encode_to_vec();
        rest.put("/users/sync/", all.clone())
            .await
            .message::<Empty>();
        rest.post("/users/sync", all).await.message::<Empty>();
        assert!(!is_served(port, &origin, "1").await && is_served(port, &origin, "3").await);
        let chunks = |from: usize| {
            let chunk = |index: u64, number| UsersChunk {
                users: encoded(&numbered(number..number + 100, &["vless"])),
                index,
                last: index == 1,
            };
            [chunk(0, from), chunk(1, from + 100)]
        };
        let varint: Vec<u8> = chunks(1000)
            .iter()
            .flat_map(UsersChunk::encode_length_delimited_to_vec)
            .collect();
        rest.put("/users/sync/chunked", varint)
            .await
            .message::<Empty>();
        let mut fixed = BytesMut::new();
        for chunk in chunks(2000) {
            fixed.put_u32(u32::try_from(chunk.encoded_len()).unwrap());
            fixed.put_slice(&chunk.encode_to_vec());
        }
        rest.put("/users/sync/chunked", fixed.freeze())
            .await
            .message::<Empty>();
        for email in ["1199", "2199", "3"] {
            assert!(is_served(port, &origin, email).await, "{email} {http:?}");
        }
        let online: OnlineStatResponse = rest.get("/stats/user/online", named("3")).await.message();
        assert_eq!(online.name, "3");
        assert_eq!(node.core(), core);

        rest.put("/stop", "ignored").await.message::<Empty>();
        assert!(node.cores().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_plain_text_with_the_status_that_clients_know() {
    let node = NodeProcess::start(NODE);
    for http in EVERY_HTTP {
        let rest = Rest::of(&node, http);
        let check = |answer: crate::support::rest::Answer, status: u16, text: &str| {
            assert_eq!(answer.status.as_u16(), status, "{} {http:?}", answer.text());
            assert!(
                answer.text().contains(text) && answer.text().ends_with('\n'),
                "{}",
                answer.text()
            );
            assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
        };
        // Authentication comes before routing.
        for path in ["/info", "/nosuch"] {
            check(
                Rest::with_key(&node, http, None).get(path, "").await,
                401,
                "missing x-api-key header",
            );
            check(
                Rest::with_key(&node, http, Some(Uuid::nil()))
                    .get(path, "")
                    .await,
                403,
                "api key mismatch",
            );
            for (key, status, text) in [
                ("hunter2", 422, "must be a valid UUID"),
                ("", 401, "missing x-api-key header"),
            ] {
                let mut bad = Rest::with_key(&node, http, None);
                bad.headers.push(("x-api-key", key.to_owned()));
                check(bad.get(path, "").await, status, text);
            }
        }
        check(rest.get("/nosuch", "").await, 404, "no such route");
        check(
            rest.call(Method::DELETE, "/info", "").await,
            405,
            "method not allowed",
        );

        // Without a session.
        for (method, path) in [
            (Method::PUT, "/stop"),
            (Method::GET, "/stats"),
            (Method::GET, "/stats/latency"),
            (Method::GET, "/stats/system"),
            (Method::GET, "/stats/user/online"),
            (Method::GET, "/logs"),
            (Method::PUT, "/users/sync"),
        ] {
            check(
                rest.call(method, path, "").await,
                500,
                "backend not initialized",
            );
        }
        check(
            rest.post("/start", "\u{1}garbage").await,
            400,
            "could not be decoded",
        );
        let refused = backend(
            &json!({ "inbounds": [{ "protocol": "nosuch", "port": 1 }] }),
            &[],
        );
        check(
            rest.post("/start", refused.encode_to_vec()).await,
            503,
            "unknown config id: nosuch",
        );

        let start = backend(&vless_config(ports::free()), &numbered(1..2, &["vless"]));
        rest.post("/start", start.encode_to_vec())
            .await
            .message::<BaseInfoResponse>();
        let mut bad = user("bad", &["vless"]);
        bad.proxies.as_mut().unwrap().vless.as_mut().unwrap().id = "x".to_owned();
        check(
            rest.put("/user/sync", bad.encode_to_vec()).await,
            500,
            "failed to update user: user bad",
        );
        check(
            rest.put("/user/sync", user("", &[]).encode_to_vec()).await,
            400,
            "email is required",
        );
        check(
            rest.put("/user/sync", "\u{1}garbage").await,
            400,
            "could not be decoded",
        );
        let list = UserList {
            users: encoded(&[bad]),
        }
        .encode_to_vec();
        check(
            rest.put("/users/sync", list).await,
            500,
            "failed to update users: user bad",
        );
        let open = UsersChunk {
            users: encoded(&numbered(1..2, &[])),
            index: 0,
            last: false,
        };
        let open = open.encode_length_delimited_to_vec();
        check(
            rest.put("/users/sync/chunked", open).await,
            400,
            "missing final chunk indicator",
        );
        check(
            rest.put("/users/sync/chunked", vec![0xff, 0xff, 0xff, 0x7f, 1])
                .await,
            400,
            "middle of a chunk",
        );
        check(rest.get("/stats/user", "").await, 400, "name is required");
        check(
            rest.get("/stats/user/online", named("nobody")).await,
            404,
            "not found.",
        );
        let latency = LatencyRequest::default().encode_to_vec();
        check(
            rest.get("/stats/latency", latency).await,
            502,
            "not available",
        );
        rest.put("/stop", "").await.message::<Empty>();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_have_64_mib_and_not_a_byte_more() {
    let node = NodeProcess::start(NODE);
    let answer = Rest::of(&node, Http::Two)
        .post("/start", vec![b'x'; 65 << 20])
        .await;
    assert_eq!(
        answer.status,
        StatusCode::PAYLOAD_TOO_LARGE,
        "{}",
        answer.text()
    );
    assert!(node.memory_kib() < 150 << 10, "{} KiB", node.memory_kib());
}

#[tokio::test(flavor = "multi_thread")]
async fn people_with_curl_get_json() {
    let node = NodeProcess::start(NODE);
    let mut rest = Rest::of(&node, Http::One);
    rest.headers
        .push(("content-type", "application/json".to_owned()));
    rest.headers.push(("accept", "application/json".to_owned()));
    let (origin, port) = (Origin::start().await, ports::free());
    let someone = |email: &str| json!({ "email": email, "inbounds": ["vless"], "proxies": { "vless": { "id": users::id(email) } } });
    let start = json!({ "config": vless_config(port).to_string(), "users": [someone("1")], "keep_alive": "0" });
    let reply = rest.post("/start", start.to_string()).await;
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (StatusCode::OK, "application/json")
    );
    assert_eq!(reply.json()["started"], json!(true));
    assert!(is_served(port, &origin, "1").await);
    let stats = rest
        .get(
            "/stats",
            json!({ "type": "UserStat", "name": "1" }).to_string(),
        )
        .await
        .json();
    let up = stats["stats"]
        .as_array()
        .unwrap()
        .iter()
        .find(|stat| stat["type"] == "uplink")
        .unwrap();
    assert_eq!((&up["name"], &up["value"]), (&json!("1"), &json!("1000")));

    assert_eq!(
        rest.put("/user/sync", someone("2").to_string())
            .await
            .json(),
        json!({})
    );
    let chunks = json!([{ "users": [someone("3")] }, { "users": [someone("4")], "index": "1", "last": true }]);
    assert_eq!(
        rest.put("/users/sync/chunked", chunks.to_string())
            .await
            .json(),
        json!({})
    );
    assert!(is_served(port, &origin, "2").await && is_served(port, &origin, "4").await);
    let answer = rest.put("/user/sync", "{\"nosuch\": 1}").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(
        answer.text().contains("not the JSON of a User"),
        "{}",
        answer.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_begins_at_once_and_is_raw_lines() {
    let node = NodeProcess::start(NODE);
    for http in EVERY_HTTP {
        let rest = Rest::of(&node, http);
        let mut config = vless_config(ports::free());
        // Xray says two lines of itself before it is silent.
        config["log"] = json!({ "loglevel": "none" });
        let start = backend(&config, &[]);
        rest.post("/start", start.encode_to_vec())
            .await
            .message::<BaseInfoResponse>();
        let reply = tokio::time::timeout(
            Duration::from_secs(2),
            rest.open(Method::GET, "/logs", Bytes::new()),
        );
        let reply = reply.await.expect("the headers come at once");
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.headers()["content-type"], "text/event-stream");
        assert_eq!(reply.headers()["cache-control"], "no-cache");
        let mut body = reply.into_body();
        let mut text = String::new();
        while !text.contains("A unified platform") {
            let frame = tokio::time::timeout(Duration::from_secs(5), body.frame())
                .await
                .unwrap();
            text += std::str::from_utf8(frame.unwrap().unwrap().data_ref().unwrap()).unwrap();
        }
        assert!(
            text.starts_with("Xray ") && !text.contains("data:"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_is_described_is_there() {
    let node = NodeProcess::start(NODE);
    let rest = Rest::of(&node, Http::One);
    let answer = rest.get("/openapi.json", "").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let document = answer.json();
    let start = backend(&vless_config(ports::free()), &[]);
    rest.post("/start", start.encode_to_vec())
        .await
        .message::<BaseInfoResponse>();
    let mut count = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            count += 1;
            let content = &operation["responses"]["200"]["content"];
            if path == "/logs" || path == "/stop" {
                continue;
            }
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let body = if path == "/start" {
                start.encode_to_vec()
            } else {
                Vec::new()
            };
            let answer = rest.call(method, path, body).await;
            assert!(
                answer.status != StatusCode::METHOD_NOT_ALLOWED
                    && !String::from_utf8_lossy(&answer.body).contains("no such route"),
                "{path}: {}",
                answer.status
            );
            if answer.status == StatusCode::OK && path != "/openapi.json" {
                assert!(
                    content.get(answer.header("content-type")).is_some(),
                    "{path}"
                );
            }
            for described in content.as_object().unwrap().values().chain(
                operation["requestBody"]["content"]
                    .as_object()
                    .into_iter()
                    .flat_map(|content| content.values()),
            ) {
                if let Some(reference) = described["schema"]["$ref"].as_str() {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(
                        document
                            .pointer(pointer)
                            .is_some_and(|schema| schema["type"] == "object"),
                        "{reference}"
                    );
                }
            }
        }
    }
    assert_eq!(count, 29);
    let user = &document["components"]["schemas"]["User"]["properties"];
    assert_eq!(user["proxies"]["$ref"], json!("#/components/schemas/Proxy"));
    assert_eq!(user["inbounds"]["items"]["type"], json!("string"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transport_can_be_switched_off() {
    let node = NodeProcess::start_with(NODE, &[("SERVICE_PROTOCOL", "rest")]);
    assert_eq!(
        Rest::of(&node, Http::Two).get("/info", "").await.status,
        StatusCode::OK
    );
    let error = Panel::of(&node).stop().await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unimplemented, "{error}");

    let node = NodeProcess::start_with(NODE, &[("SERVICE_PROTOCOL", "grpc")]);
    assert!(!Panel::of(&node).info().await.started);
    let answer = Rest::of(&node, Http::Two).get("/info", "").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert!(answer.text().contains("SERVICE_PROTOCOL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_methods_of_older_clients_do_what_todays_do() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (origin, port) = (Origin::start().await, ports::free());
    panel
        .start(&vless_config(port), &numbered(1..2, &["vless"]))
        .await
        .unwrap();
    let mut client = panel.client.clone();
    client.add_user(user("2", &["vless"])).await.unwrap();
    assert!(is_served(port, &origin, "2").await);

    let request = |name: &str| StatRequest {
        name: name.to_owned(),
        r#type: 3,
        ..StatRequest::default()
    };
    // Xray lists its counters in no order.
    let sorted = |mut stats: Vec<Stat>| {
        stats.sort_by(|a, b| a.r#type.cmp(&b.r#type));
        stats
    };
    let users = client
        .get_users_stats(request("ignored"))
        .await
        .unwrap()
        .into_inner();
    let today = panel.stats(StatType::UsersStat, "", false).await.unwrap();
    assert_eq!(sorted(users.stats.clone()), sorted(today));
    assert_eq!(users.stats.len(), 2, "the two directions of user 2");
    let one = client
        .get_user_stats(request("2"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(one.stats.iter().map(|stat| stat.value).sum::<i64>(), 3000);
    assert!(
        !client
            .get_inbounds_stats(request(""))
            .await
            .unwrap()
            .into_inner()
            .stats
            .is_empty()
    );
    assert!(
        !client
            .get_inbound_stats(request("vless"))
            .await
            .unwrap()
            .into_inner()
            .stats
            .is_empty()
    );
    assert!(
        !client
            .get_outbounds_stats(request(""))
            .await
            .unwrap()
            .into_inner()
            .stats
            .is_empty()
    );
    assert!(
        !client
            .get_outbound_stats(request("direct"))
            .await
            .unwrap()
            .into_inner()
            .stats
            .is_empty()
    );
    let online = client
        .get_user_online_stat(request("2"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(online.name, "2");
    client.get_node_stats(Empty {}).await.unwrap();

    // Removed everywhere, whichever inbounds the message names.
    client.update_user(user("2", &["vless"])).await.unwrap();
    client.remove_user(user("2", &["vless"])).await.unwrap();
    assert!(!is_served(port, &origin, "2").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panel_looks_after_the_node_on_a_port_of_its_own() {
    let api_port = ports::free();
    // What its operator has chosen himself is not exchanged: 501.
    let assets = ("XRAY_ASSETS_PATH", "/usr/local/share/xray");
    let node = NodeProcess::start_with(NODE, &[("API_PORT", &api_port.to_string()), assets]);
    let panel = Panel::of(&node);
    let port = ports::free();
    panel
        .start(&vless_config(port), &numbered(1..2, &["vless"]))
        .await
        .unwrap();
    let (origin, core) = (Origin::start().await, node.core());
    for http in [Http::One, Http::Two] {
        let stranger = Rest::with_key(&node, http, None)
            .on(api_port)
            .get("/", "")
            .await;
        assert_eq!(
            (stranger.status.as_u16(), stranger.json()),
            (401, json!({ "detail": "missing api key" }))
        );
        let guesser = Rest::with_key(&node, http, Some(Uuid::new_v4())).on(api_port);
        let guess = guesser.post("/node/hard_reset", "").await;
        assert_eq!(
            (guess.status.as_u16(), guess.json()),
            (401, json!({ "detail": "invalid api key" }))
        );

        let api = Rest::of(&node, http).on(api_port);
        let alive = api.get("/", "").await;
        assert_eq!(
            (alive.status.as_u16(), alive.json()),
            (200, json!({ "status": "ok" }))
        );
        assert_eq!(alive.header("content-type"), "application/json");
        for (path, body, status) in [
            (
                "/node/core_update",
                json!({ "core_version": "v25.8.31" }),
                501,
            ),
            (
                "/node/core_update",
                json!({ "core_version": "latest" }),
                501,
            ),
            (
                "/node/core_update",
                json!({ "core_version": "../../etc" }),
                400,
            ),
            ("/node/core_update", json!({ "version": "v25.8.31" }), 400),
            ("/node/geofiles", json!({ "region": "iran" }), 501),
            ("/node/geofiles", json!({ "region": "moon" }), 400),
            ("/node/update", json!({}), 501),
            ("/nosuch", json!({}), 404),
        ] {
            let answer = api.post(path, body.to_string()).await;
            assert_eq!(
                answer.status.as_u16(),
                status,
                "{path} {body}: {}",
                answer.text()
            );
            assert!(
                answer.json()["detail"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty())
            );
        }
    }
    assert_eq!(node.core(), core, "nothing so far has touched the core");

    let api = Rest::of(&node, Http::One).on(api_port);
    let reset = api.post("/node/hard_reset", "").await;
    assert_eq!(
        (reset.status.as_u16(), reset.json()),
        (200, json!({ "detail": "node restarted successfully" }))
    );
    assert_ne!(node.core(), core, "it has been started anew");
    assert!(is_served(port, &origin, "1").await, "with its users");
    panel.stop().await.unwrap();
    let reset = api.post("/node/hard_reset", "").await;
    assert_eq!(reset.json(), json!({ "detail": "backend not initialized" }));
}
