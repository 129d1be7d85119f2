//! The machine's load: memory, processors, network.

mod capabilities;
mod cgroup;
mod process;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sysinfo::{Networks, System};
use tokio::task::JoinSet;

pub use self::capabilities::take_up_capabilities;
pub use self::process::Process;

/// How often the load is measured while it is watched.
const INTERVAL: Duration = Duration::from_secs(2);

/// Takes as many open files as the system allows: every connection is one, and the usual 1024 are
/// fewer than the connections that panels and strangers may have.
pub fn allow_many_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of open files stays as it was");
    }
}

/// Bytes of memory that another process could have: of the machine, and within the limit of the control
/// group. `None` where nobody knows.
#[must_use]
pub fn memory_to_spare() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let machine = system.available_memory();
    let group = cgroup::Memory::of_this_process();
    let group = group.map(|group| group.limit.saturating_sub(group.used));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// Bytes of memory that there are at all, by the same measure.
#[must_use]
pub fn memory() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let machine = system.total_memory();
    let group = cgroup::Memory::of_this_process().map(|group| group.limit);
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// One measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes of memory that are taken and can't be had back by dropping caches.
    pub memory_used: u64,
    /// Logical processors.
    pub processors: u64,
    /// Percent of all processors together, 0 to 100.
    pub processor_usage: f64,
    /// Bytes per second that came in over the real interfaces.
    pub received_per_second: u64,
    /// Bytes per second that went out over the real interfaces.
    pub sent_per_second: u64,
}

/// Measures in the background and answers from the last measurement.
#[derive(Debug, Default)]
pub struct Host {
    sample: std::sync::Arc<ArcSwap<Sample>>,
    watcher: Mutex<JoinSet<()>>,
}

impl Host {
    /// Nothing measured yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The last measurement; zeros until there is one.
    #[must_use]
    pub fn sample(&self) -> Sample {
        **self.sample.load()
    }

    /// Measures from now on; a second call changes nothing.
    pub fn watch(&self) {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if !watcher.is_empty() {
            return;
        }
        let sample = std::sync::Arc::clone(&self.sample);
        watcher.spawn(async move {
            let (Ok(mut system), Ok(mut networks)) = (System::new(), Networks::new()) else {
                tracing::warn!("the load of this machine can't be read, system stats stay at zero");
                return;
            };
            let mut traffic = Counters::read(&mut networks);
            system.refresh_cpu_usage();
            // The first answer should not be a zero for long.
            let mut pause = sysinfo::MINIMUM_CPU_UPDATE_INTERVAL;
            loop {
                tokio::time::sleep(pause).await;
                pause = INTERVAL;
                system.refresh_cpu_usage();
                system.refresh_memory();
                let now = Counters::read(&mut networks);
                let (received_per_second, sent_per_second) = now.rate_since(&traffic);
                traffic = now;
                sample.store(std::sync::Arc::new(Sample {
                    memory_total: system.total_memory(),
                    memory_used: system.used_memory(),
                    processors: system.cpus().len() as u64,
                    processor_usage: f64::from(system.global_cpu_usage()),
                    received_per_second,
                    sent_per_second,
                }));
            }
        });
    }
}

/// The addresses of this machine's interfaces that others can use: neither loopback nor link-local.
#[must_use]
pub fn addresses() -> Vec<IpAddr> {
    let Ok(networks) = Networks::new_with_refreshed_list() else {
        return Vec::new();
    };
    let mut addresses: Vec<IpAddr> = networks
        .values()
        .flat_map(sysinfo::NetworkData::ip_networks)
        .map(|network| network.addr)
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Bytes so far, by interface.
struct Counters {
    at: Instant,
    bytes: BTreeMap<String, (u64, u64)>,
}

impl Counters {
    fn read(networks: &mut Networks) -> Self {
        networks.refresh(true);
        let all: Vec<(String, (u64, u64))> = networks
            .iter()
            .map(|(name, data)| {
                (
                    name.to_string_lossy().into_owned(),
                    (data.total_received(), data.total_transmitted()),
                )
            })
            .collect();
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        let real = real_interfaces(&names, |name| {
            Path::new("/sys/class/net")
                .join(name)
                .join("device")
                .exists()
        });
        let bytes = all
            .iter()
            .filter(|(name, _)| real.contains(&name.as_str()))
            .cloned()
            .collect();
        Self {
            at: Instant::now(),
            bytes,
        }
    }

    /// An interface that is new or whose counters began anew counts for nothing this time.
    fn rate_since(&self, earlier: &Self) -> (u64, u64) {
        let seconds = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        if seconds <= 0.0 {
            return (0, 0);
        }
        let (mut received, mut sent) = (0_u64, 0_u64);
        for (name, (now_in, now_out)) in &self.bytes {
            if let Some((then_in, then_out)) = earlier.bytes.get(name) {
                received += now_in.saturating_sub(*then_in);
                sent += now_out.saturating_sub(*then_out);
            }
        }
        (per_second(received, seconds), per_second(sent, seconds))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rate needs no more digits than a float has"
)]
fn per_second(bytes: u64, seconds: f64) -> u64 {
    (bytes as f64 / seconds) as u64
}

/// Interfaces with a device behind them. A bridge, a tunnel or a container's end of a pair would
/// count the same bytes again. Inside a container nothing has a device: there every interface but
/// the loopback counts.
fn real_interfaces<'a>(names: &[&'a str], has_device: impl Fn(&str) -> bool) -> Vec<&'a str> {
    let real: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| has_device(name))
        .collect();
    if real.is_empty() {
        names.iter().copied().filter(|name| *name != "lo").collect()
    } else {
        real
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(at: Instant, bytes: &[(&str, u64, u64)]) -> Counters {
        let bytes = bytes
            .iter()
            .map(|(name, i, o)| ((*name).to_owned(), (*i, *o)))
            .collect();
        Counters { at, bytes }
    }

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let start = Instant::now();
        let before = counters(start, &[("eth0", 1000, 5000), ("eth1", 10, 10)]);
        let after = counters(
            start + Duration::from_secs(2),
            &[
                ("eth0", 3000, 9000),
                ("eth1", 0, 0),
                ("eth2", 1 << 40, 1 << 40),
            ],
        );
        assert_eq!(after.rate_since(&before), (1000, 2000));
        assert_eq!(after.rate_since(&after), (0, 0));
    }

    #[test]
    fn bytes_are_not_counted_twice() {
        let names = ["lo", "eth0", "docker0", "veth12"];
        assert_eq!(real_interfaces(&names, |name| name == "eth0"), ["eth0"]);
        assert_eq!(real_interfaces(&["lo", "eth0"], |_| false), ["eth0"]);
    }
}
