//! The daemon: whether it answers, how fast, and what happened to it.

use std::time::Duration;

use super::Finding;
use super::symptoms::{
    ANOTHER_CORE_SERVES, CHANGE_WAS_REFUSED, CORE_GAVE_UP, CORE_IS_DOWN, CORE_IS_SILENT,
    CORE_WAS_RESTARTED, DAEMON_FAILS, DAEMON_HANGS, DAEMON_IS_DOWN, DAEMON_IS_SLOW,
    DAEMON_MAY_NOT_BE_ASKED, HANDOVER_WAS_PLAIN, RENEWAL_WAS_REFUSED, USAGE_IS_NOT_COLLECTED,
};
use super::written::are_seen_alike;
use crate::node::RENEWAL;
use crate::proto::raynode::v1::{Core, GetSettingsResponse, GetStatusResponse, Handovers, Phase};
use crate::settings::Settings;

/// So long a healthy daemon takes at most to tell what it does.
const SLOW: Duration = Duration::from_millis(500);
/// A panel that collects usage does so every few seconds or minutes.
const UNCOLLECTED: u64 = 6 * 3600;
/// A core that lives tells what it counts whenever it is asked.
const SILENT: Duration = Duration::from_secs(10);

/// Whoever was found where the daemon should be.
#[derive(Clone, Debug)]
pub enum Found {
    /// It answers.
    Running(Box<Running>),
    /// It is there, and does not answer; the number of its process.
    Hanging(i32),
    /// It answers with an error.
    Failing(String),
    /// We may not ask it.
    Closed,
    /// Nobody.
    Nobody,
}

impl Found {
    /// What it says of itself, where it answers.
    #[must_use]
    pub fn running(&self) -> Option<&Running> {
        match self {
            Self::Running(running) => Some(running),
            Self::Hanging(_) | Self::Failing(_) | Self::Closed | Self::Nobody => None,
        }
    }
}

/// A daemon that answers.
#[derive(Clone, Debug)]
pub struct Running {
    /// What it says of itself.
    pub status: GetStatusResponse,
    /// Its cores, the one that serves first.
    pub cores: Vec<Core>,
    /// How often one made way.
    pub handovers: Handovers,
    /// What it runs with.
    pub settings: GetSettingsResponse,
    /// How long it took to say that.
    pub latency: Duration,
}

pub(super) fn look(settings: &Settings, found: &Found) -> Vec<Finding> {
    let folder = settings.runtime_dir.display();
    let running = match found {
        Found::Running(running) => running,
        Found::Hanging(pid) => {
            let found = format!("the one in {folder}, pid {pid}, does not answer");
            return vec![Finding::ill(&DAEMON_HANGS, found, "")];
        }
        Found::Failing(reason) => {
            return vec![Finding::ill(&DAEMON_FAILS, reason.clone(), "")];
        }
        Found::Closed => {
            let found = format!("the one in {folder} may not be asked");
            return vec![Finding::ill(&DAEMON_MAY_NOT_BE_ASKED, found, "")];
        }
        Found::Nobody => {
            let found = format!("none answers in {folder}");
            return vec![Finding::ill(&DAEMON_IS_DOWN, found, "")];
        }
    };
    let mut findings = vec![answers(running)];
    findings.extend(phase(&running.status));
    findings.extend(silence(&running.status, settings));
    if are_seen_alike(&running.settings, &["XRAY_EXECUTABLE_PATH", "STATE_DIR"]) {
        findings.extend(another_core(&running.status, settings));
    }
    findings.extend(history(&running.status, &running.handovers));
    findings
}

fn answers(running: &Running) -> Finding {
    let (version, pid) = (&running.status.version, running.status.pid);
    let millis = running.latency.as_millis();
    let found = format!("raynode {version}, pid {pid}, answers in {millis} ms");
    if running.latency > SLOW {
        Finding::ill(&DAEMON_IS_SLOW, found, "")
    } else {
        Finding::well("daemon", found)
    }
}

fn phase(status: &GetStatusResponse) -> Option<Finding> {
    match status.phase() {
        Phase::GaveUp => Some(Finding::ill(&CORE_GAVE_UP, status.reason.clone(), "")),
        Phase::Down => {
            let next = status.next_seconds;
            let found = format!("the core is down, the next one starts in {next} s");
            Some(Finding::ill(&CORE_IS_DOWN, found, ""))
        }
        Phase::Idle | Phase::Serving | Phase::Lingering | Phase::Unspecified => None,
    }
}

fn silence(status: &GetStatusResponse, settings: &Settings) -> Option<Finding> {
    let silent = Duration::from_secs(status.silent_seconds);
    let found = format!("it has told nothing for {} s", silent.as_secs());
    (silent > SILENT + settings.usage.harvest_interval * 3)
        .then(|| Finding::ill(&CORE_IS_SILENT, found, ""))
}

/// Whether the one that serves is the one that is to.
fn another_core(status: &GetStatusResponse, settings: &Settings) -> Option<Finding> {
    let wanted = settings.core.parts().binary;
    let wanted = wanted.display().to_string();
    let found = format!("{} serves, and {wanted} is to", status.binary);
    (!status.binary.is_empty() && status.binary != wanted)
        .then(|| Finding::ill(&ANOTHER_CORE_SERVES, found, ""))
}

fn history(status: &GetStatusResponse, handovers: &Handovers) -> Vec<Finding> {
    let mut findings = Vec::new();
    let last = status.last_change.as_ref();
    if let Some(last) = last.filter(|last| !last.refused.is_empty()) {
        let reason = last.refused.lines().next().unwrap_or_default();
        let found = format!("{}, {} s ago: {reason}", last.what, last.seconds_ago);
        let symptom = if last.what == RENEWAL {
            &RENEWAL_WAS_REFUSED
        } else {
            &CHANGE_WAS_REFUSED
        };
        findings.push(Finding::ill(symptom, found, ""));
    }
    if handovers.restarts > 0 {
        let found = format!("{} times since the daemon started", handovers.restarts);
        findings.push(Finding::ill(&CORE_WAS_RESTARTED, found, ""));
    }
    if handovers.plain > 0 {
        let found = format!("{} of the hand-overs so far", handovers.plain);
        findings.push(Finding::ill(&HANDOVER_WAS_PLAIN, found, ""));
    }
    if status.oldest_pending_seconds > UNCOLLECTED {
        let hours = status.oldest_pending_seconds / 3600;
        let found = format!("the oldest waits for {hours} h");
        findings.push(Finding::ill(&USAGE_IS_NOT_COLLECTED, found, ""));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::raynode::v1::LastChange;

    #[test]
    fn what_happened_is_found() {
        let status = GetStatusResponse {
            phase: Phase::GaveUp.into(),
            last_change: Some(LastChange {
                refused: "no such protocol\nmore".to_owned(),
                ..LastChange::default()
            }),
            oldest_pending_seconds: UNCOLLECTED + 1,
            ..GetStatusResponse::default()
        };
        let handovers = Handovers {
            plain: 1,
            restarts: 2,
            ..Handovers::default()
        };
        let mut found = phase(&status).into_iter().collect::<Vec<_>>();
        found.extend(history(&status, &handovers));
        let symptoms: Vec<_> = found.iter().filter_map(|one| one.symptom).collect();
        assert_eq!(
            symptoms,
            [
                &CORE_GAVE_UP,
                &CHANGE_WAS_REFUSED,
                &CORE_WAS_RESTARTED,
                &HANDOVER_WAS_PLAIN,
                &USAGE_IS_NOT_COLLECTED
            ]
        );
        assert!(!found[1].found.contains("more"), "one line each");
        let down = GetStatusResponse {
            phase: Phase::Down.into(),
            ..GetStatusResponse::default()
        };
        assert_eq!(phase(&down).unwrap().symptom, Some(&CORE_IS_DOWN));
        assert_eq!(phase(&GetStatusResponse::default()), None);
        assert!(history(&GetStatusResponse::default(), &Handovers::default()).is_empty());
    }

    #[test]
    fn a_renewal_is_not_what_the_panel_wanted() {
        let refused = |what: &str| {
            let last = LastChange {
                what: what.to_owned(),
                refused: "no such file".to_owned(),
                ..LastChange::default()
            };
            let status = GetStatusResponse {
                last_change: Some(last),
                ..GetStatusResponse::default()
            };
            history(&status, &Handovers::default())[0].symptom
        };
        assert_eq!(refused(RENEWAL), Some(&RENEWAL_WAS_REFUSED));
        assert_eq!(refused("start"), Some(&CHANGE_WAS_REFUSED));
    }

    #[test]
    fn a_daemon_that_fails_is_no_daemon_that_is_down() {
        let source = |name: &str| (name == "API_KEY").then(|| uuid::Uuid::new_v4().to_string());
        let settings = Settings::from_source(&source).unwrap();
        let found = |found| look(&settings, &found)[0].symptom;
        let failing = Found::Failing("not implemented".to_owned());
        assert_eq!(found(failing), Some(&DAEMON_FAILS));
        assert_eq!(found(Found::Hanging(1)), Some(&DAEMON_HANGS));
        assert_eq!(found(Found::Closed), Some(&DAEMON_MAY_NOT_BE_ASKED));
        assert_eq!(found(Found::Nobody), Some(&DAEMON_IS_DOWN));
    }

    #[test]
    fn a_slow_daemon_is_found() {
        let running = |latency| Running {
            status: GetStatusResponse::default(),
            cores: Vec::new(),
            handovers: Handovers::default(),
            settings: GetSettingsResponse::default(),
            latency,
        };
        assert_eq!(answers(&running(SLOW)).symptom, None);
        let slow = answers(&running(2 * SLOW));
        assert_eq!(slow.symptom, Some(&DAEMON_IS_SLOW));
    }
}
