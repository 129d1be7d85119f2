//! What signals ask of a running node, beside making way for another binary.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::NODE;
use crate::support::users::numbered;
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, eventually, ports};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_hurries() {
    let mut node = NodeProcess::start(NODE);
    let panel = Panel::of(&node);
    panel
        .start(&vless_config(ports::free()), &numbered(0..5, &["vless"]))
        .await
        .unwrap();
    // A reply that the node would wait for, and a core that does not stop when asked.
    kill(Pid::from_raw(node.core()), Signal::SIGSTOP).unwrap();
    let waiting = panel.clone();
    let reply = tokio::spawn(async move {
        let mut client = waiting.client.clone();
        client
            .get_backend_stats(raynode::proto::service::Empty {})
            .await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = Instant::now();
    node.signal(Signal::SIGTERM);
    assert!(!node.stop_asked().success(), "it says that it did not wait");
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    eventually("no core is left", || async {
        node.cores().is_empty().then_some(())
    })
    .await;
    reply.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_takes_over_what_can_change() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    // What stands in the environment can't change, what stands in the file can.
    node.unset("STOP_GRACE");
    node.unset("LOG_LEVEL");
    let file = node.folder().join(".env");
    std::fs::write(&file, "STOP_GRACE=0\nLOG_LEVEL=info\n").unwrap();
    node.launch();
    let panel = Panel::of(&node);
    let config = vless_config(ports::free());
    panel.start(&config, &[]).await.unwrap();
    panel.stop().await.unwrap();
    assert_eq!(node.cores(), Vec::<i32>::new());
    std::fs::write(&file, "STOP_GRACE=1h\nLOG_LEVEL=debug\n").unwrap();
    node.signal(Signal::SIGHUP);
    eventually("it is taken over", || async {
        node.log().contains("read LOG_LEVEL").then_some(())
    })
    .await;
    panel.start(&config, &[]).await.unwrap();
    panel.stop().await.unwrap();
    node.core();
    // A mistake changes nothing, and is told.
    std::fs::write(&file, "STOP_GRACE=soon\n").unwrap();
    node.signal(Signal::SIGHUP);
    eventually("it is told", || async {
        node.log().contains("STOP_GRACE is").then_some(())
    })
    .await;
    panel.start(&config, &[]).await.unwrap();
    panel.stop().await.unwrap();
    node.core();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_be_told_to_reload_where_nobody_runs() {
    let mut node = NodeProcess::start(NODE);
    assert!(node.command(&["reload"]).status.success());
    assert!(node.stop().success());
    let told = node.command(&["reload"]);
    assert_eq!(told.status.code(), Some(3));
    let text = String::from_utf8(told.stderr).unwrap();
    assert!(text.contains("no daemon answers at"), "{text}");
    node.set("HANDOVER", "perhaps");
    let told = node.command(&["reload"]);
    assert_eq!(told.status.code(), Some(2));
    let text = String::from_utf8(told.stderr).unwrap();
    assert!(
        text.contains("HANDOVER is") && text.contains("auto, plain or off"),
        "{text}"
    );
}

#[test]
fn the_environment_names_the_file_of_settings() {
    let mut node = NodeProcess::prepare(NODE, &[]);
    node.unset("STOP_GRACE");
    let named = node.folder().join("named");
    std::fs::write(&named, "STOP_GRACE=soon\n").unwrap();
    std::fs::write(node.folder().join(".env"), "DRAIN_TIMEOUT=soon\n").unwrap();
    let mistakes = |node: &NodeProcess| {
        let told = node.command(&["reload"]);
        assert_eq!(told.status.code(), Some(2));
        String::from_utf8(told.stderr).unwrap()
    };
    let text = mistakes(&node);
    assert!(text.contains("DRAIN_TIMEOUT is"), "{text}");
    assert!(!text.contains("STOP_GRACE"), "{text}");
    node.set("RAYNODE_SETTINGS", named.to_str().unwrap());
    let text = mistakes(&node);
    assert!(text.contains("STOP_GRACE is"), "{text}");
    assert!(!text.contains("DRAIN_TIMEOUT"), "{text}");
}
