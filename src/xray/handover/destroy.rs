//! Ends connections of another process, one by one: what `ss -K` does (`SOCK_DESTROY`, `sock_diag(7)`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::sockets::Connection;

const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const PROTOCOL_TCP: u8 = 6;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
/// Any state of the connection will do.
const EVERY_STATE: u32 = u32::MAX;
/// Whichever socket it is: the four numbers of a connection are enough.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Ends connections. Each end of one hears a reset.
#[derive(Debug)]
pub struct Destroyer(OwnedFd);

impl Destroyer {
    /// Through the kernel's own service.
    ///
    /// # Errors
    /// When the kernel has no such service.
    pub fn new() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        // The kernel answers at once, or there is something that nobody thought of.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok(Self(socket))
    }

    /// Ends one connection. One that has ended meanwhile is no error.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`, `EOPNOTSUPP` where the kernel is built without
    /// `CONFIG_INET_DIAG_DESTROY`.
    pub fn destroy(&self, connection: &Connection) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        let fd = self.0.as_raw_fd();
        sendto(fd, &request(connection), &kernel, MsgFlags::empty())?;
        let mut reply = [0; 512];
        let length = recv(fd, &mut reply, MsgFlags::empty())?;
        match refusal(reply.get(..length).unwrap_or_default()) {
            0 | libc::ENOENT => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// A `nlmsghdr` and an `inet_diag_req_v2` (Linux, `include/uapi/linux/inet_diag.h`).
fn request(connection: &Connection) -> Vec<u8> {
    let (family, local) = words(connection.local);
    let (_, peer) = words(connection.peer);
    let mut body = vec![family, PROTOCOL_TCP, 0, 0];
    body.extend(EVERY_STATE.to_ne_bytes());
    body.extend(connection.local.port().to_be_bytes());
    body.extend(connection.peer.port().to_be_bytes());
    body.extend(local);
    body.extend(peer);
    body.extend([0; 4]);
    body.extend(NO_COOKIE);

    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn words(address: SocketAddr) -> (u8, [u8; 16]) {
    match address.ip() {
        IpAddr::V4(ip) => {
            let mut words = [0; 16];
            let (first, _) = words.split_at_mut(4);
            first.copy_from_slice(&ip.octets());
            (FAMILY_V4, words)
        }
        IpAddr::V6(ip) => (FAMILY_V6, ip.octets()),
    }
}

/// The error number of an answer; 0 for none.
fn refusal(reply: &[u8]) -> i32 {
    let number = |at: usize, bytes: usize| reply.get(at..at + bytes);
    let kind = number(4, 2).and_then(|bytes| bytes.try_into().ok());
    if kind.map(u16::from_ne_bytes) != Some(NLMSG_ERROR) {
        return libc::EPROTO;
    }
    let code = number(16, 4).and_then(|bytes| bytes.try_into().ok());
    code.map_or(libc::EPROTO, |bytes| -i32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn one_connection_ends_and_its_neighbour_does_not() {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: it needs root");
            return;
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let connect = || {
                let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                client.set_nonblocking(true).unwrap();
                (client, listener.accept().unwrap().0)
            };
            let (mut one, its_server) = connect();
            let (mut other, _other_server) = connect();
            let connection = Connection {
                local: its_server.local_addr().unwrap(),
                peer: its_server.peer_addr().unwrap(),
            };
            let destroyer = Destroyer::new().unwrap();
            destroyer.destroy(&connection).unwrap();
            let error = one.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            let error = other.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            destroyer.destroy(&connection).unwrap();
        }
    }
}
