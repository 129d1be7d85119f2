//! What lives on over each transport, what does not, and who is cut.

use super::*;

/// A node with every one of these transports, and who uses them.
struct Transports {
    node: NodeProcess,
    panel: Panel,
    config: Value,
    users: Vec<User>,
    echo: Echo,
    used: Vec<Used>,
    _cases: Vec<Case>,
}

struct Used {
    name: &'static str,
    client: XrayClient,
    streams: Streams,
}

impl Transports {
    async fn new(cases: Vec<(&'static str, Case)>, settings: &[(&str, &str)]) -> Self {
        let node = NodeProcess::start_with(NODE, settings);
        let panel = Panel::of(&node);
        let echo = Echo::start().await;
        let mut inbounds = Vec::new();
        for (name, case) in &cases {
            let mut inbound = case.inbound.clone();
            inbound["tag"] = (*name).into();
            inbounds.push(inbound);
            for (number, also) in case.also.iter().enumerate() {
                let mut also = also.clone();
                also["tag"] = format!("{name}-{number}").into();
                inbounds.push(also);
            }
        }
        let tags: Vec<String> = inbounds
            .iter()
            .map(|inbound| inbound["tag"].as_str().unwrap().to_owned())
            .collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let config = json!({
            "log": { "loglevel": "warning" }, "inbounds": inbounds, "outbounds": [freedom()],
        });
        let users = vec![users::user_with("7", &tags, "xtls-rprx-vision")];
        panel.start(&config, &users).await.unwrap();
        let mut used = Vec::new();
        for (name, case) in &cases {
            let client = XrayClient::start(&case.outbound);
            let streams = Streams::hold(&client, &echo, 3).await;
            used.push(Used {
                name,
                client,
                streams,
            });
        }
        Self {
            node,
            panel,
            config,
            users,
            echo,
            used,
            _cases: cases.into_iter().map(|(_, case)| case).collect(),
        }
    }

    async fn hand_over(&mut self) {
        let before = self.node.core();
        self.config["log"]["loglevel"] = "error".into();
        self.panel.start(&self.config, &self.users).await.unwrap();
        assert_ne!(self.node.core(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_every_transport_live_on() {
    let cases = vec![
        ("raw", transports::vless_over_tcp()),
        ("ws", transports::vless_over_websocket()),
        ("vision", transports::vless_with_vision_over_tls()),
        ("reality", transports::vless_over_reality()),
        ("grpc", transports::vless_over_grpc()),
        ("mux", transports::vless_with_mux()),
        ("behind-a-fallback", transports::vless_behind_a_fallback()),
        ("vmess", transports::vmess_over_tcp()),
        ("trojan", transports::trojan_over_tls()),
        ("shadowsocks", transports::shadowsocks()),
        (
            "shadowsocks-2022",
            transports::shadowsocks_2022("2022-blake3-aes-128-gcm", 16),
        ),
    ];
    let mut all = Transports::new(cases, &[]).await;
    let old = all.node.core();
    all.hand_over().await;
    // Behind the moment at which the old core closes its listeners.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for used in &all.used {
        assert_eq!(
            used.streams.broken(),
            0,
            "{}: {}",
            used.name,
            story(&all.node)
        );
        let again = Streams::hold(&used.client, &all.echo, 2).await;
        assert_eq!(again.end().await.broken, 0, "{}", used.name);
    }
    assert_eq!(all.node.draining(), [old]);
    for used in all.used.drain(..) {
        let table = used.streams.end().await;
        assert_eq!(table.broken, 0, "{}: {table:?}", used.name);
    }
    let lost = "this can't live through a hand-over";
    assert_eq!(
        said(&all.node, lost),
        2,
        "datagrams of Shadowsocks: {}",
        story(&all.node)
    );
    eventually("the old core has drained", || async {
        all.node.draining().is_empty().then_some(())
    })
    .await;
    let socket = all.config["inbounds"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|inbound| {
            inbound["listen"]
                .as_str()
                .filter(|listen| listen.starts_with('/'))
        });
    let folder = Path::new(socket.unwrap()).parent().unwrap();
    let files = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
    let names: BTreeSet<_> = files.map(|file| file.file_name()).collect();
    // The known name, the core's own, and the lock that Xray keeps beside that; nothing of the old core.
    assert_eq!(names.len(), 3, "{names:?}");
}

/// Nothing tells a hysteria client that its core is gone; how long it waits is a setting of the server.
#[tokio::test(flavor = "multi_thread")]
async fn hysteria_hangs_for_as_long_as_was_set() {
    if xray_version() < (26, 3, 23) {
        return;
    }
    let cases = vec![("hysteria", transports::hysteria())];
    let mut all = Transports::new(cases, &[("HYSTERIA_IDLE_TIMEOUT", "4s")]).await;
    all.hand_over().await;
    let flipped = Instant::now();
    let used = all.used.pop().unwrap();
    loop {
        let attempt = async {
            let mut stream = used.client.connect(all.echo.address).await?;
            stream.write_all(b"x").await?;
            stream.read_exact(&mut [0]).await
        };
        match tokio::time::timeout(Duration::from_millis(500), attempt).await {
            Ok(Ok(_)) => break,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        assert!(
            flipped.elapsed() < Duration::from_secs(20),
            "{}",
            story(&all.node)
        );
    }
    let outage = flipped.elapsed();
    println!("hysteria hung for {outage:?}");
    let wanted = Duration::from_millis(3000)..Duration::from_secs(8);
    assert!(wanted.contains(&outage), "{outage:?}");
    assert_eq!(
        said(&all.node, "what=\"hysteria sessions hang"),
        1,
        "{}",
        story(&all.node)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_user_is_cut_in_the_core_that_drains_and_his_neighbour_is_not() {
    if !tells_who_is_online() {
        return;
    }
    let place = Place::new(&[]).await;
    let connect = |last: u8, number: &'static str| {
        let (at, target) = (storm::loopback(place.port), place.echo.address);
        async move {
            let from = Ipv4Addr::new(127, 0, 3, last);
            let mut stream = vless::connect_through(from, at, id(number), target)
                .await
                .unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.read_exact(&mut [0; 3]).await.unwrap();
            stream
        }
    };
    // Two have an address of their own each, and they share one.
    let (mut alone, mut other) = (connect(1, "0").await, connect(2, "1").await);
    let (mut shared, mut neighbour) = (connect(3, "0").await, connect(3, "1").await);
    // Xray's map of who is online lags a second behind.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    place.hand_over(&config).await;
    let removed = Instant::now();
    place.panel.sync_user(user("0", &[])).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), alone.read(&mut [0])).await;
    let ended = ended.expect("a removed user is cut");
    assert!(ended.is_err() || ended.unwrap() == 0);
    println!("cut after {:?}", removed.elapsed());
    for stream in [&mut other, &mut shared, &mut neighbour] {
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
    }
    eventually("the log tells of it", || async {
        (said(&place.node, "removed users are cut") == 1).then_some(())
    })
    .await;
    drop((other, shared, neighbour));
}

/// A socket without a file can be had by one core at a time: for a moment nobody can connect, and when the new
/// core does not come, the old one has it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_without_a_file_goes_to_the_new_core_or_back() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let echo = Echo::start().await;
    let name = format!("raynode-{}", ports::free());
    let mut inbound = vless_inbound("abstract", 1);
    inbound["listen"] = format!("@{name}").into();
    inbound.as_object_mut().unwrap().remove("port");
    let mut config = config(ports::free());
    config["inbounds"].as_array_mut().unwrap().push(inbound);
    let users = numbered(0..2, &["vless", "abstract"]);
    panel.start(&config, &users).await.unwrap();
    let reaches = async || {
        let socket = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name).unwrap();
        let stream = std::os::unix::net::UnixStream::connect_addr(&socket).ok()?;
        stream.set_nonblocking(true).unwrap();
        let mut stream = tokio::net::UnixStream::from_std(stream).unwrap();
        stream
            .write_all(&vless::head(id("0"), echo.address))
            .await
            .ok()?;
        stream.write_all(b"x").await.ok()?;
        stream.read_exact(&mut [0; 3]).await.ok()
    };
    assert!(reaches().await.is_some());
    // Whoever came through another inbound keeps his connection.
    let port = u16::try_from(config["inbounds"][0]["port"].as_u64().unwrap()).unwrap();
    let mut held = vless::connect(port, id("1"), echo.address).await.unwrap();
    held.write_all(b"x").await.unwrap();
    held.read_exact(&mut [0; 3]).await.unwrap();
    let old = node.core();
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut taken = config.clone();
    let port = foreign.local_addr().unwrap().port();
    taken["inbounds"]
        .as_array_mut()
        .unwrap()
        .push(vless_inbound("more", port));
    panel.start(&taken, &users).await.unwrap_err();
    assert_eq!(node.core(), old);
    assert!(reaches().await.is_some(), "{}", story(&node));
    drop(foreign);
    panel.start(&taken, &users).await.unwrap();
    assert_ne!(node.core(), old);
    assert!(reaches().await.is_some(), "{}", story(&node));
    tokio::time::sleep(Duration::from_secs(4)).await;
    held.write_all(b"x").await.unwrap();
    held.read_exact(&mut [0]).await.unwrap();
    assert_eq!(node.draining(), [old], "{}", story(&node));
}

/// An older core names nobody, so nobody can say whose a connection is.
fn tells_who_is_online() -> bool {
    xray_version() >= (26, 1, 13)
}

/// Removals that come one by one, or all at once, hold nothing up: not the other changes, not the stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_removed_users() {
    let users = times(5_000, 20_000);
    let mut place = Place::with(NodeProcess::start(NODE), users).await;
    let mut config = place.config.clone();
    config["log"]["loglevel"] = "error".into();
    let few = numbered(0..10, &["vless"]);
    place.panel.start(&config, &few).await.unwrap();
    let began = Instant::now();
    assert!(place.node.stop().success());
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(place.node.cores(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn users_who_are_removed_one_by_one_are_cut_in_every_core_that_drains() {
    if !tells_who_is_online() {
        return;
    }
    let mut place = Place::with(NodeProcess::start(NODE), 6).await;
    let connect = |number: usize| {
        let (at, target) = (storm::loopback(place.port), place.echo.address);
        async move {
            let from = Ipv4Addr::new(127, 0, 4, u8::try_from(number + 1).unwrap());
            let email = number.to_string();
            let mut stream = vless::connect_through(from, at, id(&email), target)
                .await
                .unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.read_exact(&mut [0; 3]).await.unwrap();
            stream
        }
    };
    // Four in the first core, two in the second.
    let mut streams = Vec::new();
    for number in 0..4 {
        streams.push(connect(number).await);
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let steps = changes(&place.config);
    place.hand_over(&steps[0].1).await;
    for number in 4..6 {
        streams.push(connect(number).await);
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    // One goes with the hand-over itself.
    let mut left = numbered(0..6, &["vless"]);
    left.remove(0);
    place.panel.start(&steps[1].1, &left).await.unwrap();
    for number in [1, 4] {
        place
            .panel
            .sync_user(user(&number.to_string(), &[]))
            .await
            .unwrap();
    }
    // And one while the daemon is replaced.
    place.panel.sync_user(user("2", &[])).await.unwrap();
    place.node.kill();
    place.node.launch();
    for (number, stream) in streams.iter_mut().enumerate() {
        let read = tokio::time::timeout(Duration::from_secs(4), stream.read(&mut [0])).await;
        if [0, 1, 2, 4].contains(&number) {
            let read = read.unwrap_or_else(|_| panic!("{number} is cut: {}", story(&place.node)));
            assert!(read.is_err() || read.unwrap() == 0, "{number}");
        } else {
            assert!(read.is_err(), "{number} is not: {read:?}");
            stream.write_all(b"x").await.unwrap();
            stream.read_exact(&mut [0]).await.unwrap();
        }
    }
}
