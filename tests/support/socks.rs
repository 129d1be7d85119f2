//! A SOCKS 5 client (RFC 1928), as far as a test needs one.

use std::io::{Error, Result};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection to `target` through the proxy on `port`.
pub async fn connect(port: u16, target: SocketAddr) -> Result<TcpStream> {
    let SocketAddr::V4(target) = target else {
        return Err(Error::other("IPv4 only"));
    };
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    let mut request = vec![5, 1, 0, 1];
    request.extend(target.ip().octets());
    request.extend(target.port().to_be_bytes());
    stream.write_all(&request).await?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await?;
    if reply[1] != 0 {
        return Err(Error::other(format!("SOCKS reply {}", reply[1])));
    }
    Ok(stream)
}
