//! What systemd is about to do with this unit.

use std::process::Stdio;
use std::time::Duration;

/// How long systemd may take to say what it is doing.
const DEADLINE: Duration = Duration::from_secs(2);

/// Whether the end that is asked of us is the first half of a restart: by hand, or by a package that
/// is upgraded. `systemctl stop` and a shutdown of the machine are not.
pub async fn is_restarting_us() -> bool {
    job().await.as_deref() == Some("restart")
}

/// Whether this unit is being stopped for good: by hand, or because the machine is shut down. An end that
/// nobody asked for is none.
pub async fn is_stopping_us() -> bool {
    job().await.as_deref() == Some("stop")
}

/// The job that systemd has for this unit; `None` for none, and where systemd does not tell.
async fn job() -> Option<String> {
    let unit = own_unit()?;
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
        Ok(Ok(output)) if output.status.success() => {
            job_of(&String::from_utf8_lossy(&output.stdout), &unit)
        }
        Ok(Ok(output)) => {
            tracing::warn!(status = %output.status, "systemctl does not say whether this is a restart, so it is taken for none; is D-Bus there?");
            None
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "systemctl can't be asked whether this is a restart, so it is taken for none");
            None
        }
        Err(_) => {
            tracing::warn!(
                "systemctl does not say in time whether this is a restart, so it is taken for none"
            );
            None
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

/// The type of this unit's job in `systemctl list-jobs`: number, unit, type, state.
fn job_of(jobs: &str, unit: &str) -> Option<String> {
    let mut jobs = jobs.lines().map(|job| {
        let mut words = job.split_whitespace().skip(1);
        (words.next(), words.next())
    });
    let (_, kind) = jobs.find(|(of, _)| *of == Some(unit))?;
    kind.map(str::to_owned)
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
    fn a_job_of_ours_is_told_from_those_of_others() {
        let jobs = "123 raynode.service restart running\n124 nginx.service stop waiting\n";
        let job = |unit| job_of(jobs, unit);
        assert_eq!(job("raynode.service").as_deref(), Some("restart"));
        assert_eq!(job("nginx.service").as_deref(), Some("stop"));
        assert_eq!(job("raynode2.service"), None);
        assert_eq!(job_of("", "raynode.service"), None);
        assert_eq!(job_of("9 raynode.service\n", "raynode.service"), None);
    }
}
