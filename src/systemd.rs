//! What systemd knows and tells: whether it is about to start us again.

use std::process::Stdio;
use std::time::Duration;

/// How long systemd may take to say what it is doing.
const DEADLINE: Duration = Duration::from_secs(2);

/// Whether the end that is asked of us is the first half of a restart: by hand, or by a package that
/// is upgraded. `systemctl stop` and a shutdown of the machine are not.
pub async fn is_restarting_us() -> bool {
    let Some(unit) = own_unit() else {
        return false;
    };
    let jobs = tokio::process::Command::new("systemctl")
        .args([
            "list-jobs",
            "--no-legend",
            "--plain",
            "--no-pager",
            "--full",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(DEADLINE, jobs).await {
        Ok(Ok(output)) => has_restart(&String::from_utf8_lossy(&output.stdout), &unit),
        Ok(Err(error)) => {
            tracing::warn!(%error, "systemctl can't be asked whether this is a restart, so the core is stopped");
            false
        }
        Err(_) => {
            tracing::warn!(
                "systemctl does not say whether this is a restart, so the core is stopped"
            );
            false
        }
    }
}

/// The service that this process is, when systemd has started it.
fn own_unit() -> Option<String> {
    std::env::var_os("INVOCATION_ID")?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    unit_of(&groups)
}

/// The innermost service in a `/proc/PID/cgroup`, of either version of control groups.
fn unit_of(groups: &str) -> Option<String> {
    let paths = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        (controllers.is_empty() || controllers == "name=systemd").then(|| fields.next())?
    });
    paths
        .flat_map(|path| path.split('/').rev())
        .find(|part| part.ends_with(".service"))
        .map(str::to_owned)
}

/// Whether `systemctl list-jobs` has a restart of this unit: number, unit, type, state.
fn has_restart(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|job| {
        let mut words = job.split_whitespace().skip(1);
        words.next() == Some(unit) && words.next() == Some("restart")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_read_from_both_kinds_of_control_groups() {
        let unified = "0::/system.slice/raynode.service\n";
        assert_eq!(unit_of(unified).as_deref(), Some("raynode.service"));
        let both = "12:pids:/system.slice/other.service\n1:name=systemd:/system.slice/raynode@a.service\n0::/\n";
        assert_eq!(unit_of(both).as_deref(), Some("raynode@a.service"));
        assert_eq!(unit_of("0::/user.slice/session-1.scope\n"), None);
    }

    #[test]
    fn only_a_restart_of_ours_is_one() {
        let jobs = "123 raynode.service restart running\n124 nginx.service restart waiting\n";
        assert!(has_restart(jobs, "raynode.service"));
        assert!(!has_restart(jobs, "raynode2.service"));
        assert!(!has_restart(
            "9 raynode.service stop running\n",
            "raynode.service"
        ));
        assert!(!has_restart("", "raynode.service"));
    }
}
