//! The sockets of a process, as `/proc` shows them: where it listens, and who is connected to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use super::groups::{Group, Protocol};

/// A socket that waits for connections or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Where it listens.
    pub group: Group,
    /// Its number in the process that has it.
    pub fd: RawFd,
}

/// A connection that somebody else opened to a process, or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The address on this machine.
    pub local: SocketAddr,
    /// The one on the other.
    pub peer: SocketAddr,
}

/// States of `/proc/net/tcp` (Linux, `include/net/tcp_states.h`); a datagram socket without a peer is
/// "closed".
const ESTABLISHED: u8 = 0x01;
const CLOSED: u8 = 0x07;
const LISTEN: u8 = 0x0a;
/// `SS_CONNECTED` in `/proc/net/unix`.
const UNIX_CONNECTED: &str = "03";

/// Where a process listens. Datagram sockets are those on a port for which `is_inbound` says so: a
/// process also has one for each datagram session that it forwards.
///
/// # Errors
/// When the process has gone, or we may not look into it.
pub fn listeners(pid: i32, is_inbound: impl Fn(u16) -> bool) -> io::Result<Vec<Listener>> {
    let descriptors = descriptors(pid)?;
    let mut listeners = Vec::new();
    let mut add = |protocol, socket: &Socket| {
        let group = Group {
            protocol,
            address: socket.local,
        };
        let fds = descriptors.get(&socket.inode).into_iter().flatten();
        listeners.extend(fds.map(|fd| Listener { group, fd: *fd }));
    };
    for socket in table(pid, "tcp")? {
        if socket.state == LISTEN {
            add(Protocol::Tcp, &socket);
        }
    }
    for socket in table(pid, "udp")? {
        if socket.state == CLOSED && is_inbound(socket.local.port()) {
            add(Protocol::Udp, &socket);
        }
    }
    listeners.sort();
    Ok(listeners)
}

/// Who is connected to a process on the ports of its inbounds.
///
/// # Errors
/// When the process has gone, or we may not look into it.
pub fn connections(pid: i32, is_inbound: impl Fn(u16) -> bool) -> io::Result<Vec<Connection>> {
    let descriptors = descriptors(pid)?;
    let sockets = table(pid, "tcp")?;
    let ours = sockets.into_iter().filter(|socket| {
        socket.state == ESTABLISHED
            && is_inbound(socket.local.port())
            && descriptors.contains_key(&socket.inode)
    });
    Ok(ours
        .map(|socket| Connection {
            local: socket.local,
            peer: socket.peer,
        })
        .collect())
}

/// How many are connected to a process through these unix sockets.
///
/// # Errors
/// When the process has gone, or we may not look into it.
pub fn unix_connections(pid: i32, paths: &[PathBuf]) -> io::Result<usize> {
    if paths.is_empty() {
        return Ok(0);
    }
    let descriptors = descriptors(pid)?;
    let text = std::fs::read_to_string(folder(pid).join("net/unix"))?;
    let connected = text.lines().skip(1).filter(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_ascii_whitespace().skip(5);
        let (state, inode, path) = (fields.next(), fields.next(), fields.next());
        state == Some(UNIX_CONNECTED)
            && path.is_some_and(|path| paths.iter().any(|one| one.as_os_str() == path))
            && inode
                .and_then(|inode| inode.parse().ok())
                .is_some_and(|inode: u64| descriptors.contains_key(&inode))
    });
    Ok(connected.count())
}

/// Which of these processes has taken the connection that came from `from` to port `to`.
#[must_use]
pub fn taker(pids: &[i32], from: SocketAddr, to: u16) -> Option<i32> {
    let table = table(*pids.first()?, "tcp").ok()?;
    let taken = table.iter().find(|socket| {
        socket.inode != 0
            && socket.local.port() == to
            && socket.peer.port() == from.port()
            && socket.peer.ip().to_canonical() == from.ip().to_canonical()
    })?;
    let has_it = |pid: &&i32| {
        descriptors(**pid).is_ok_and(|descriptors| descriptors.contains_key(&taken.inode))
    };
    pids.iter().find(has_it).copied()
}

/// The user whom a process runs as.
#[must_use]
pub fn user_of(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(folder(pid).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // Real, effective, saved, and for files.
    line.split_whitespace().nth(1)?.parse().ok()
}

/// How many files a process has open.
///
/// # Errors
/// When the process has gone, or we may not look into it.
pub fn open_files(pid: i32) -> io::Result<usize> {
    Ok(std::fs::read_dir(folder(pid).join("fd"))?.count())
}

fn folder(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// The descriptors of each socket that the process has, by inode.
fn descriptors(pid: i32) -> io::Result<HashMap<u64, Vec<RawFd>>> {
    let mut descriptors: HashMap<u64, Vec<RawFd>> = HashMap::new();
    for entry in std::fs::read_dir(folder(pid).join("fd"))? {
        let entry = entry?;
        // One that is closed meanwhile is none.
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
            .and_then(|inode| inode.parse().ok());
        let fd = entry.file_name().to_string_lossy().parse();
        if let (Some(inode), Ok(fd)) = (inode, fd) {
            descriptors.entry(inode).or_default().push(fd);
        }
    }
    Ok(descriptors)
}

/// A line of `/proc/net/tcp` and its like.
struct Socket {
    local: SocketAddr,
    peer: SocketAddr,
    state: u8,
    inode: u64,
}

/// All sockets of one kind in the process's network, IPv4 and IPv6.
fn table(pid: i32, kind: &str) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for name in [kind.to_owned(), format!("{kind}6")] {
        let text = match std::fs::read_to_string(folder(pid).join("net").join(name)) {
            Ok(text) => text,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        sockets.extend(text.lines().skip(1).filter_map(socket));
    }
    Ok(sockets)
}

fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let peer = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some(Socket {
        local,
        peer,
        state,
        inode,
    })
}

/// `0100007F:1F90`: each group of eight digits is a word in the machine's own order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Vec<u32> = (0..ip.len() / 8)
        .map(|place| u32::from_str_radix(ip.get(place * 8..place * 8 + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ip = match words.len() {
        1 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        4 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn this() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn addresses_are_words_in_hexadecimal() {
        if cfg!(target_endian = "little") {
            let read = |text| address(text).unwrap().to_string();
            assert_eq!(read("0100007F:1F90"), "127.0.0.1:8080");
            assert_eq!(read("00000000000000000000000001000000:0050"), "[::1]:80");
            assert_eq!(
                read("B80D01200000000000000000010000FF:01BB"),
                "[2001:db8::ff00:1]:443"
            );
        }
        for broken in ["", "1:2", "0100007F", "0100007G:1F90"] {
            assert_eq!(address(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_process_shows_where_it_listens_and_who_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let here = listener.local_addr().unwrap();
        let [tcp_port, udp_port] = [here.port(), udp.local_addr().unwrap().port()];
        let found = listeners(this(), |port| port == udp_port).unwrap();
        let ports: Vec<(Protocol, u16)> = found
            .iter()
            .map(|listener| (listener.group.protocol, listener.group.address.port()))
            .filter(|(_, port)| [tcp_port, udp_port].contains(port))
            .collect();
        assert_eq!(
            ports,
            [(Protocol::Tcp, tcp_port), (Protocol::Udp, udp_port)]
        );

        assert!(
            connections(this(), |port| port == tcp_port)
                .unwrap()
                .is_empty()
        );
        let client = TcpStream::connect(here).unwrap();
        let from = client.local_addr().unwrap();
        assert_eq!(
            taker(&[this()], from, tcp_port),
            None,
            "nobody has taken it"
        );
        let (_taken, _) = listener.accept().unwrap();
        assert_eq!(taker(&[1, this()], from, tcp_port), Some(this()));
        let seen = connections(this(), |port| port == tcp_port).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].peer, from);
        let neighbour = SocketAddr::new([127, 0, 0, 9].into(), from.port());
        assert_eq!(taker(&[this()], neighbour, tcp_port), None, "the same port");
        assert!(open_files(this()).unwrap() > 3);
    }

    #[test]
    fn connections_through_a_unix_socket_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("a.sock")];
        let listener = std::os::unix::net::UnixListener::bind(&paths[0]).unwrap();
        assert_eq!(unix_connections(this(), &paths).unwrap(), 0);
        let _client = std::os::unix::net::UnixStream::connect(&paths[0]).unwrap();
        let _taken = listener.accept().unwrap();
        assert_eq!(unix_connections(this(), &paths).unwrap(), 1);
        assert_eq!(unix_connections(this(), &[]).unwrap(), 0);
    }
}
