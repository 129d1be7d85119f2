//! Xray and its files.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Finding;
use super::daemon::Running;
use super::symptoms::{
    ASSETS_ARE_MISSING, ASSETS_ARE_OLD, XRAY_DOES_NOT_RUN, XRAY_IS_MISSING, XRAY_LACKS_A_FEATURE,
};
use crate::settings::Settings;
use crate::xray::core::Launcher;
use crate::xray::logs::Logs;
use crate::xray::version::Version;

/// Lists of addresses change every few days; after so long they are wrong in many places.
const OLD: Duration = Duration::from_secs(180 * 86_400);

pub(super) async fn look(settings: &Settings, _: Option<&Running>) -> Vec<Finding> {
    let parts = settings.core.parts();
    let binary = parts.binary.display().to_string();
    let geo_files = parts.assets.clone();
    let mut findings = Vec::new();
    if let Err(error) = std::fs::metadata(&parts.binary)
        && error.kind() == io::ErrorKind::NotFound
    {
        let found = format!("{binary} is not there");
        findings.push(Finding::ill(&XRAY_IS_MISSING, found, &binary));
    } else {
        let runtime_dir = settings.runtime_dir.clone();
        let logs = Arc::new(Logs::new(1));
        let launcher = Launcher::new(parts, runtime_dir, logs).as_the_owner_of(&settings.state_dir);
        match launcher.version().await {
            Ok(version) => {
                let found = format!("{binary} is Xray {version}");
                findings.push(Finding::well("xray", found));
                findings.extend(lacks(version));
            }
            Err(error) => {
                findings.push(Finding::ill(&XRAY_DOES_NOT_RUN, error.to_string(), &binary));
            }
        }
    }
    findings.push(assets(&geo_files));
    findings
}

fn lacks(version: Version) -> Vec<Finding> {
    let lacks = version.lacks();
    lacks
        .map(|lack| {
            let found = format!(
                "Xray {version} is older than {}: {}",
                lack.since, lack.costs
            );
            Finding::ill(&XRAY_LACKS_A_FEATURE, found, "")
        })
        .collect()
}

fn assets(folder: &std::path::Path) -> Finding {
    let shown = folder.display().to_string();
    let mut oldest = Duration::ZERO;
    for name in ["geoip.dat", "geosite.dat"] {
        let Ok(file) = std::fs::metadata(folder.join(name)) else {
            let found = format!("{shown} has no {name}");
            return Finding::ill(&ASSETS_ARE_MISSING, found, &shown);
        };
        let changed = file.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let age = SystemTime::now().duration_since(changed);
        oldest = oldest.max(age.unwrap_or_default());
    }
    let found = format!("{shown}, {} days old", oldest.as_secs() / 86_400);
    if oldest > OLD {
        Finding::ill(&ASSETS_ARE_OLD, found, &shown)
    } else {
        Finding::well("assets", found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_lacks_is_told_with_what_it_costs() {
        assert!(lacks(Version::new(26, 10, 10)).is_empty());
        let old = lacks(Version::new(25, 6, 8));
        assert!(old.len() >= 4, "{old:?}");
        assert_eq!(old[0].symptom, Some(&XRAY_LACKS_A_FEATURE));
    }

    #[test]
    fn geo_files_are_there_and_fresh() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(assets(folder.path()).symptom, Some(&ASSETS_ARE_MISSING));
        for name in ["geoip.dat", "geosite.dat"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(assets(folder.path()).symptom, None);
        let file = std::fs::File::open(folder.path().join("geoip.dat")).unwrap();
        file.set_modified(SystemTime::now() - 2 * OLD).unwrap();
        assert_eq!(assets(folder.path()).symptom, Some(&ASSETS_ARE_OLD));
    }
}
