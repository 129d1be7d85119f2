//! Key and certificate.

use std::net::IpAddr;
use std::time::SystemTime;

use super::Finding;
use super::daemon::Running;
use super::folders::not_looked_at;
use super::symptoms::{
    CERTIFICATE_DOES_NOT_NAME_US, CERTIFICATE_ENDS_SOON, CERTIFICATE_HAS_ENDED,
    CERTIFICATE_IS_MISSING, CERTIFICATE_IS_UNUSABLE, KEY_IS_UNREADABLE,
};
use crate::host;
use crate::identity::{self, Shown};
use crate::settings::Settings;

const A_DAY: i64 = 86_400;
/// So early it is time to think of the next one.
const SOON: i64 = 30 * A_DAY;

pub(super) fn look(settings: &Settings, running: Option<&Running>) -> Vec<Finding> {
    let mut findings = vec![key(settings)];
    findings.extend(keys_file(settings));
    findings.extend(certificate(settings, running));
    findings
}

fn key(settings: &Settings) -> Finding {
    if settings.api_key.is_some() {
        return Finding::well("key", "API_KEY is set");
    }
    let path = settings.state_dir.join("identity");
    let shown = path.display().to_string();
    if let Some(closed) = not_looked_at("key", &path, settings) {
        return closed;
    }
    if !path.exists() {
        return Finding::well("key", "one is made at the first start");
    }
    // It is there, so none is made.
    match identity::api_key(&settings.state_dir) {
        Ok(_) => Finding::well("key", format!("{shown} has it")),
        Err(error) => Finding::ill(&KEY_IS_UNREADABLE, error.to_string(), &shown),
    }
}

fn keys_file(settings: &Settings) -> Option<Finding> {
    let path = settings.api_keys_file.as_ref()?;
    if let Some(closed) = not_looked_at("key", path, settings) {
        return Some(closed);
    }
    let error = identity::keys_file(path).err()?;
    let shown = path.display().to_string();
    Some(Finding::ill(&KEY_IS_UNREADABLE, error.to_string(), &shown))
}

fn certificate(settings: &Settings, running: Option<&Running>) -> Vec<Finding> {
    let (path, key) = (&settings.certificate, &settings.certificate_key);
    let shown = path.display().to_string();
    let closed = |path| not_looked_at("certificate", path, settings);
    if let Some(closed) = closed(path).or_else(|| closed(key)) {
        return vec![closed];
    }
    if !path.exists() && !key.exists() {
        let found = format!("{shown} is not there");
        return vec![Finding::ill(&CERTIFICATE_IS_MISSING, found, "")];
    }
    let unusable = |reason: String| vec![Finding::ill(&CERTIFICATE_IS_UNUSABLE, reason, &shown)];
    let pair = match identity::load_certificate(path, key) {
        Ok(pair) => pair,
        Err(error) => return unusable(error.to_string()),
    };
    let Some(certificate) = pair.chain.first().and_then(Shown::of) else {
        return unusable(format!("{shown} can't be read"));
    };
    if let Err(error) = crate::panel::reload::Current::new(pair) {
        return unusable(format!("{shown} and its key: {error}"));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
    // What a daemon serves is what counts.
    let ends = running.map_or(certificate.ends, |running| running.status.certificate_ends);
    let mut findings = vec![end(ends, now)];
    let listening = settings.listen.ip();
    let reached_at = if listening.is_unspecified() {
        host::addresses()
    } else {
        vec![listening]
    };
    findings.extend(names(&certificate.names, &reached_at));
    findings
}

fn end(ends: i64, now: i64) -> Finding {
    let days = (ends - now) / A_DAY;
    if ends <= now {
        let found = format!("it ended {} days ago", -days);
        Finding::ill(&CERTIFICATE_HAS_ENDED, found, "")
    } else if ends - now < SOON {
        let found = format!("it ends in {days} days");
        Finding::ill(&CERTIFICATE_ENDS_SOON, found, "")
    } else {
        Finding::well("certificate", format!("it holds for {days} days"))
    }
}

/// With a name in it, the panel has one to connect to; otherwise it connects to an address.
fn names(names: &[String], addresses: &[IpAddr]) -> Option<Finding> {
    let is_name = |name: &&String| name.parse::<IpAddr>().is_err() && *name != "localhost";
    if names.iter().any(|name| is_name(&name)) {
        return None;
    }
    let is_named = |address: &&IpAddr| names.contains(&address.to_string());
    let missing: Vec<String> = addresses
        .iter()
        .filter(|address| !is_named(address))
        .map(ToString::to_string)
        .collect();
    (!missing.is_empty()).then(|| {
        let found = format!("it does not name {}", missing.join(", "));
        let wanted = missing.join(" --name ");
        Finding::ill(&CERTIFICATE_DOES_NOT_NAME_US, found, &wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(values: &[(&str, &str)]) -> Settings {
        let values: std::collections::HashMap<String, String> = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Settings::from_source(&move |name: &str| values.get(name).cloned()).unwrap()
    }

    #[test]
    fn the_end_of_a_certificate_is_seen_coming() {
        assert_eq!(end(1000 * A_DAY, 0).symptom, None);
        assert_eq!(end(29 * A_DAY, 0).symptom, Some(&CERTIFICATE_ENDS_SOON));
        assert_eq!(end(0, A_DAY).symptom, Some(&CERTIFICATE_HAS_ENDED));
    }

    #[test]
    fn an_address_that_is_not_named_is_found() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let list = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        assert_eq!(names(&list(&["localhost", "192.0.2.1"]), &[address]), None);
        assert_eq!(names(&list(&["node.example"]), &[address]), None);
        let found = names(&list(&["localhost", "127.0.0.1"]), &[address]).unwrap();
        assert_eq!(found.symptom, Some(&CERTIFICATE_DOES_NOT_NAME_US));
        assert!(found.mend.contains("--name 192.0.2.1"), "{}", found.mend);
    }

    #[test]
    fn keys_and_certificates_that_can_not_be_used_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let state_dir = state.to_str().unwrap();
        let keys = folder.path().join("keys");
        std::fs::write(&keys, "nonsense").unwrap();
        let fine = settings(&[("STATE_DIR", state_dir)]);
        assert_eq!(key(&fine).symptom, None);
        let found = certificate(&fine, None);
        assert_eq!(found[0].symptom, Some(&CERTIFICATE_IS_MISSING));

        let named = settings(&[("API_KEYS_FILE", keys.to_str().unwrap())]);
        let found = keys_file(&named).unwrap();
        assert_eq!(found.symptom, Some(&KEY_IS_UNREADABLE));
        std::fs::write(state.join("identity"), "nonsense").unwrap();
        assert_eq!(key(&fine).symptom, Some(&KEY_IS_UNREADABLE));

        let (pem, its_key) = (&fine.certificate, &fine.certificate_key);
        identity::certificate(pem, its_key, &[]).unwrap();
        assert_eq!(certificate(&fine, None)[0].symptom, None);
        std::fs::write(its_key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let found = certificate(&fine, None);
        assert_eq!(found[0].symptom, Some(&CERTIFICATE_IS_UNUSABLE));
        std::fs::write(pem, "nonsense").unwrap();
        let found = certificate(&fine, None);
        assert_eq!(found[0].symptom, Some(&CERTIFICATE_IS_UNUSABLE));
    }
}
