//! Which of the sockets on one port gets the next connection.
//!
//! The kernel asks a small program, attached to the group of sockets, for the place of the one that
//! shall have it (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)). Ours has one instruction: always this one. It is
//! attached through a descriptor of a core's own socket, which the kernel lends to whoever may trace that
//! process (`pidfd_getfd(2)`), and it stays with the group for as long as anybody is in it.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::sockets::Listener;

/// "Return a constant" of classic BPF (`BPF_RET | BPF_K`).
const RETURN: u16 = 0x06;

/// A process whose sockets can be borrowed.
#[derive(Debug)]
pub struct Lender(OwnedFd);

impl Lender {
    /// One that lives.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn new(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// From now on the socket at `place` gets whatever comes in where `listener` listens. What has come in
    /// before stays where it is.
    ///
    /// # Errors
    /// `EPERM` where this process may not trace the core, `EOPNOTSUPP` on an MPTCP socket.
    pub fn steer(&self, listener: &Listener, place: u32) -> io::Result<()> {
        let socket = pidfd_getfd(&self.0, listener.fd, PidfdGetfdFlags::empty())?;
        let mut always = libc::sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: place,
        };
        let program = libc::sock_fprog {
            len: 1,
            filter: &raw mut always,
        };
        Ok(setsockopt(&socket, sockopt::AttachReusePortCbpf, &program)?)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::super::sockets;
    use super::*;

    /// Listeners of this process that share one port.
    fn sharing(count: usize) -> Vec<TcpListener> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let mut address = "127.0.0.1:0".parse().unwrap();
        (0..count)
            .map(|_| {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_reuseport(true).unwrap();
                socket.bind(address).unwrap();
                let listener = socket.listen(128).unwrap().into_std().unwrap();
                address = listener.local_addr().unwrap();
                listener
            })
            .collect()
    }

    #[test]
    fn every_connection_goes_to_the_one_that_is_named() {
        let listeners = sharing(3);
        let port = listeners[0].local_addr().unwrap().port();
        let this = i32::try_from(std::process::id()).unwrap();
        let mut ours = sockets::listeners(this, |_| false).unwrap();
        ours.retain(|listener| listener.group.address.port() == port);
        assert_eq!(ours.len(), 3);
        let lender = Lender::new(this).unwrap();
        for (place, wanted) in listeners.iter().enumerate() {
            lender
                .steer(&ours[0], u32::try_from(place).unwrap())
                .unwrap();
            for _ in 0..20 {
                let _client = TcpStream::connect(wanted.local_addr().unwrap()).unwrap();
                assert!(wanted.accept().is_ok(), "place {place}");
            }
        }
    }

    #[test]
    fn nobody_lends_who_has_ended() {
        assert!(Lender::new(i32::MAX).is_err());
    }
}
