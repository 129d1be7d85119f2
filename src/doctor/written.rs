//! The settings: what nobody reads, and what is written and not in force yet.

use super::Finding;
use super::daemon::Running;
use super::symptoms::{SETTING_IS_NOT_IN_FORCE, SETTING_IS_UNKNOWN};
use crate::proto::raynode::v1::Setting;
use crate::settings::{Effective, Sources};

pub(super) fn look(running: Option<&Running>) -> Vec<Finding> {
    let sources = Sources::found();
    let file = sources.file().display();
    let mut findings = vec![Finding::well("settings", "every one of them makes sense")];
    for name in sources.unknown() {
        let found = format!("{name} in {file} is the name of no setting");
        findings.push(Finding::ill(&SETTING_IS_UNKNOWN, found, ""));
    }
    if let Some(running) = running {
        let written = Effective::all(&sources).into_iter().map(Setting::from);
        let written: Vec<Setting> = written.collect();
        for (name, value, mend) in waiting(&running.settings, &written) {
            findings.push(Finding {
                mend: mend.to_owned(),
                ..Finding::ill(
                    &SETTING_IS_NOT_IN_FORCE,
                    format!("{name} is {value} in {file}"),
                    "",
                )
            });
        }
    }
    findings
}

/// What was written to the file since: the name, the value, and the command that takes it over. What somebody's own
/// environment says is not the daemon's.
pub fn waiting<'a>(
    in_force: &'a [Setting],
    written: &'a [Setting],
) -> impl Iterator<Item = (&'a str, &'a str, &'static str)> {
    let pairs = in_force.iter().zip(written);
    let pairs = pairs.filter(|(now, next)| {
        let is_told = |one: &Setting| one.from != "environment";
        now.name == next.name && now.value != next.value && is_told(now) && is_told(next)
    });
    pairs.map(|(now, next)| {
        let mend = if now.live {
            "raynode reload"
        } else {
            "raynode restart"
        };
        (&*next.name, &*next.value, mend)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(value: &str, from: &str, live: bool) -> Setting {
        Setting {
            name: "STOP_GRACE".to_owned(),
            value: value.to_owned(),
            from: from.to_owned(),
            live,
        }
    }

    #[test]
    fn what_was_written_since_waits_for_the_right_command() {
        let found = |now: Setting, next: Setting| {
            let (now, next) = ([now], [next]);
            let found: Vec<_> = waiting(&now, &next).map(|(_, _, mend)| mend).collect();
            found
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
