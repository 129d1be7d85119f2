//! Who is slow, who lies, who knocks ten thousand times: he costs little and keeps nobody out.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use raynode::proto::service::Empty;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tonic::Code;
use uuid::Uuid;

use crate::NODE;
use crate::support::panel::{tls, tls_offering};
use crate::support::rest::{Http, Rest};
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, ports};

const MIB: u64 = 1 << 10;

async fn dial(node: &NodeProcess, protocols: &[&str]) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    tls_offering(node, protocols)
        .connect(name, stream)
        .await
        .unwrap()
}

/// Sends a byte now and then until the other side hangs up; how long that took.
async fn drip(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: &[u8]) -> Duration {
    let began = Instant::now();
    let mut heard = [0; 256];
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        let next = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut heard));
        if matches!(next.await, Ok(Ok(0) | Err(_))) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "nobody hangs up");
    }
    began.elapsed()
}

/// Whether it ended about when the setting says.
fn in_time(took: Duration, seconds: u64) -> bool {
    took >= Duration::from_millis(seconds * 1000 - 300)
        && took <= Duration::from_millis(seconds * 1000 + 5000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_comes_byte_by_byte_ends_at_its_deadline() {
    let node = NodeProcess::start_with(NODE, &[("HANDSHAKE_TIMEOUT", "3s")]);
    // A record of TLS that announces 16 KiB.
    let mut hello = vec![22, 3, 1, 0x40, 0];
    hello.resize(200, 1);
    let mut slow = TcpStream::connect(("127.0.0.1", node.port)).await.unwrap();
    let took = drip(&mut slow, &hello).await;
    assert!(in_time(took, 3), "{took:?}");
    assert!(!Panel::of(&node).info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_byte_by_byte_ends_at_its_deadline() {
    let settings = [("HEADER_TIMEOUT", "3s"), ("ADMISSION_TIMEOUT", "4s")];
    let node = NodeProcess::start_with(NODE, &settings);
    let mut one = dial(&node, &[]).await;
    let mut two = dial(&node, &["h2"]).await;
    let head = b"GET /info HTTP/1.1\r\nhost: x\r\nx-filler: ";
    let filler: Vec<u8> = head.iter().copied().chain([b'x'; 400]).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x40\x01\x04\0\0\0\x01";
    let begun: Vec<u8> = preface.iter().copied().chain([0; 400]).collect();
    let (one, two) = tokio::join!(drip(&mut one, &filler), drip(&mut two, &begun));
    assert!(in_time(one, 3), "HTTP/1.1: {one:?}");
    // A connection on which nobody has shown a key is not kept for anybody's slowness.
    assert!(in_time(two, 4), "HTTP/2: {two:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_byte_by_byte_ends_at_its_deadline() {
    let node = NodeProcess::start_with(NODE, &[("BODY_TIMEOUT", "3s")]);
    let mut slow = dial(&node, &[]).await;
    let head = format!(
        "PUT /user/sync HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 100000\r\n\r\n",
        node.api_key
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let start = Instant::now();
    let mut reply = Vec::new();
    let answered = loop {
        slow.write_all(b"x").await.ok();
        slow.flush().await.ok();
        let mut piece = [0; 256];
        match tokio::time::timeout(Duration::from_millis(200), slow.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => break start.elapsed(),
            Ok(Ok(count)) => reply.extend_from_slice(&piece[..count]),
            Err(_) => assert!(start.elapsed() < Duration::from_secs(30), "no answer"),
        }
        if reply.ends_with(b"the body took too long\n") {
            break start.elapsed();
        }
    };
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 408"), "{reply}");
    assert!(in_time(answered, 3), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_let_go_and_a_busy_one_is_not() {
    let node = NodeProcess::start_with(NODE, &[("IDLE_TIMEOUT", "2s")]);
    let (idle, busy) = (Panel::of(&node), Panel::of(&node));
    idle.info().await;
    // Somebody who looks at the log and does nothing else has a call open.
    busy.start(&vless_config(ports::free()), &[]).await.unwrap();
    let mut viewer = Panel::of(&node).client;
    let mut log = viewer.get_logs(Empty {}).await.unwrap().into_inner();
    let mut probe = dial(&node, &["h2"]).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        busy.info().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Preface and settings, and nothing else: the node has hung up by now.
    let mut heard = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(5), probe.read_to_end(&mut heard)).await;
    drop(end.expect("an idle connection is closed"));
    // A client that is let go in between connects anew by itself.
    idle.info().await;
    let read = async { while log.message().await.unwrap().is_some() {} };
    let ended = tokio::time::timeout(Duration::from_secs(1), read).await;
    assert!(ended.is_err(), "the log goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_wrong_keys_cost_little_and_a_right_one_does_not_wait() {
    let node = NodeProcess::start_with(NODE, &[("LOG_LEVEL", "info")]);
    let panel = Panel::of(&node);
    panel.info().await;
    let before = node.memory_kib();
    let tls = tls(&node);
    let guesses: Vec<_> = (0..100)
        .map(|_| {
            // The same address as the panel's.
            let guesser = Panel::over(
                tls.clone(),
                node.port,
                &[("x-api-key", Uuid::new_v4().to_string())],
            );
            tokio::spawn(async move {
                let attempts = (0..100).map(|_| {
                    let guesser = guesser.clone();
                    async move { guesser.stop().await.unwrap_err().code() }
                });
                futures_util::future::join_all(attempts).await
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let mut peak = 0;
    while !guesses.iter().all(tokio::task::JoinHandle::is_finished) {
        let asked = Instant::now();
        panel.info().await;
        slowest = slowest.max(asked.elapsed());
        peak = peak.max(node.memory_kib());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for guess in guesses {
        assert!(
            guess
                .await
                .unwrap()
                .iter()
                .all(|code| *code == Code::PermissionDenied)
        );
    }
    assert!(
        slowest < Duration::from_secs(2),
        "a right key waited {slowest:?}"
    );
    assert!(peak < before + 60 * MIB, "{before} KiB, then {peak} KiB");
    let told = node.log().matches("turned callers away").count();
    assert!((1..=5).contains(&told), "told {told} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_lie_reserve_nothing() {
    let node = NodeProcess::start(NODE);
    let rest = Rest::of(&node, Http::OneDespiteH2);
    rest.get("/info", "").await;
    let before = node.memory_kib();
    // A chunk of 2^60 bytes, one of 16 MiB, and a message of 2^31, each with nothing behind it.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    for body in [
        huge.as_slice(),
        &[0, 0xff, 0xff, 0xff],
        &[0x0a, 0x80, 0x80, 0x80, 0x80, 0x08],
    ] {
        for path in ["/users/sync/chunked", "/users/sync", "/start"] {
            let method = if path == "/start" {
                Method::POST
            } else {
                Method::PUT
            };
            let answer = rest.call(method, path, body.to_vec()).await;
            assert_eq!(
                answer.status,
                StatusCode::BAD_REQUEST,
                "{path}: {}",
                answer.text()
            );
        }
    }
    // gRPC: a frame of 4 GiB.
    let mut grpc = Rest::of(&node, Http::Two);
    grpc.headers
        .push(("content-type", "application/grpc".to_owned()));
    let frame = vec![0, 0xff, 0xff, 0xff, 0xff];
    let answer = grpc.post("/service.NodeService/Start", frame).await;
    assert_eq!(answer.header("grpc-status"), "8", "{:?}", answer.headers);
    // HTTP/1.1: a body of 2^62 bytes.
    let mut one = dial(&node, &[]).await;
    let head = format!(
        "PUT /users/sync HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 4611686018427387904\r\n\r\n",
        node.api_key
    );
    one.write_all(head.as_bytes()).await.unwrap();
    let mut reply = [0; 12];
    one.read_exact(&mut reply).await.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 413");
    assert!(node.memory_kib() < before + 20 * MIB);
    assert!(!Panel::of(&node).info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_above_the_limit_are_not_kept() {
    let node = NodeProcess::start_with(NODE, &[("MAX_MESSAGE_SIZE", "2MiB")]);
    let before = node.memory_kib();
    let rest = Rest::of(&node, Http::Two);
    for _ in 0..5 {
        let answer = rest.post("/start", vec![b'x'; 65 << 20]).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert!(
        node.memory_kib() < before + 30 * MIB,
        "{} KiB",
        node.memory_kib()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_their_limits() {
    let settings = [
        ("MAX_CONNECTIONS", "40"),
        ("MAX_CONNECTIONS_PER_ADDRESS", "30"),
    ];
    let node = NodeProcess::start_with(NODE, &settings);
    let from = |address: &'static str| {
        let target = format!("127.0.0.1:{}", node.port).parse().unwrap();
        async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(address.parse().unwrap()).unwrap();
            socket.connect(target).await.unwrap()
        }
    };
    let mut crowd = Vec::new();
    for _ in 0..60 {
        crowd.push(from("127.0.0.9:0").await);
    }
    // Those above the share of one address are closed at once.
    let mut closed = 0;
    for stream in &mut crowd {
        let read = tokio::time::timeout(Duration::from_millis(20), stream.read_u8()).await;
        closed += usize::from(read.is_ok());
    }
    assert_eq!(closed, 30);
    assert!(!Panel::of(&node).info().await.started);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_for_the_buttons_is_no_better_place_to_guess() {
    let buttons = ports::free().to_string();
    let settings = [("API_PORT", &*buttons), ("BODY_TIMEOUT", "2s")];
    let node = std::sync::Arc::new(NodeProcess::start_with(NODE, &settings));
    let port = buttons.parse().unwrap();
    let guesses: Vec<_> = (0..60)
        .map(|_| {
            let node = std::sync::Arc::clone(&node);
            tokio::spawn(async move {
                let guesser = Rest::with_key(&node, Http::One, Some(Uuid::new_v4())).on(port);
                guesser.get("/", "").await.status
            })
        })
        .collect();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        assert_eq!(
            Rest::of(&node, Http::One)
                .on(port)
                .get("/", "")
                .await
                .status,
            200
        );
        assert!(asked.elapsed() < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answered = guesses.iter().filter(|guess| guess.is_finished()).count();
    assert!(
        (20..30).contains(&answered),
        "{answered} are answered in two seconds"
    );
    for guess in guesses {
        assert_eq!(guess.await.unwrap(), StatusCode::UNAUTHORIZED);
    }
    // And none to be slow on.
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut slow = tls_offering(&node, &[])
        .connect(name, stream)
        .await
        .unwrap();
    let head = format!(
        "POST /node/geofiles HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ncontent-length: 100\r\n\r\n{{",
        node.api_key
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut reply = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(10), slow.read_exact(&mut reply)).await;
    read.unwrap().unwrap();
    assert_eq!(&reply, b"HTTP/1.1 408");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_and_comes_in_pieces_is_answered() {
    let node = NodeProcess::start_with(NODE, &[("MAX_MESSAGE_SIZE", "1MiB")]);
    for _ in 0..3 {
        let mut one = dial(&node, &[]).await;
        let head = format!(
            "POST /start HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\ntransfer-encoding: chunked\r\n\r\n",
            node.api_key
        );
        one.write_all(head.as_bytes()).await.unwrap();
        let piece = [b"10000\r\n".as_slice(), &*vec![b'x'; 0x10000], b"\r\n"].concat();
        for _ in 0..28 {
            one.write_all(&piece).await.unwrap();
        }
        one.write_all(b"0\r\n\r\n").await.unwrap();
        let mut reply = [0; 12];
        one.read_exact(&mut reply).await.unwrap();
        assert_eq!(&reply, b"HTTP/1.1 413");
    }
    // HEAD has no body, over HTTP/2 either.
    for http in [Http::One, Http::Two] {
        let answer = Rest::of(&node, http).call(Method::HEAD, "/info", "").await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (405, 0));
    }
}
