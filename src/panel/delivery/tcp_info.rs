//! What the kernel knows of a TCP connection.

use std::os::fd::AsFd;

/// The state of a connection that is closed on both sides, or was reset.
const CLOSED: u8 = 7;

mod option {
    #![allow(
        missing_docs,
        unreachable_pub,
        unsafe_code,
        clippy::all,
        clippy::pedantic,
        reason = "written by a macro of nix, which knows how to ask a socket"
    )]

    #[derive(Clone, Copy, Debug)]
    pub struct TcpInfo;

    /// The beginning of the kernel's `struct tcp_info` (`linux/tcp.h`), as far as it is needed: a kernel may
    /// know less than the newest one, and fills what it knows.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Info {
        pub state: u8,
        bytes: [u8; 7],
        words: [u32; 24],
        pacing: [u64; 2],
        pub bytes_acked: u64,
        bytes_received: u64,
        segments: [u32; 2],
        pub notsent_bytes: u32,
        min_rtt: u32,
    }

    nix::getsockopt_impl!(
        TcpInfo,
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        Info,
        nix::sys::socket::sockopt::GetStruct<Info>
    );
}

pub(super) use self::option::Info;

impl Info {
    /// Asks the kernel; `None` where it does not tell.
    pub(super) fn of(socket: &impl AsFd) -> Option<Self> {
        nix::sys::socket::getsockopt(socket, option::TcpInfo).ok()
    }

    /// How many bytes of ours the peer's kernel has acknowledged.
    pub(super) fn acked(&self) -> u64 {
        self.bytes_acked
    }

    /// How many bytes have not left this machine.
    pub(super) fn unsent(&self) -> u64 {
        self.notsent_bytes.into()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == CLOSED
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_counts_what_the_peer_has_acknowledged() {
        assert_eq!(size_of::<Info>(), 152, "up to min_rtt");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        assert_eq!(Info::of(&server).unwrap().acked(), 0);
        server.write_all(&[7; 1000]).unwrap();
        client.read_exact(&mut [0; 1000]).unwrap();
        for _ in 0..100 {
            if Info::of(&server).unwrap().acked() == 1000 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let info = Info::of(&server).unwrap();
        assert_eq!(
            (info.acked(), info.unsent(), info.is_closed()),
            (1000, 0, false)
        );
    }
}
