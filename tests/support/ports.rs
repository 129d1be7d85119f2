//! Ports that nobody else has: below the range that the kernel hands out, each once per process.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

pub fn free() -> u16 {
    // Two test runs at once start far apart, also when their pids are neighbours.
    let spread = std::process::id().wrapping_mul(2_654_435_761);
    let start = u16::try_from(spread % u32::from(LAST - FIRST)).unwrap();
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start + step) % (LAST - FIRST);
        if TcpListener::bind(("0.0.0.0", port)).is_ok()
            && UdpSocket::bind(("0.0.0.0", port)).is_ok()
        {
            return port;
        }
    }
}
