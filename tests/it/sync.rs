//! Users come and go while others are served.

use std::time::Duration;

use raynode::panel::wire::UsersChunk;
use raynode::proto::service::StatType;
use tonic::Code;

use crate::NODE;
use crate::support::origin::Download;
use crate::support::panel::encoded;
use crate::support::users::{self, numbered, user};
use crate::support::xray::{vless_config, vless_inbound, vless_outbound};
use crate::support::{NodeProcess, Origin, Panel, XrayClient, origin, ports};

/// A node that serves user 1 on `vless`, and a client of his.
struct Served {
    node: NodeProcess,
    panel: Panel,
    origin: Origin,
    port: u16,
}

impl Served {
    async fn start() -> Self {
        let node = NodeProcess::start(NODE);
        let panel = Panel::of(&node);
        let port = ports::free();
        panel
            .start(&vless_config(port), &numbered(1..2, &["vless"]))
            .await
            .unwrap();
        Self {
            node,
            panel,
            origin: Origin::start().await,
            port,
        }
    }

    /// A client of this user.
    fn client(&self, email: &str) -> XrayClient {
        XrayClient::start(&vless_outbound(self.port, users::id(email)))
    }

    async fn is_served(&self, client: &XrayClient) -> bool {
        let attempt = async {
            let mut stream = client.connect(self.origin.address).await?;
            origin::exchange(&mut stream, 1000, 1000).await
        };
        matches!(
            tokio::time::timeout(Duration::from_secs(5), attempt).await,
            Ok(Ok(()))
        )
    }

    /// A download of this client's user.
    async fn download(&self, client: &XrayClient) -> Download {
        Download::start(client.connect(self.origin.address).await.unwrap())
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_comes_and_goes_while_another_ones_download_runs() {
    let served = Served::start().await;
    let core = served.node.core();
    let (first, second) = (served.client("1"), served.client("2"));
    let download = served.download(&first).await;
    assert!(!served.is_served(&second).await, "he is not there yet");

    served.panel.sync_user(user("2", &["vless"])).await.unwrap();
    assert!(served.is_served(&second).await);
    assert_eq!(
        served.panel.traffic(StatType::UserStat, "2").await,
        (1000, 1000)
    );
    served.panel.sync_user(user("2", &[])).await.unwrap();
    assert!(!served.is_served(&second).await, "he was removed");

    assert!(download.end().await.unwrap() > 0);
    assert_eq!(served.node.core(), core);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_users_are_synced_while_a_download_runs() {
    let served = Served::start().await;
    let core = served.node.core();
    let client = served.client("1");
    let download = served.download(&client).await;

    served
        .panel
        .sync_all(&numbered(0..5000, &["vless"]))
        .await
        .unwrap();
    let last = served.client("4999");
    assert!(served.is_served(&last).await, "the last of them is served");

    // A delta: half of them leave, others come, the rest stays.
    let mut delta = numbered(2500..5000, &[]);
    delta.extend(numbered(5000..7500, &["vless"]));
    served.panel.sync_chunked(&delta, 700).await.unwrap();
    assert!(
        !served.is_served(&last).await,
        "who was named without an inbound is gone"
    );
    assert!(
        served.is_served(&served.client("7499")).await,
        "who came in a chunk is served"
    );
    assert!(
        served.is_served(&served.client("2499")).await,
        "who was not named stays"
    );

    // A full list again: everybody else vanishes.
    served
        .panel
        .sync_all(&numbered(0..2, &["vless"]))
        .await
        .unwrap();
    assert!(
        !served.is_served(&served.client("2499")).await,
        "who is not in a full list is gone"
    );

    assert!(download.end().await.unwrap() > 0);
    assert_eq!(served.node.core(), core, "no sync starts the core anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_changes_gets_in_with_the_new_secret_only() {
    let served = Served::start().await;
    let mut changed = user("1", &["vless"]);
    changed.proxies = user("another", &[]).proxies;
    served.panel.sync_user(changed).await.unwrap();
    assert!(!served.is_served(&served.client("1")).await);
    assert!(served.is_served(&served.client("another")).await);
    assert_eq!(
        served.panel.traffic(StatType::UserStat, "1").await,
        (1000, 1000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_swap_their_secrets_in_one_call() {
    let served = Served::start().await;
    served.panel.sync_user(user("2", &["vless"])).await.unwrap();
    let (mut one, mut two) = (user("1", &["vless"]), user("2", &["vless"]));
    std::mem::swap(&mut one.proxies, &mut two.proxies);
    served.panel.sync_chunked(&[one, two], 10).await.unwrap();
    assert!(
        served.is_served(&served.client("1")).await && served.is_served(&served.client("2")).await
    );
    // Client "1" has the secret that is user 2's now.
    served.is_served(&served.client("1")).await;
    assert_eq!(
        served.panel.traffic(StatType::UserStat, "2").await,
        (2000, 2000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_tags_and_unknown_users_are_no_errors() {
    let served = Served::start().await;
    let stranger = user("stranger", &["elsewhere"]);
    served.panel.sync_user(stranger.clone()).await.unwrap();
    served
        .panel
        .sync_chunked(&[stranger.clone(), user("ghost", &[])], 10)
        .await
        .unwrap();
    served
        .panel
        .sync_all(&[stranger, user("1", &["vless", "elsewhere"])])
        .await
        .unwrap();
    assert!(served.is_served(&served.client("1")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_not_be_served_is_refused_by_name_and_nothing_changes() {
    let served = Served::start().await;
    let panel = &served.panel;
    let mut bad_id = user("bad", &["vless"]);
    bad_id.proxies.as_mut().unwrap().vless.as_mut().unwrap().id = "not-a-uuid".to_owned();
    let mut thief = user("thief", &["vless"]);
    thief.proxies = user("1", &[]).proxies;
    let twice = [user("Twin", &["vless"]), user("twin", &["vless"])];

    let error = panel.sync_user(bad_id.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert!(
        error
            .message()
            .starts_with("failed to update user: user bad:"),
        "{error}"
    );

    let lists: [(&[_], &str); 3] = [
        (
            &[user("new", &["vless"]), bad_id.clone()],
            "user bad: inbound \"vless\": the vless id is not a UUID",
        ),
        (
            &[user("new", &["vless"]), thief],
            "user thief: inbound \"vless\": he has the same secret as user 1",
        ),
        (&twice, "user twin: the e-mail is in the list twice"),
    ];
    for (list, reason) in lists {
        for error in [panel.sync_chunked(list, 10).await.unwrap_err(), {
            let mut all = vec![user("1", &["vless"])];
            all.extend_from_slice(list);
            panel.sync_all(&all).await.unwrap_err()
        }] {
            assert_eq!(error.code(), Code::Internal, "{error}");
            assert!(
                error.message().starts_with("failed to update users: "),
                "{error}"
            );
            assert!(error.message().contains(reason), "{error}");
            assert!(!error.message().contains("not-a-uuid"), "{error}");
        }
    }
    assert!(
        !served.is_served(&served.client("new")).await,
        "a refused list changes nobody"
    );

    // In a stream each user stands for himself: those before the bad one are served.
    let error = panel
        .sync_each(vec![
            user("early", &["vless"]),
            bad_id,
            user("late", &["vless"]),
        ])
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert!(served.is_served(&served.client("early")).await);
    assert!(!served.is_served(&served.client("late")).await);

    let error = panel.sync_user(user("", &["vless"])).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unknown, "email is required")
    );

    let error = panel
        .sync_chunked(&[user("", &["vless"])], 10)
        .await
        .unwrap_err();
    assert_eq!(error.message(), "failed to update users: email is required");
    assert_eq!(error.code(), Code::Internal);

    // The next sync mends it.
    panel.sync_user(user("late", &["vless"])).await.unwrap();
    assert!(served.is_served(&served.client("late")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_do_not_make_a_list_are_refused() {
    let served = Served::start().await;
    let chunk = |index, last| UsersChunk {
        users: encoded(&[user("2", &["vless"])]),
        index,
        last,
    };
    let empty = UsersChunk {
        users: Vec::new(),
        index: 0,
        last: true,
    };
    for (chunks, text) in [
        (vec![chunk(0, false)], "missing final chunk indicator"),
        (vec![], "missing final chunk indicator"),
        (
            vec![chunk(0, false), chunk(2, true)],
            "missing chunk index 1",
        ),
        (vec![empty], "no users received"),
    ] {
        let error = served.panel.sync_chunks(chunks).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::InvalidArgument, text)
        );
    }
    assert!(!served.is_served(&served.client("2")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_stream_are_applied_on_arrival_and_stay_when_it_breaks_off() {
    let served = Served::start().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut client = served.panel.client.clone();
    let call = tokio::spawn(async move {
        client
            .sync_user(tokio_stream::wrappers::ReceiverStream::new(receiver))
            .await
    });
    sender.send(user("2", &["vless"])).await.unwrap();
    // Applied on arrival: he is served while the stream is still open.
    let second = served.client("2");
    crate::support::eventually("he is served", || async {
        served.is_served(&second).await.then_some(())
    })
    .await;
    assert!(!call.is_finished());
    call.abort();
    assert!(call.await.is_err());
    drop(sender);
    assert!(served.is_served(&second).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_excluded_inbound_keeps_the_users_of_its_config() {
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let (managed, excluded) = (ports::free(), ports::free());
    let mut config = vless_config(managed);
    let mut fixed = vless_inbound("fixed", excluded);
    fixed["settings"]["clients"] = serde_json::json!([{ "email": "own", "id": users::id("own") }]);
    config["inbounds"].as_array_mut().unwrap().push(fixed);
    let mut backend = crate::support::panel::backend(&config, &[user("1", &["vless", "fixed"])]);
    backend.exclude_inbounds = vec!["fixed".to_owned()];
    panel.start_backend(backend).await.unwrap();

    let served = Served {
        node,
        panel,
        origin: Origin::start().await,
        port: excluded,
    };
    assert!(served.is_served(&served.client("own")).await);
    assert!(!served.is_served(&served.client("1")).await);
    served
        .panel
        .sync_all(&[user("1", &["vless", "fixed"])])
        .await
        .unwrap();
    assert!(
        served.is_served(&served.client("own")).await,
        "a full sync does not touch it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbound_that_starts_empty_takes_users_later() {
    // Every protocol whose user list may be empty at first.
    let node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    let inbound = |tag: &str, protocol: &str, settings: serde_json::Value| serde_json::json!({ "tag": tag, "listen": "127.0.0.1", "port": ports::free(), "protocol": protocol, "settings": settings });
    let key = "BQUFBQUFBQUFBQUFBQUFBQ==";
    let config = serde_json::json!({
        "inbounds": [
            inbound("vless", "vless", serde_json::json!({ "decryption": "none" })),
            inbound("vmess", "vmess", serde_json::json!({})),
            inbound("trojan", "trojan", serde_json::json!({})),
            inbound("ss", "shadowsocks", serde_json::json!({})),
            inbound("ss2022", "shadowsocks", serde_json::json!({ "method": "2022-blake3-aes-128-gcm", "password": key })),
        ],
        "outbounds": [crate::support::xray::freedom()],
    });
    let tags = ["vless", "vmess", "trojan", "ss", "ss2022"];
    panel.start(&config, &[]).await.unwrap();
    let core = node.core();
    panel.sync_all(&numbered(0..20, &tags)).await.unwrap();
    panel.sync_all(&[]).await.unwrap();
    panel.sync_each(numbered(0..20, &tags)).await.unwrap();
    assert_eq!(node.core(), core);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_core_that_hangs_did_not_take_is_mended_by_the_next_sync() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let served = Served::start().await;
    let core = Pid::from_raw(served.node.core());
    kill(core, Signal::SIGSTOP).unwrap();
    let error = served
        .panel
        .sync_chunked(&numbered(1..500, &["vless"]), 100)
        .await
        .unwrap_err();
    kill(core, Signal::SIGCONT).unwrap();
    assert_eq!(error.code(), Code::Internal);
    let text = error.message();
    assert!(text.starts_with("failed to update users: user "), "{text}");
    assert!(
        text.contains("xray") && text.contains("more changes"),
        "{text}"
    );

    // The core does now what it was asked meanwhile; who it has is settled by the same sync again.
    served
        .panel
        .sync_chunked(&numbered(1..500, &["vless"]), 100)
        .await
        .unwrap();
    assert!(served.is_served(&served.client("499")).await);
    served
        .panel
        .sync_all(&numbered(1..2, &["vless"]))
        .await
        .unwrap();
    for email in ["2", "250", "499"] {
        assert!(
            !served.is_served(&served.client(email)).await,
            "{email} was removed"
        );
    }
    assert!(served.is_served(&served.client("1")).await);
    assert_eq!(served.node.core(), core.as_raw());
}
