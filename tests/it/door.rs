//! Who gets in, with which key and which certificate; and what probes and tools may ask.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use raynode::proto::service::{BaseInfoResponse, Empty};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use uuid::Uuid;

use crate::NODE;
use crate::support::panel::{backend, channel, tls_offering, tls_showing};
use crate::support::rest::{Http, Rest};
use crate::support::users::numbered;
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, eventually, ports};

#[tokio::test(flavor = "multi_thread")]
async fn any_of_several_keys_opens_and_the_log_names_it_and_does_not_show_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let key = Uuid::new_v4();
    std::fs::write(&file, format!("# the next one\nsummer {key}\n")).unwrap();
    let node = NodeProcess::start_with(NODE, &[("API_KEYS_FILE", file.to_str().unwrap())]);
    let summer = Panel::with(&node, &[("x-api-key", key.to_string())]);
    summer
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    assert!(
        Panel::of(&node).info().await.started,
        "the first key opens as before"
    );
    assert!(node.log().contains("key summer"), "{}", node.log());
    // Rotated without a gap: the file changes, the node follows.
    let winter = Uuid::new_v4();
    std::fs::write(&file, format!("winter {winter}\n")).unwrap();
    let next = Panel::with(&node, &[("x-api-key", winter.to_string())]);
    eventually("the new key opens", || async {
        next.client.clone().get_base_info(Empty {}).await.ok()
    })
    .await;
    assert_eq!(
        summer.stop().await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // A file that can't be read leaves the keys as they are.
    std::fs::write(&file, "nonsense").unwrap();
    node.signal(Signal::SIGHUP);
    eventually("it says so", || async {
        node.log()
            .contains("the keys were not reloaded, the old ones stay")
            .then_some(())
    })
    .await;
    next.stop().await.unwrap();
    assert!(
        !node.log().contains(&key.to_string()) && !node.log().contains(&node.api_key.to_string())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_slowed_down_and_who_has_a_key_is_not() {
    let node = NodeProcess::start(NODE);
    let guesser = Panel::with(&node, &[("x-api-key", Uuid::new_v4().to_string())]);
    let panel = Panel::of(&node);
    panel.info().await;
    let before = node.memory_kib();
    // From one address, ten times as many as are answered at once.
    let attempts: Vec<_> = (0..200)
        .map(|_| {
            let guesser = guesser.clone();
            tokio::spawn(async move { guesser.stop().await.unwrap_err().code() })
        })
        .collect();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        panel.info().await;
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "a right key waits for nobody"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answered = attempts.iter().filter(|guess| guess.is_finished()).count();
    assert!(
        (20..30).contains(&answered),
        "{answered} guesses are answered in two seconds"
    );
    for guess in attempts {
        assert_eq!(guess.await.unwrap(), Code::PermissionDenied);
    }
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "nobody waits for hours"
    );
    assert!(node.memory_kib() < before + (20 << 10));
    assert!(node.log().contains("turned callers away"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_many_connections_keeps_nobody_else_out() {
    let node = NodeProcess::start(NODE);
    let mut crowd = Vec::new();
    for _ in 0..1200 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
        let node = format!("127.0.0.1:{}", node.port).parse().unwrap();
        crowd.push(socket.connect(node).await.unwrap());
    }
    assert!(
        !Panel::of(&node).info().await.started,
        "another address gets in"
    );
    drop(crowd);
}

/// The certificate that a new connection gets.
async fn certificate_of(node: &NodeProcess) -> Option<Vec<u8>> {
    let stream = TcpStream::connect(("127.0.0.1", node.port)).await.ok()?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tls = tls_offering(node, &["h2"])
        .connect(name, stream)
        .await
        .ok()?;
    Some(tls.get_ref().1.peer_certificates()?.first()?.to_vec())
}

fn replace_pair(node: &NodeProcess) {
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certs = node.folder().join("state/certs");
    std::fs::write(certs.join("ssl_cert.pem"), pair.cert.pem()).unwrap();
    std::fs::write(certs.join("ssl_key.pem"), pair.signing_key.serialize_pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_over_and_connections_live_on() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &numbered(0..2, &["vless"]))
        .await
        .unwrap();
    let first = certificate_of(&node).await.unwrap();

    // When told to, and when the files change; each time the harness trusts what the file holds.
    for told in [true, false] {
        replace_pair(&node);
        if told {
            node.signal(Signal::SIGHUP);
        }
        let second = eventually("new connections get the new one", || certificate_of(&node)).await;
        assert_ne!(first, second);
        assert!(panel.info().await.started, "the old connection lives");
    }

    // Half of another pair changes nothing but the log.
    let served = certificate_of(&node).await.unwrap();
    let cert = node.certificate();
    let text = std::fs::read_to_string(&cert).unwrap();
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&cert, stranger.cert.pem()).unwrap();
    node.signal(Signal::SIGHUP);
    eventually("it says so", || async {
        node.log()
            .contains("the certificate was not reloaded, the old one stays")
            .then_some(())
    })
    .await;
    std::fs::write(&cert, text).unwrap();
    assert_eq!(certificate_of(&node).await.unwrap(), served);
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn health_is_for_everybody_and_tells_the_truth() {
    let node = NodeProcess::start(NODE);
    let mut health = HealthClient::new(channel(&node));
    let mut check = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        health
            .check(request)
            .await
            .map(|reply| reply.into_inner().status)
    };
    assert_eq!(check("").await.unwrap(), SERVING);
    assert_eq!(check("service.NodeService").await.unwrap(), NOT_SERVING);
    assert_eq!(check("nosuch").await.unwrap_err().code(), Code::NotFound);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
    assert_eq!(check("service.NodeService").await.unwrap(), SERVING);
    panel.stop().await.unwrap();
    assert_eq!(check("service.NodeService").await.unwrap(), NOT_SERVING);
    let watch = HealthClient::new(channel(&node))
        .watch(HealthCheckRequest::default())
        .await;
    assert_eq!(watch.map(drop).unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_is_for_those_with_a_key() {
    let node = NodeProcess::start(NODE);
    let list = || ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut stranger = ServerReflectionClient::new(channel(&node));
    let error = stranger
        .server_reflection_info(tokio_stream::iter([list()]))
        .await
        .map(drop);
    assert_eq!(error.unwrap_err().code(), Code::Unauthenticated);

    let mut tool = ServerReflectionClient::with_interceptor(
        channel(&node),
        crate::support::panel::Headers(vec![("x-api-key", node.api_key.to_string())]),
    );
    let replies = tool
        .server_reflection_info(tokio_stream::iter([list()]))
        .await
        .unwrap();
    let reply = replies.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = reply.message_response else {
        panic!("{reply:?}");
    };
    let names: Vec<String> = services
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(
        names.iter().any(|name| name == "service.NodeService"),
        "{names:?}"
    );
    assert!(
        names.iter().any(|name| name == "grpc.health.v1.Health"),
        "{names:?}"
    );
}

/// A certificate as the panels of the session generations made theirs: X.509 version 1, RSA, signed
/// by itself, without extensions.
pub(crate) fn version_1_certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let path = |end: &str| folder.join(format!("{name}.{end}"));
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output();
        let output = output.expect("these tests need the openssl command");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let (key, request, cert) = (path("key"), path("csr"), path("pem"));
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let subject = format!("/CN={name}");
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        &subject,
        "-keyout",
        &text(&key),
        "-out",
        &text(&request),
    ]);
    openssl(&[
        "x509",
        "-req",
        "-in",
        &text(&request),
        "-signkey",
        &text(&key),
        "-set_serial",
        "0",
        "-days",
        "30",
        "-out",
        &text(&cert),
    ]);
    let shown = openssl(&["x509", "-in", &text(&cert), "-noout", "-text"]);
    assert!(shown.contains("Version: 1 (0x0)"), "{shown}");
    (cert, key)
}

/// Whether it was TLS that ended the call, before the node could say anything. With TLS 1.3 a client
/// learns it only after it has sent its call.
fn never_got_in(error: &tonic::Status) -> bool {
    let text = error.message();
    [
        "fatal alert",
        "transport error",
        "broken pipe",
        "operation was canceled",
        "h2 protocol error",
    ]
    .iter()
    .any(|end| text.contains(end))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_opens_a_session_and_the_session_opens_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = version_1_certificate(folder.path(), "panel");
    let stranger = version_1_certificate(folder.path(), "stranger");
    let node = NodeProcess::start_with(NODE, &[("SSL_CLIENT_CERT_FILE", cert.to_str().unwrap())]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let panel = |headers: &[(&'static str, String)]| {
            Panel::over(tls_showing(&node, &cert, &key, version), node.port, headers)
        };
        let bare = panel(&[]);
        let old = panel(&[("authorization", format!("Bearer {}", Uuid::new_v4()))]);
        for panel in [&bare, &old] {
            let error = panel.stop().await.unwrap_err();
            assert_eq!(
                (error.code(), error.message()),
                (Code::Unauthenticated, "please connect first")
            );
        }
        let users = numbered(0..2, &["vless"]);
        let session = bare
            .start(&vless_config(ports::free()), &users)
            .await
            .unwrap()
            .session_id;
        let opened = panel(&[("authorization", format!("Bearer {session}"))]);
        opened.sync_all(&users).await.unwrap();
        assert!(opened.info().await.started);
        assert_eq!(old.stop().await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(bare.stop().await.unwrap_err().code(), Code::Unauthenticated);
        opened.stop().await.unwrap();

        // A certificate that is not trusted, and one without its key, don't get that far.
        for (cert, key) in [(&stranger.0, &stranger.1), (&cert, &stranger.1)] {
            let tls = tls_showing(&node, cert, key, version);
            let error = Panel::over(tls, node.port, &[("x-api-key", node.api_key.to_string())])
                .stop()
                .await;
            assert!(never_got_in(&error.unwrap_err()));
        }
    }
    // Who shows none uses his key as ever.
    Panel::of(&node)
        .start(&vless_config(ports::free()), &[])
        .await
        .unwrap();
}

/// What a client of the session generations is told, over both transports: gRPC code, HTTP status, text.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_session_generations_is_told_what_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = version_1_certificate(folder.path(), "panel");
    let node = NodeProcess::start_with(NODE, &[("SSL_CLIENT_CERT_FILE", cert.to_str().unwrap())]);
    let tls = tls_showing(&node, &cert, &key, &rustls::version::TLS13);
    let told = async |authorization: Option<String>, code: Code, status: u16, text: &str| {
        let headers: Vec<_> = authorization
            .into_iter()
            .map(|value| ("authorization", value))
            .collect();
        let panel = Panel::over(tls.clone(), node.port, &headers);
        let error = panel.stop().await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, text), "{headers:?}");
        let mut rest = Rest::with_key(&node, Http::OneDespiteH2, None).over(tls.clone());
        rest.headers = headers;
        let answer = rest.put("/stop", "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.text().trim_end()),
            (status, text),
            "{:?}",
            rest.headers
        );
    };
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let other = Uuid::new_v4().to_string();

    // No session yet: that comes before everything else.
    for nobody in [None, bearer(&other), bearer("x"), Some("x".to_owned())] {
        told(nobody, Code::Unauthenticated, 425, "please connect first").await;
    }
    let mut rest = Rest::with_key(&node, Http::OneDespiteH2, None).over(tls.clone());
    let start = backend(&vless_config(ports::free()), &[]);
    let info: BaseInfoResponse = rest
        .post("/start", prost::Message::encode_to_vec(&start))
        .await
        .message();
    let session = info.session_id;
    assert_eq!(Uuid::parse_str(&session).unwrap().get_version_num(), 4);

    let format = "invalid authorization format: must be Bearer and a valid UUID";
    told(None, Code::Unauthenticated, 401, "missing x-api-key header").await;
    told(Some("x".to_owned()), Code::InvalidArgument, 401, format).await;
    told(
        Some(format!("Basic {session}")),
        Code::InvalidArgument,
        401,
        format,
    )
    .await;
    told(bearer("x"), Code::InvalidArgument, 422, format).await;
    told(
        bearer(&other),
        Code::PermissionDenied,
        403,
        "session id mismatch",
    )
    .await;

    // The id is told once, in the reply to Start.
    rest.headers = vec![("authorization", format!("Bearer {session}"))];
    let info: BaseInfoResponse = rest.get("/", "").await.message();
    assert!(info.started && info.session_id.is_empty());
    // Another Start, another session.
    let again = Panel::over(tls.clone(), node.port, &[]);
    let next = again.start_backend(start).await.unwrap().session_id;
    assert_ne!(next, session);
    told(
        bearer(&session),
        Code::PermissionDenied,
        403,
        "session id mismatch",
    )
    .await;
    rest.headers = vec![("authorization", format!("bearer {next}"))];
    assert_eq!(rest.put("/stop", "").await.status, 200);
    told(
        bearer(&next),
        Code::Unauthenticated,
        425,
        "please connect first",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_can_be_demanded_of_everyone() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = version_1_certificate(folder.path(), "panel");
    let settings = [
        ("SSL_CLIENT_CERT_FILE", cert.to_str().unwrap()),
        ("REQUIRE_CLIENT_CERT", "true"),
    ];
    let node = NodeProcess::start_with(NODE, &settings);
    assert!(never_got_in(&Panel::of(&node).stop().await.unwrap_err()));
    let tls = tls_showing(&node, &cert, &key, &rustls::version::TLS13);
    let panel = Panel::over(tls, node.port, &[("x-api-key", node.api_key.to_string())]);
    assert!(!panel.info().await.started);
}
