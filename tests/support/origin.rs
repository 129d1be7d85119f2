//! A server on the loopback: it takes as many bytes as it is told and gives as many as it is asked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What a client says first: how many bytes it sends, and how many it wants. It waits for one byte
/// before it goes on: Xray's trojan client fails when the very first bytes are more than 8 KiB.
pub const HEADER: u64 = 16;

pub struct Origin {
    pub address: SocketAddr,
    pub connections: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

impl Origin {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                clients.spawn(async move { drop(serve(stream).await) });
                while clients.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            connections,
            _task: task,
        }
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let up = stream.read_u64_le().await?;
    let down = stream.read_u64_le().await?;
    stream.write_u8(1).await?;
    stream.flush().await?;
    let down = down.saturating_sub(1);
    let mut buffer = vec![0; 64 << 10];
    let mut left = up;
    while left > 0 {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        left = left.saturating_sub(count as u64);
    }
    let mut left = usize::try_from(down).unwrap();
    while left > 0 {
        let count = left.min(buffer.len());
        stream.write_all(&buffer[..count]).await?;
        left -= count;
    }
    stream.flush().await?;
    // The client hangs up first, so that nothing that is under way is cut off.
    drop(stream.read(&mut buffer).await);
    Ok(())
}

/// Moves so many bytes each way over a connection to an origin; the header counts as sent.
pub async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    up: u64,
    down: u64,
) -> std::io::Result<()> {
    assert!(up >= HEADER);
    stream.write_u64_le(up - HEADER).await?;
    stream.write_u64_le(down).await?;
    stream.flush().await?;
    assert!(down > 0);
    stream.read_u8().await?;
    let down = down - 1;
    let buffer = vec![7; 64 << 10];
    let mut left = usize::try_from(up - HEADER).unwrap();
    while left > 0 {
        let count = left.min(buffer.len());
        stream.write_all(&buffer[..count]).await?;
        left -= count;
    }
    stream.flush().await?;
    let mut taken = 0;
    let mut buffer = vec![0; 64 << 10];
    while taken < down {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::Error::other(format!(
                "cut off after {taken} of {down} bytes"
            )));
        }
        taken += count as u64;
    }
    Ok(())
}

/// A download that goes on until it is told to end, and fails when a byte of it is cut off.
pub struct Download {
    task: tokio::task::JoinHandle<std::io::Result<u64>>,
    end: tokio::sync::oneshot::Sender<()>,
}

impl Download {
    /// Begins it on a connection to an origin; returns when bytes are coming.
    pub async fn start(mut stream: tokio::net::TcpStream) -> std::io::Result<Self> {
        stream.write_u64_le(0).await?;
        stream.write_u64_le(u64::MAX).await?;
        stream.read_u8().await?;
        let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            let mut bytes = 0;
            while ended.try_recv().is_err() {
                match stream.read(&mut buffer).await? {
                    0 => {
                        return Err(std::io::Error::other(format!(
                            "cut off after {bytes} bytes"
                        )));
                    }
                    count => bytes += count as u64,
                }
                // Fast enough to be busy, slow enough to leave the machine to others.
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            Ok(bytes)
        });
        Ok(Self { task, end })
    }

    /// Ends it; returns how many bytes came without a break.
    pub async fn end(self) -> std::io::Result<u64> {
        self.end.send(()).ok();
        self.task.await.map_err(std::io::Error::other)?
    }
}
