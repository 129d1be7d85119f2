//! The machine: clock, limits, kernel, capabilities.

use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use tokio::process::Command;

use super::Finding;
use super::daemon::Running;
use super::symptoms::{
    CLOCK_IS_NOT_KEPT, CLOCK_IS_WRONG, FEW_OPEN_FILES, KERNEL_IS_OLD, NO_BBR, NO_BIND_SERVICE,
    NO_NET_ADMIN, NO_SOCK_DESTROY, YAMA_FORBIDS,
};
use crate::xray::handover::destroy::Destroyer;
use crate::xray::handover::sockets::Connection;

/// No earlier moment is now: this program was written then (2026-11-01).
const WRITTEN: u64 = 1_793_491_200;
/// Fewer open files are few connections.
const FILES: u64 = 16_384;
/// The first kernel that lends a socket of another process (`pidfd_getfd`).
const LENDS_SOCKETS: (u32, u32) = (5, 6);
const DEADLINE: Duration = Duration::from_secs(2);

// Their numbers in capability.h.
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;

pub(super) async fn look(running: Option<&Running>) -> Vec<Finding> {
    // What counts is what the daemon may do, where one runs.
    let pid = running.map_or_else(
        || "self".to_owned(),
        |running| running.status.pid.to_string(),
    );
    let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let mut findings = vec![clock(SystemTime::now(), is_kept().await)];
    findings.push(files(&read(&format!("/proc/{pid}/limits"))));
    findings.extend(kernel(
        &read("/proc/sys/kernel/osrelease"),
        &read("/proc/sys/net/ipv4/tcp_congestion_control"),
        sock_destroy(),
    ));
    findings.extend(capabilities(
        &read(&format!("/proc/{pid}/status")),
        read("/proc/sys/kernel/yama/ptrace_scope").trim(),
    ));
    findings
}

/// Whether somebody keeps the clock right; `None` where nobody can be asked.
async fn is_kept() -> Option<bool> {
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, asked).await.ok()?.ok()?;
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn clock(now: SystemTime, is_kept: Option<bool>) -> Finding {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = now.unwrap_or_default().as_secs();
    if seconds < WRITTEN {
        let found = "it is before the day on which this program was written";
        return Finding::ill(&CLOCK_IS_WRONG, found, "");
    }
    match is_kept {
        Some(true) => Finding::well("clock", "it is kept right"),
        Some(false) => Finding::ill(&CLOCK_IS_NOT_KEPT, "nobody keeps it", ""),
        None => Finding::well("clock", "nobody can be asked whether it is kept right"),
    }
}

/// By a `/proc/PID/limits`.
fn files(limits: &str) -> Finding {
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4));
    let Some(hard) = hard else {
        return Finding::well("limits", "they can't be read");
    };
    let found = format!("{hard} open files");
    match hard.parse::<u64>() {
        Ok(count) if count < FILES => Finding::ill(&FEW_OPEN_FILES, found, ""),
        _ => Finding::well("limits", found),
    }
}

/// Whether the kernel ends connections when it is asked to: a connection that there is not is asked for.
fn sock_destroy() -> Result<(), i32> {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let connection = Connection {
        local: nobody,
        peer: nobody,
    };
    let asked = Destroyer::new().and_then(|destroyer| destroyer.destroy(&connection));
    asked.map_err(|error: io::Error| error.raw_os_error().unwrap_or_default())
}

fn kernel(release: &str, congestion: &str, sock_destroy: Result<(), i32>) -> Vec<Finding> {
    let (release, congestion) = (release.trim(), congestion.trim());
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    let mut findings = Vec::new();
    let found = format!("Linux {release}");
    findings.push(if version.is_some_and(|version| version < LENDS_SOCKETS) {
        Finding::ill(&KERNEL_IS_OLD, found, "")
    } else {
        Finding::well("kernel", found)
    });
    if congestion != "bbr" {
        let found = format!("congestion control is {congestion}");
        findings.push(Finding::ill(&NO_BBR, found, ""));
    }
    if sock_destroy == Err(libc::EOPNOTSUPP) {
        findings.push(Finding::ill(&NO_SOCK_DESTROY, "it has no SOCK_DESTROY", ""));
    }
    findings
}

/// By a `/proc/PID/status` and `kernel.yama.ptrace_scope`.
fn capabilities(status: &str, yama: &str) -> Vec<Finding> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let Some(effective) = effective else {
        return vec![Finding::well("capabilities", "they can't be read")];
    };
    let has = |number: u32| effective & (1 << number) != 0;
    let mut findings = Vec::new();
    if !has(NET_BIND_SERVICE) {
        let found = "CAP_NET_BIND_SERVICE is missing";
        findings.push(Finding::ill(&NO_BIND_SERVICE, found, ""));
    }
    if !has(NET_ADMIN) {
        let found = "CAP_NET_ADMIN is missing";
        findings.push(Finding::ill(&NO_NET_ADMIN, found, ""));
    }
    if !has(SYS_PTRACE) && !yama.is_empty() && yama != "0" {
        let found = format!("kernel.yama.ptrace_scope is {yama}");
        findings.push(Finding::ill(&YAMA_FORBIDS, found, ""));
    }
    if findings.is_empty() {
        let found = "all that core and node can use";
        findings.push(Finding::well("capabilities", found));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::symptoms::Symptom;

    fn symptoms(findings: &[Finding]) -> Vec<&'static Symptom> {
        findings.iter().filter_map(|one| one.symptom).collect()
    }

    #[test]
    fn a_clock_that_is_wrong_or_left_alone_is_found() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(WRITTEN + 1);
        assert_eq!(clock(now, Some(true)).symptom, None);
        assert_eq!(clock(now, None).symptom, None);
        assert_eq!(clock(now, Some(false)).symptom, Some(&CLOCK_IS_NOT_KEPT));
        let then = SystemTime::UNIX_EPOCH;
        assert_eq!(clock(then, Some(true)).symptom, Some(&CLOCK_IS_WRONG));
    }

    #[test]
    fn few_open_files_are_found() {
        let limits = |hard: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 {hard}               files\n"
            )
        };
        assert_eq!(files(&limits("65536")).symptom, None);
        assert_eq!(files(&limits("unlimited")).symptom, None);
        assert_eq!(files(&limits("4096")).symptom, Some(&FEW_OPEN_FILES));
        assert_eq!(files("").symptom, None);
    }

    #[test]
    fn kernels_are_told_apart() {
        assert!(symptoms(&kernel("6.1.0-20-amd64\n", "bbr\n", Ok(()))).is_empty());
        assert!(symptoms(&kernel("5.6.0", "bbr", Err(libc::EPERM))).is_empty());
        assert_eq!(
            symptoms(&kernel("5.4.0-200-generic", "cubic", Err(libc::EOPNOTSUPP))),
            [&KERNEL_IS_OLD, &NO_BBR, &NO_SOCK_DESTROY]
        );
    }

    #[test]
    fn capabilities_that_are_missing_are_found() {
        let all = "Name:\traynode\nCapEff:\t000001ffffffffff\n";
        assert!(symptoms(&capabilities(all, "1")).is_empty());
        let none = "CapEff:\t0000000000000000\n";
        assert_eq!(
            symptoms(&capabilities(none, "1")),
            [&NO_BIND_SERVICE, &NO_NET_ADMIN, &YAMA_FORBIDS]
        );
        assert_eq!(
            symptoms(&capabilities(none, "")),
            [&NO_BIND_SERVICE, &NO_NET_ADMIN]
        );
    }
}
