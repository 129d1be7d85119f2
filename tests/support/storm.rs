//! Somebody connects a thousand times a second, and others hold what they have: what a node must not show
//! that a core makes way for another one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::distance::Distance;
use super::vless;

/// A reply that takes longer is a connection that has failed.
const PATIENCE: Duration = Duration::from_secs(15);
/// No more than so many are under way at a time.
const AT_A_TIME: usize = 1000;
/// What every connection says, and hears.
pub const WORD: usize = 8;
/// How often a held connection says it.
const PACE: Duration = Duration::from_millis(500);

/// Where they connect, and how many of them.
#[derive(Clone)]
pub struct Load {
    /// The address of the inbound: VLESS over plain TCP.
    pub at: SocketAddr,
    pub from: Ipv4Addr,
    pub id: Uuid,
    /// An echo.
    pub target: SocketAddr,
    pub per_second: u32,
    pub held: usize,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Outcome {
    pub opened: u64,
    pub failed: u64,
    pub held: u64,
    /// Of those that were held.
    pub ended: u64,
    /// Each way.
    pub bytes: u64,
    pub first_reason: Option<String>,
}

pub struct Storm {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    thread: JoinHandle<Outcome>,
}

impl Storm {
    /// Begins, from the other side of a distance where there is one. Returns when all that are held are
    /// there.
    pub async fn begin(load: Load, distance: Option<&Arc<Distance>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(AtomicU64::new(0));
        let distance = distance.cloned();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&opened));
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            if let Some(distance) = &distance {
                distance.enter();
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(blow(load, ready, &stopped, &count))
        });
        is_ready.await.unwrap();
        Self {
            stop,
            opened,
            thread,
        }
    }

    /// How many were opened until now.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Ends it when every connection that was begun has ended, too.
    pub async fn end(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(|| self.thread.join().unwrap())
            .await
            .unwrap()
    }
}

async fn blow(
    load: Load,
    ready: tokio::sync::oneshot::Sender<()>,
    stop: &Arc<AtomicBool>,
    opened: &Arc<AtomicU64>,
) -> Outcome {
    let load = Arc::new(load);
    let mut outcome = Outcome::default();
    let one = || async {
        let mut stream = open(&load).await.unwrap();
        say(&mut stream).await.unwrap();
        stream
    };
    // Xray makes a user's counters with his first connection, and counts nothing of another one that begins in
    // the same instant.
    let mut streams = Vec::new();
    if load.held > 0 {
        streams.push(one().await);
    }
    let others = futures_util::stream::iter(1..load.held).map(|_| one());
    streams.extend(others.buffer_unordered(50).collect::<Vec<_>>().await);
    let mut held = JoinSet::new();
    for stream in streams {
        held.spawn(hold(stream, Arc::clone(stop)));
    }
    outcome.held = load.held as u64;
    ready.send(()).unwrap();
    let mut calls: JoinSet<Result<(), String>> = JoinSet::new();
    let began = Instant::now();
    let mut calling = 0;
    let note = |outcome: &mut Outcome, result: Result<(), String>| match result {
        Ok(()) => {
            outcome.opened += 1;
            outcome.bytes += WORD as u64;
            opened.fetch_add(1, Ordering::Relaxed);
        }
        Err(reason) => {
            outcome.failed += 1;
            outcome.first_reason.get_or_insert(reason);
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() * u128::from(load.per_second) / 1_000_000;
        while calling < due {
            calling += 1;
            if calls.len() >= AT_A_TIME {
                // A machine that can't keep up is no fault of the node's.
                continue;
            }
            let load = Arc::clone(&load);
            calls.spawn(async move { call(&load).await });
        }
        while let Some(result) = calls.try_join_next() {
            note(&mut outcome, result.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while let Some(result) = calls.join_next().await {
        note(&mut outcome, result.unwrap());
    }
    while let Some(result) = held.join_next().await {
        match result.unwrap() {
            Ok(words) => outcome.bytes += words * WORD as u64,
            Err(reason) => {
                outcome.ended += 1;
                outcome.first_reason.get_or_insert(reason);
            }
        }
    }
    outcome
}

/// One that comes, says a word, hears it, and goes.
async fn call(load: &Load) -> Result<(), String> {
    let began = Instant::now();
    let talk = async {
        let mut stream = open(load).await?;
        say_first(&mut stream).await?;
        // A port of its own for a minute after each would be too many.
        stream.set_zero_linger()
    };
    match tokio::time::timeout(PATIENCE, talk).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error}, after {:?}", began.elapsed())),
        Err(_) => Err("nothing in time".to_owned()),
    }
}

async fn open(load: &Load) -> std::io::Result<TcpStream> {
    vless::connect_through(load.from, load.at, load.id, load.target).await
}

/// The number of words that it has said.
async fn hold(mut stream: TcpStream, stop: Arc<AtomicBool>) -> Result<u64, String> {
    let mut words = 1;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PACE).await;
        match tokio::time::timeout(PATIENCE, repeat(&mut stream)).await {
            Ok(Ok(())) => words += 1,
            Ok(Err(error)) => return Err(format!("held, after {words} words: {error}")),
            Err(_) => return Err(format!("held, after {words} words: silence")),
        }
    }
    Ok(words)
}

async fn say(stream: &mut TcpStream) -> std::io::Result<()> {
    tokio::time::timeout(PATIENCE, say_first(stream)).await?
}

/// Two bytes of VLESS come before the first word.
async fn say_first(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&[7; WORD]).await?;
    stream.read_exact(&mut [0; 2 + WORD]).await?;
    Ok(())
}

async fn repeat(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&[7; WORD]).await?;
    stream.read_exact(&mut [0; WORD]).await?;
    Ok(())
}

/// Where a load comes from that has no distance to go.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Any address of one's own.
pub const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// An address on the loopback.
pub fn loopback(port: u16) -> SocketAddr {
    (IpAddr::from([127, 0, 0, 1]), port).into()
}
