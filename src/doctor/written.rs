//! The settings: what nobody reads, and what is written and not in force yet.

use std::path::Path;

use uuid::Uuid;

use super::Finding;
use super::daemon::Running;
use super::symptoms::{SETTING_IS_NOT_IN_FORCE, SETTING_IS_UNKNOWN, SETTINGS_ARE_ANOTHER_NODES};
use crate::proto::raynode::v1::{GetSettingsResponse, Setting};
use crate::settings::{Effective, Sources};

pub(super) fn look(running: Option<&Running>) -> Vec<Finding> {
    let sources = Sources::found();
    let file = sources.absolute_file();
    let file = file.display();
    let mut findings = vec![Finding::well("settings", "every one of them makes sense")];
    for name in sources.unknown() {
        let found = format!("{name} in {file} is the name of no setting");
        findings.push(Finding::ill(&SETTING_IS_UNKNOWN, found, ""));
    }
    match running.map(|running| written_since(&running.settings, &sources)) {
        Some(Written::Since(changed)) => {
            for Changed { name, value, mend } in changed {
                let found = format!("{name} is {value} in {file}");
                findings.push(Finding {
                    mend: mend.to_owned(),
                    ..Finding::ill(&SETTING_IS_NOT_IN_FORCE, found, "")
                });
            }
        }
        Some(Written::Elsewhere(its)) => {
            let found = format!("the daemon reads {its}, and this command {file}");
            findings.push(Finding::ill(&SETTINGS_ARE_ANOTHER_NODES, found, &its));
        }
        None => {}
    }
    findings
}

/// What a daemon will find when it reads its settings again.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// What is another value than the one in force.
    Since(Vec<Changed>),
    /// It reads another file than this command.
    Elsewhere(String),
}

/// A setting that was changed in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// Which.
    pub name: String,
    /// Its value there, as it may be shown.
    pub value: String,
    /// The command that takes it over.
    pub mend: &'static str,
}

fn is_the_same_file(ours: &Path, its: &Path) -> bool {
    ours == its || matches!((ours.canonicalize(), its.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// What was written since the daemon read its settings. What somebody's own environment says is not the daemon's.
#[must_use]
pub fn written_since(in_force: &GetSettingsResponse, sources: &Sources) -> Written {
    if !is_the_same_file(&sources.absolute_file(), Path::new(&in_force.file)) {
        return Written::Elsewhere(in_force.file.clone());
    }
    let salt = Uuid::try_parse(&in_force.salt).unwrap_or_default();
    let written = Effective::all(sources, salt).into_iter();
    let written: Vec<Setting> = written.map(Setting::from).collect();
    Written::Since(changed(&in_force.settings, written))
}

/// Whether this command finds the values of these that the daemon runs with: in another environment it does not.
pub(super) fn are_seen_alike(in_force: &GetSettingsResponse, names: &[&str]) -> bool {
    let salt = Uuid::try_parse(&in_force.salt).unwrap_or_default();
    let seen = Effective::all(&Sources::found(), salt);
    let is_seen = |name: &&str| {
        let its = in_force.settings.iter().find(|one| one.name == *name);
        let ours = seen.iter().find(|one| one.name == *name);
        its.map(|one| &one.digest) == ours.map(|one| &one.digest)
    };
    names.iter().all(is_seen)
}

fn changed(in_force: &[Setting], written: Vec<Setting>) -> Vec<Changed> {
    let pairs = in_force.iter().zip(written);
    let pairs = pairs.filter(|(now, next)| {
        let is_told = |one: &Setting| one.from != "environment";
        now.name == next.name && now.digest != next.digest && is_told(now) && is_told(next)
    });
    let changed = pairs.map(|(now, next)| Changed {
        name: next.name,
        value: next.value,
        mend: if now.live {
            "raynode reload"
        } else {
            "raynode restart"
        },
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(value: &str, from: &str, live: bool) -> Setting {
        Setting {
            name: "STOP_GRACE".to_owned(),
            value: "(hidden)".to_owned(),
            digest: value.to_owned(),
            from: from.to_owned(),
            live,
        }
    }

    #[test]
    fn what_was_written_since_waits_for_the_right_command() {
        let found = |now: Setting, next: Setting| {
            let found = changed(&[now], vec![next]).into_iter();
            found.map(|one| one.mend).collect::<Vec<_>>()
        };
        let file = |value, live| setting(value, "raynode.env", live);
        assert_eq!(found(file("5s", true), file("5s", true)), [""; 0]);
        assert_eq!(
            found(file("5s", true), file("9s", true)),
            ["raynode reload"]
        );
        assert_eq!(
            found(setting("90s", "default", false), file("9s", false)),
            ["raynode restart"]
        );
        let mine = setting("9s", "environment", true);
        assert_eq!(found(file("5s", true), mine.clone()), [""; 0]);
        assert_eq!(found(mine, file("5s", true)), [""; 0]);
    }
}
