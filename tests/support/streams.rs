//! Many connections of one user that must not end: each says something now and then, and hears it back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::XrayClient;

/// How often each connection says something.
const PACE: Duration = Duration::from_millis(500);
/// A reply that takes longer is a connection that is dead.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that says everything back.
pub struct Echo {
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

impl Echo {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                clients.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
                while clients.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            _task: task,
        }
    }
}

/// The connections.
pub struct Streams {
    held: Vec<JoinHandle<Result<Kept, String>>>,
    end: CancellationToken,
}

/// What one connection did.
struct Kept {
    messages: u64,
    longest: Duration,
}

/// What became of all of them.
#[derive(Debug)]
pub struct Table {
    pub held: usize,
    pub broken: usize,
    pub messages: u64,
    /// The longest that anybody waited for a reply.
    pub longest_silence: Duration,
    pub first_reason: Option<String>,
}

impl Streams {
    /// Opens so many and returns when each has heard itself.
    pub async fn hold(client: &XrayClient, echo: &Echo, count: usize) -> Self {
        let end = CancellationToken::new();
        let held = futures_util::stream::iter(0..count)
            .map(|_| async {
                let mut stream = client.connect(echo.address).await.unwrap();
                say(&mut stream, 0).await.unwrap();
                stream
            })
            .buffer_unordered(50)
            .map(|stream| tokio::spawn(keep(stream, end.clone())))
            .collect()
            .await;
        Self { held, end }
    }

    /// How many have ended.
    pub fn broken(&self) -> usize {
        self.held.iter().filter(|held| held.is_finished()).count()
    }

    /// Ends them, each after one more reply.
    pub async fn end(self) -> Table {
        self.end.cancel();
        let mut table = Table {
            held: self.held.len(),
            broken: 0,
            messages: 0,
            longest_silence: Duration::ZERO,
            first_reason: None,
        };
        for held in self.held {
            match held.await.unwrap() {
                Ok(kept) => {
                    table.messages += kept.messages;
                    table.longest_silence = table.longest_silence.max(kept.longest);
                }
                Err(reason) => {
                    table.broken += 1;
                    table.first_reason.get_or_insert(reason);
                }
            }
        }
        table
    }
}

async fn keep(mut stream: TcpStream, end: CancellationToken) -> Result<Kept, String> {
    let mut kept = Kept {
        messages: 0,
        longest: Duration::ZERO,
    };
    loop {
        let last = end.is_cancelled();
        kept.messages += 1;
        let asked = Instant::now();
        say(&mut stream, kept.messages)
            .await
            .map_err(|error| format!("after {} messages: {error}", kept.messages))?;
        kept.longest = kept.longest.max(asked.elapsed());
        if last {
            return Ok(kept);
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            () = end.cancelled() => {}
        }
    }
}

async fn say(stream: &mut TcpStream, number: u64) -> std::io::Result<()> {
    let talk = async {
        stream.write_u64(number).await?;
        let heard = stream.read_u64().await?;
        assert_eq!(heard, number, "a connection mixes up its bytes");
        Ok(())
    };
    tokio::time::timeout(PATIENCE, talk).await?
}
