//! A second network namespace at a fixed distance in time from this one.
//!
//! Tests that need a far-away peer would usually ask the kernel's `netem` queue for delay. Not
//! every kernel has it, so here the delay is made in user space: a TUN device in the current
//! namespace and one in a new namespace, joined by threads which hold every packet back for the
//! same time before handing it on. Everything above the packets (handshakes, windows, congestion
//! control, retransmission) is the kernel's own.
//!
//! For each direction there are two threads. One reads packets as soon as they leave the one
//! device and stamps them with the time they are due; the other waits for that time and writes
//! them to the other device. As the delay is the same for all packets, a plain queue between the
//! two keeps them in order of due time.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The largest packet the devices carry, that of an ordinary Ethernet.
const MTU: usize = 1500;

/// Packets the kernel holds for a device until its reader comes to take them. Large, so that a
/// reader which the scheduler leaves waiting for some milliseconds costs no packets.
const DEVICE_QUEUE: usize = 10_000;

/// Packets that may be under way in one direction; what comes on top of that is dropped.
const UNDER_WAY: usize = 20_000;

/// How often an idle reader looks whether it is to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Number of different pairs of addresses: 10.128.0.x to 10.191.255.x.
const SUBNETS: u32 = 64 * 256;

/// How many address pairs are tried before giving up because all of them are taken.
const SUBNET_ATTEMPTS: u32 = 64;

/// `O_NONBLOCK` of Linux on all the machines that Rust has as first-tier targets.
const O_NONBLOCK: i32 = 0o4000;

/// Counts the namespaces made by this process, to give each a name and addresses of its own.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A second network namespace that every packet needs a fixed time to reach, and to come back
/// from.
///
/// Dropping it stops the traffic and removes the devices and the namespace.
pub struct Distance {
    subnet: Subnet,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
    // Dropped after `Drop::drop` has ended the threads, and so after the devices are closed.
    namespace: Namespace,
}

impl Distance {
    /// Makes a new namespace which packets reach after `one_way`, and whose packets need as long
    /// to get here.
    ///
    /// Returns `None` where that can't be done (not root, no `/dev/net/tun`, no `ip`), after
    /// saying so on standard error: the test is to be skipped.
    ///
    /// # Panics
    ///
    /// If it can't be done and the environment variable `CI` is set, for there a skipped test
    /// would go unnoticed.
    #[must_use]
    pub fn new(one_way: Duration) -> Option<Self> {
        match Self::build(one_way) {
            Ok(distance) => Some(distance),
            Err(error) => {
                let message = format!("no network namespace at a distance: {error}");
                assert!(std::env::var_os("CI").is_none(), "{message}");
                eprintln!("SKIPPED: {message}");
                None
            }
        }
    }

    /// The address of the current namespace's end, for those there to connect to.
    #[must_use]
    pub fn here(&self) -> Ipv4Addr {
        self.subnet.address(1)
    }

    /// The address of the new namespace's end, for those here to connect to.
    #[must_use]
    pub fn there(&self) -> Ipv4Addr {
        self.subnet.address(2)
    }

    /// The number of packets lost between the devices so far, in both directions together:
    /// because too many were under way, or because the far device did not take them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// Moves the calling thread into the new namespace, for the rest of its life.
    ///
    /// The sockets it makes from now on live there, and so do the threads and processes it
    /// starts. Sockets it made before stay where they are.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, which it has no reason to after [`Distance::new`] succeeded.
    pub fn enter(&self) {
        self.namespace
            .enter()
            .expect("the namespace just made can be entered");
    }

    /// Makes the namespace, the devices and the threads. Whatever was made is removed again on
    /// an error, by the drop of its owner.
    fn build(one_way: Duration) -> io::Result<Self> {
        let count = MADE.fetch_add(1, Ordering::Relaxed);
        let namespace = Namespace::add(count)?;
        let (subnet, near_device) = Subnet::claim(count)?;
        let far_device = namespace.open_tun(&subnet.device())?;
        configure(&[], subnet, 1)?;
        configure(&["-n", &namespace.name], subnet, 2)?;

        let mut distance = Self {
            subnet,
            state: Arc::default(),
            threads: Vec::new(),
            namespace,
        };
        let (here, there) = (Arc::new(near_device), Arc::new(far_device));
        distance.join_devices(&here, &there, one_way)?;
        distance.join_devices(&there, &here, one_way)?;
        Ok(distance)
    }

    /// Starts the two threads that carry packets from one device to the other.
    fn join_devices(
        &mut self,
        from: &Arc<File>,
        to: &Arc<File>,
        one_way: Duration,
    ) -> io::Result<()> {
        let (sender, receiver) = sync_channel(UNDER_WAY);
        let (device, state) = (Arc::clone(from), Arc::clone(&self.state));
        self.start("distance-read", move || {
            take_packets(&device, &sender, one_way, &state);
        })?;
        let (device, state) = (Arc::clone(to), Arc::clone(&self.state));
        self.start("distance-write", move || {
            deliver_packets(&device, &receiver, &state);
        })
    }

    /// Starts a thread that is waited for when this is dropped.
    fn start(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // Writers wait parked for a packet to be due, which may be long from now.
            thread.thread().unpark();
            // A panic in there has been printed already, and one more while the test may be
            // panicking itself would abort the process and leave the namespace behind.
            drop(thread.join());
        }
    }
}

/// What the threads share with their owner.
#[derive(Default)]
struct State {
    stop: AtomicBool,
    dropped: AtomicU64,
}

impl State {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn count_drop(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// A packet under way, and when it is to arrive.
struct Packet {
    due: Instant,
    bytes: Box<[u8]>,
}

/// Takes packets off the device and sends them on their way, until told to stop.
fn take_packets(
    mut device: &File,
    under_way: &SyncSender<Packet>,
    one_way: Duration,
    state: &State,
) {
    let mut buffer = [0; MTU];
    while !state.stopped() {
        match device.read(&mut buffer) {
            Ok(length) => {
                let packet = Packet {
                    due: Instant::now() + one_way,
                    bytes: buffer[..length].into(),
                };
                // Never wait here: as on a real link, what does not fit is lost.
                if under_way.try_send(packet).is_err() {
                    state.count_drop();
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                sys::wait_readable(device, STOP_CHECK);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Seen when the device was deleted or set down from outside. The test will fail by
            // its own time limits; this tells why.
            Err(error) => {
                eprintln!("distance: reading packets ended: {error}");
                return;
            }
        }
    }
}

/// Hands packets to the device as they become due, until told to stop or until nobody sends any
/// more. Those that became due during the wait for an earlier one follow it without a pause.
fn deliver_packets(mut device: &File, under_way: &Receiver<Packet>, state: &State) {
    for packet in under_way {
        wait_until(packet.due, state);
        if state.stopped() {
            return;
        }
        if device.write(&packet.bytes).is_err() {
            state.count_drop();
        }
    }
}

/// Sleeps until `due`, or until woken to stop.
fn wait_until(due: Instant, state: &State) {
    while !state.stopped() {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

/// The four addresses `10.x.y.0/30` that the two ends share, by the number that x and y come
/// from.
#[derive(Clone, Copy)]
struct Subnet(u32);

impl Subnet {
    /// Finds a subnet that no other `Distance` uses and makes the device for this end of it.
    ///
    /// The device's name tells the subnet and the kernel gives a name to one only, so having
    /// made the device is owning the subnet, also against tests in other processes.
    fn claim(count: u32) -> io::Result<(Self, File)> {
        // The factor keeps processes of neighbouring pids, as test runners start them, apart.
        let first = std::process::id().wrapping_mul(8).wrapping_add(count);
        for attempt in 0..SUBNET_ATTEMPTS {
            let subnet = Self(first.wrapping_add(attempt) % SUBNETS);
            match open_tun(&subnet.device()) {
                Ok(device) => return Ok((subnet, device)),
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("no free subnet found"))
    }

    /// The address of the given host in this subnet.
    fn address(self, host: u8) -> Ipv4Addr {
        let base = u32::from(Ipv4Addr::new(10, 128, 0, 0));
        Ipv4Addr::from(base + (self.0 << 8) + u32::from(host))
    }

    /// The name of the devices at both ends.
    fn device(self) -> String {
        let [_, x, y, _] = self.address(0).octets();
        format!("distance{x}-{y}")
    }
}

/// A named network namespace, deleted on drop.
struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes the namespace with the given number within this process.
    fn add(count: u32) -> io::Result<Self> {
        let name = format!("distance-{}-{count}", std::process::id());
        let path = Path::new("/run/netns").join(&name);
        // The name can only come from an earlier process of the same pid that was killed
        // outright, so nobody is using it.
        if path.exists() {
            ip(&["netns", "del", &name])?;
        }
        ip(&["netns", "add", &name])?;
        match File::open(&path).and_then(|file| ip_up_loopback(&name).map(|()| file)) {
            Ok(file) => Ok(Self { name, file }),
            Err(error) => {
                delete_namespace(&name);
                Err(error)
            }
        }
    }

    /// Moves the calling thread into this namespace.
    fn enter(&self) -> io::Result<()> {
        sys::enter_network_namespace(&self.file)
    }

    /// Makes a TUN device in this namespace. It belongs to where its maker is, so that is done
    /// by a thread of its own, which spares the caller from having to find its way back.
    fn open_tun(&self, device: &str) -> io::Result<File> {
        thread::scope(|scope| {
            thread::Builder::new()
                .spawn_scoped(scope, || {
                    self.enter()?;
                    open_tun(device)
                })?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete_namespace(&self.name);
    }
}

/// Deletes a namespace. A failure is only told: this runs while tests are unwinding, and there
/// is nothing else to be done about it.
fn delete_namespace(name: &str) {
    if let Err(error) = ip(&["netns", "del", name]) {
        eprintln!("distance: {error}");
    }
}

/// Sets up the loopback device of a namespace, which starts its life down.
fn ip_up_loopback(namespace: &str) -> io::Result<()> {
    ip(&["-n", namespace, "link", "set", "dev", "lo", "up"])
}

/// Gives the device at one end its address and sets it up. `place` are the options that make
/// `ip` work in that end's namespace.
fn configure(place: &[&str], subnet: Subnet, host: u8) -> io::Result<()> {
    let device = subnet.device();
    let address = format!("{}/30", subnet.address(host));
    let (mtu, queue) = (MTU.to_string(), DEVICE_QUEUE.to_string());
    let add = ["address", "add", &address, "dev", &device];
    let link = ["link", "set", "dev", &device, "mtu", &mtu];
    let queue_and_up = ["txqueuelen", &queue, "up"];
    ip(&[place, &add].concat())?;
    ip(&[place, &link, &queue_and_up].concat())
}

/// Runs `ip` with the given arguments.
fn ip(arguments: &[&str]) -> io::Result<()> {
    let command = || format!("ip {}", arguments.join(" "));
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", command())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", command(), said.trim())))
}

/// Makes a TUN device in the calling thread's namespace, which lasts until the file is closed.
fn open_tun(device: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        // Readers have to look whether they are to stop, so must not hang in a read.
        .custom_flags(O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| io::Error::new(error.kind(), format!("/dev/net/tun: {error}")))?;
    sys::make_tun(&file, device)
        .map_err(|error| io::Error::new(error.kind(), format!("TUN device {device}: {error}")))?;
    Ok(file)
}

/// The system calls that the standard library has no function for.
#[allow(
    unsafe_code,
    reason = "the calls have no safe form in the standard library"
)]
mod sys {
    use std::ffi::{c_int, c_short, c_ulong};
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    const TUNSETIFF: c_ulong = 0x4004_54ca;
    /// Packets of the IP layer, without Ethernet headers.
    const IFF_TUN: u16 = 0x0001;
    /// No header of the driver's own before each packet.
    const IFF_NO_PI: u16 = 0x1000;
    /// Fail if there is a device of that name, instead of attaching to it.
    const IFF_TUN_EXCL: u16 = 0x8000;
    const CLONE_NEWNET: c_int = 0x4000_0000;
    const POLLIN: c_short = 0x0001;
    /// Length of a device name with the zero that ends it.
    const NAME_LENGTH: usize = 16;

    /// `struct ifreq`, with the one member of its union that matters here.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; NAME_LENGTH],
        flags: u16,
        rest_of_union: [u8; 22],
    }

    /// `struct pollfd`.
    #[repr(C)]
    struct PollFd {
        fd: c_int,
        events: c_short,
        revents: c_short,
    }

    unsafe extern "C" {
        fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
        fn setns(fd: c_int, kind: c_int) -> c_int;
        fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    }

    /// Makes a freshly opened `/dev/net/tun` a device of the given name.
    pub(super) fn make_tun(file: &File, device: &str) -> io::Result<()> {
        let mut request = InterfaceRequest {
            name: [0; NAME_LENGTH],
            flags: IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL,
            rest_of_union: [0; 22],
        };
        if device.len() >= NAME_LENGTH {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        request.name[..device.len()].copy_from_slice(device.as_bytes());
        // SAFETY: the request has the layout and size of `struct ifreq`, which is what
        // TUNSETIFF reads and writes, and outlives the call; the descriptor is open.
        let result = unsafe { ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        check(result)
    }

    /// Moves the calling thread into the network namespace that the file stands for.
    pub(super) fn enter_network_namespace(file: &File) -> io::Result<()> {
        // SAFETY: takes two integers, and touches no memory of the process.
        check(unsafe { setns(file.as_raw_fd(), CLONE_NEWNET) })
    }

    /// Waits until there is something to read, but no longer than `limit`. An error is taken for
    /// the end of the wait: the read that follows will meet it too.
    pub(super) fn wait_readable(file: &File, limit: Duration) {
        let mut entry = PollFd {
            fd: file.as_raw_fd(),
            events: POLLIN,
            revents: 0,
        };
        let milliseconds = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the pointer is to one entry of `struct pollfd`'s layout, as the count says,
        // and the entry outlives the call.
        unsafe { poll(&raw mut entry, 1, milliseconds) };
    }

    /// The error of the last call, if its result says that there was one.
    fn check(result: c_int) -> io::Result<()> {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
