//! This process, as the kernel sees it.

use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use sysinfo::System;

/// What it takes. What nobody may see is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Time of processors, in user and system mode.
    pub processor: Option<Duration>,
    /// Bytes of memory that it has.
    pub memory: Option<u64>,
    /// Bytes of memory that it has asked for.
    pub virtual_memory: Option<u64>,
    /// Files that it has open.
    pub files: Option<u64>,
    /// Files that it may have open.
    pub max_files: Option<u64>,
    /// When it began, Unix seconds.
    pub began: Option<f64>,
}

impl Process {
    /// This one, now.
    #[must_use]
    pub fn now() -> Self {
        let [virtual_memory, memory] = memory().map_or([None; 2], |bytes| bytes.map(Some));
        Self {
            processor: processor(),
            memory,
            virtual_memory,
            files: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|files| files.count() as u64),
            max_files: getrlimit(Resource::RLIMIT_NOFILE)
                .ok()
                .map(|(soft, _)| soft),
            began: began(),
        }
    }
}

fn processor() -> Option<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let times = [usage.user_time(), usage.system_time()];
    let micros = times.map(|time| 1_000_000 * time.tv_sec() + time.tv_usec());
    let micros = u64::try_from(micros.iter().sum::<i64>()).ok()?;
    Some(Duration::from_micros(micros))
}

/// Bytes of memory, virtual and resident: `proc_pid_statm(5)`.
fn memory() -> Option<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().map(str::parse::<u64>);
    let (virtual_memory, resident) = (pages.next()?.ok()?, pages.next()?.ok()?);
    let page = rustix::param::page_size() as u64;
    Some([virtual_memory, resident].map(|pages| pages * page))
}

/// The kernel notes it in ticks since the machine began: `proc_pid_stat(5)`.
#[expect(
    clippy::cast_precision_loss,
    reason = "a hundredth of a second is enough"
)]
fn began() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may have blanks and brackets; what counts stands behind it.
    let (_, behind) = stat.rsplit_once(") ")?;
    let ticks: u64 = behind.split(' ').nth(19)?.parse().ok()?;
    let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some(System::boot_time().ok()? as f64 + seconds)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn it_is_this_process() {
        let process = Process::now();
        assert!(process.processor.unwrap() > Duration::ZERO);
        let (resident, all) = (process.memory.unwrap(), process.virtual_memory.unwrap());
        assert!(resident > 1 << 20 && resident < all, "{resident} of {all}");
        let (open, most) = (process.files.unwrap(), process.max_files.unwrap());
        assert!(open > 2 && open < most, "{open} of {most}");
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - process.began.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age} s old");
    }
}
