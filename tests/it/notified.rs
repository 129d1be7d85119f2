//! What systemd hears: here its socket is one of ours.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::NODE;
use crate::support::users::{numbered, user};
use crate::support::xray::vless_config;
use crate::support::{NodeProcess, Panel, eventually, ports};

/// Everything that was said, in order, with the moment.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<(Instant, String)>>>);

impl Heard {
    /// Listens in a folder for as long as the test runs.
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let heard = Self::default();
        let told = heard.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let words = String::from_utf8(buffer[..length].to_vec()).unwrap();
                told.0.lock().unwrap().push((Instant::now(), words));
            }
        });
        heard
    }

    fn all(&self) -> Vec<String> {
        let heard = self.0.lock().unwrap();
        heard.iter().map(|(_, words)| words.clone()).collect()
    }

    fn count(&self, word: &str) -> usize {
        let heard = self.all();
        heard.iter().filter(|words| words.contains(word)).count()
    }

    fn pings_since(&self, since: Instant) -> usize {
        let heard = self.0.lock().unwrap();
        let pings = heard
            .iter()
            .filter(|(at, words)| *at >= since && words.contains("WATCHDOG=1"));
        pings.count()
    }

    /// Returns where among all words this one is, once it is there behind `after`.
    async fn word(&self, word: &str, after: usize) -> usize {
        eventually(word, || async {
            let heard = self.all();
            let behind = heard.iter().enumerate().skip(after);
            let found = behind.filter(|(_, words)| words.lines().any(|line| line.contains(word)));
            found.map(|(place, _)| place).next()
        })
        .await
    }
}

/// A node whose service manager is this test.
fn node(watchdog: Option<Duration>) -> (NodeProcess, Heard) {
    let mut node = NodeProcess::prepare(NODE, &[]);
    let socket = node.folder().join("notify");
    let heard = Heard::at(&socket);
    node.set("NOTIFY_SOCKET", socket.to_str().unwrap());
    if let Some(interval) = watchdog {
        node.set("WATCHDOG_USEC", &interval.as_micros().to_string());
    }
    node.launch();
    (node, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_knows_what_the_node_does() {
    let (mut node, heard) = node(None);
    let ready = heard.word("READY=1", 0).await;
    let waiting = heard.word("STATUS=no core runs; Xray", 0).await;
    assert!(waiting < ready, "there is a line as soon as it is ready");
    assert!(heard.all()[waiting].contains("no panel has control"));

    let panel = Panel::of(&node);
    let users = [user("somebody@example.com", &["vless"])];
    panel
        .start(&vless_config(ports::free()), &users)
        .await
        .unwrap();
    let core = node.core();
    let line = format!("serves (pid {core}); a panel has control");
    let served = heard.word(&line, ready).await;
    let environment = std::fs::read(format!("/proc/{core}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("NOTIFY_SOCKET"));

    // A change of users is none of the line.
    panel.sync_all(&numbered(0..9, &["vless"])).await.unwrap();
    assert_eq!(heard.all().len(), served + 1);
    kill(Pid::from_raw(core), Signal::SIGKILL).unwrap();
    let died = heard.word("ended unasked", served).await;
    let again = heard.word("serves (pid", died).await;

    node.signal(Signal::SIGHUP);
    let reloading = heard.word("RELOADING=1", again).await;
    assert!(heard.all()[reloading].contains("MONOTONIC_USEC="));
    let reloaded = heard.word("READY=1", reloading).await;
    let log = node.log();
    assert_eq!(log.matches("read LOG_LEVEL").count(), 1);
    assert_eq!(log.matches("these keys open the node now").count(), 1);

    panel.stop().await.unwrap();
    let stopped = heard.word("no core runs", reloaded).await;

    node.signal(Signal::SIGUSR2);
    let replaced = heard.word("RELOADING=1", stopped).await;
    assert!(heard.all()[replaced - 1].contains("the binary on disk"));
    let ready = heard.word("READY=1", replaced).await;
    assert_eq!(node.log().matches("serving panels").count(), 2);

    assert!(node.stop().success());
    let stopping = heard.word("STOPPING=1", ready).await;
    assert!(heard.all()[stopping - 1].contains("STATUS=stopping"));
    assert_eq!(heard.count("STOPPING=1"), 1);
    assert_eq!(heard.count("WATCHDOG"), 0, "nobody asked for that");
    let all = heard.all().join("");
    assert!(!all.contains("somebody"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_hears_one_that_lives_and_not_one_that_stands_still() {
    let interval = Duration::from_millis(600);
    let (node, heard) = node(Some(interval));
    heard.word("READY=1", 0).await;
    let began = Instant::now();
    tokio::time::sleep(5 * interval).await;
    // Two for each interval, on a machine that may be slow.
    let pings = heard.pings_since(began);
    assert!((5..=11).contains(&pings), "{pings}");
    node.signal(Signal::SIGSTOP);
    tokio::time::sleep(interval / 2).await;
    let stopped = Instant::now();
    tokio::time::sleep(3 * interval).await;
    assert_eq!(heard.pings_since(stopped), 0);
    node.signal(Signal::SIGCONT);
    eventually("it is heard again", || async {
        (heard.pings_since(stopped) > 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes; make soak runs it"]
async fn the_watchdog_does_not_hear_a_driver_that_hangs() {
    let (node, heard) = node(Some(Duration::from_secs(2)));
    let panel = Panel::of(&node);
    let users = numbered(0..5, &["vless"]);
    panel
        .start(&vless_config(ports::free()), &users)
        .await
        .unwrap();
    // Opening it waits for somebody who reads it: nobody thought of that.
    let journal = node.folder().join("state/last-good.journal");
    std::fs::remove_file(&journal).unwrap();
    nix::unistd::mkfifo(&journal, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let hung = Instant::now();
    let caller = panel.clone();
    let change = tokio::spawn(async move {
        let config = vless_config(ports::free());
        caller.start(&config, &[]).await
    });
    // It is patient, and the rest of the node serves.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(heard.pings_since(hung + Duration::from_secs(50)) > 5);
    tokio::time::sleep(Duration::from_secs(40)).await;
    let silent = Instant::now();
    assert!(panel.info().await.started);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(heard.pings_since(silent), 0);
    assert!(node.log().contains("the driver hangs"));
    drop(std::fs::File::open(&journal).unwrap());
    eventually("it is heard again", || async {
        (heard.pings_since(silent) > 1).then_some(())
    })
    .await;
    change.abort();
}
