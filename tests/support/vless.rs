//! A user without a client of his own: VLESS over plain TCP, spoken here. Cheap enough for thousands of users.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use uuid::Uuid;

/// Xray does not count who comes from 127.0.0.1 as online.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A connection of the user to `target`, through the inbound on `port`.
pub async fn connect(port: u16, id: Uuid, target: SocketAddr) -> std::io::Result<TcpStream> {
    connect_from(FROM, port, id, target).await
}

async fn connect_from(
    from: Ipv4Addr,
    port: u16,
    id: Uuid,
    target: SocketAddr,
) -> std::io::Result<TcpStream> {
    let at = (IpAddr::from([127, 0, 0, 1]), port).into();
    connect_through(from, at, id, target).await
}

/// The same through an inbound at another address.
pub async fn connect_through(
    from: Ipv4Addr,
    at: SocketAddr,
    id: Uuid,
    target: SocketAddr,
) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut stream = socket.connect(at).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&head(id, target)).await?;
    Ok(stream)
}

/// What a client says first.
pub fn head(id: Uuid, target: SocketAddr) -> Vec<u8> {
    let IpAddr::V4(address) = target.ip() else {
        panic!("{target} is not IPv4");
    };
    // Version, id, no add-ons, TCP, port, IPv4.
    let mut head = vec![0];
    head.extend(id.as_bytes());
    head.extend([0, 1]);
    head.extend(target.port().to_be_bytes());
    head.push(1);
    head.extend(address.octets());
    head
}

/// Sends so many bytes to an echo and hears them back; both ways are counted for the user.
pub async fn echo(port: u16, id: Uuid, target: SocketAddr, bytes: usize) -> std::io::Result<()> {
    echo_from(FROM, port, id, target, bytes).await
}

/// An address for each of many users: each has some 28,000 ports, and each port is taken for a minute.
pub fn address(user: usize) -> Ipv4Addr {
    let last = u8::try_from(2 + user % 250).unwrap();
    Ipv4Addr::new(127, 0, 1, last)
}

/// The same from an address of one's own.
pub async fn echo_from(
    from: Ipv4Addr,
    port: u16,
    id: Uuid,
    target: SocketAddr,
    bytes: usize,
) -> std::io::Result<()> {
    let mut stream = connect_from(from, port, id, target).await?;
    let said = vec![7; bytes];
    stream.write_all(&said).await?;
    let mut heard = vec![0; 2 + bytes];
    // Two bytes of VLESS come first.
    stream.read_exact(&mut heard).await?;
    Ok(())
}
