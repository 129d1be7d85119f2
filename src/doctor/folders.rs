//! Folders and files: there, ours, closed to others, with room.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::daemon::Running;
use super::symptoms::{
    DISK_IS_FULL, DISK_IS_NEARLY_FULL, FILE_IS_OPEN, FOLDER_IS_MISSING, FOLDER_IS_OPEN,
    FOLDER_IS_SOMEBODY_ELSES, NOT_LOOKED_AT,
};
use super::{Finding, Verdict};
use crate::settings::Settings;

const MIB: u64 = 1 << 20;
/// What the ledger takes to be made smaller.
const FULL: u64 = 20 * MIB;
const NEARLY_FULL: u64 = 512 * MIB;

pub(super) fn look(settings: &Settings, running: Option<&Running>) -> Vec<Finding> {
    // The user whom the folders have to belong to: the daemon's, where one runs.
    let user = running.and_then(|running| {
        let process = format!("/proc/{}", running.status.pid);
        Some(std::fs::metadata(process).ok()?.uid())
    });
    let mut findings = Vec::new();
    for folder in [&settings.state_dir, &settings.runtime_dir] {
        match not_looked_at("folders", folder, settings) {
            Some(closed) => findings.push(closed),
            None => findings.extend(folder_of(folder, user)),
        }
    }
    let secrets = ["identity", "keys", "last-good", "ledger.redb"];
    let secrets = secrets.iter().map(|name| settings.state_dir.join(name));
    findings.extend(
        secrets
            .chain([settings.certificate_key.clone()])
            .filter_map(|path| file(&path)),
    );
    if findings.iter().all(|one| one.verdict() == Verdict::Ok) {
        findings = vec![Finding::well(
            "folders",
            format!(
                "{} and {} are the node's alone",
                settings.state_dir.display(),
                settings.runtime_dir.display()
            ),
        )];
    }
    findings.extend(disk(&settings.state_dir));
    findings
}

/// What is closed to whoever asks, and not to the node: nothing can be said of it.
pub(super) fn not_looked_at(
    about: &'static str,
    path: &Path,
    settings: &Settings,
) -> Option<Finding> {
    let error = File::open(path).err()?;
    let state = std::fs::metadata(&settings.state_dir);
    let is_the_nodes_user = state.is_ok_and(|state| state.uid() == nix::unistd::geteuid().as_raw());
    if error.kind() != io::ErrorKind::PermissionDenied || is_the_nodes_user {
        return None;
    }
    let found = format!("{} can't be looked at: {error}", path.display());
    Some(Finding {
        about,
        ..Finding::ill(&NOT_LOOKED_AT, found, "")
    })
}

fn folder_of(path: &Path, user: Option<u32>) -> Vec<Finding> {
    let shown = path.display().to_string();
    let Ok(folder) = std::fs::metadata(path) else {
        let found = format!("{shown} is not there");
        return vec![Finding::ill(&FOLDER_IS_MISSING, found, &shown)];
    };
    let mut findings = Vec::new();
    if let Some(user) = user
        && folder.uid() != user
    {
        let found = format!(
            "{shown} belongs to user {}, the daemon is {user}",
            folder.uid()
        );
        findings.push(Finding::ill(&FOLDER_IS_SOMEBODY_ELSES, found, &shown));
    }
    if folder.mode() & 0o077 != 0 {
        let found = format!("{shown} has mode {:03o}", folder.mode() & 0o777);
        findings.push(Finding::ill(&FOLDER_IS_OPEN, found, &shown));
    }
    findings
}

fn file(path: &Path) -> Option<Finding> {
    let mode = std::fs::metadata(path).ok()?.mode() & 0o777;
    let shown = path.display().to_string();
    (mode & 0o077 != 0).then(|| {
        let found = format!("{shown} has mode {mode:03o}");
        Finding::ill(&FILE_IS_OPEN, found, &shown)
    })
}

fn disk(path: &Path) -> Option<Finding> {
    let mut there = path;
    while !there.exists() {
        there = there.parent()?;
    }
    let disk = nix::sys::statvfs::statvfs(there).ok()?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    Some(room(path, free))
}

fn room(path: &Path, free: u64) -> Finding {
    let shown = path.display().to_string();
    let found = format!("{} MiB are free for {shown}", free / MIB);
    if free < FULL {
        Finding::ill(&DISK_IS_FULL, found, &shown)
    } else if free < NEARLY_FULL {
        Finding::ill(&DISK_IS_NEARLY_FULL, found, &shown)
    } else {
        Finding::well("disk", found)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_and_files_that_others_can_open_are_found() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("state");
        assert_eq!(
            folder_of(&folder, None)[0].symptom,
            Some(&FOLDER_IS_MISSING)
        );
        std::fs::create_dir(&folder).unwrap();
        chmod(&folder, 0o700);
        assert!(folder_of(&folder, None).is_empty());
        let other = Some(std::fs::metadata(&folder).unwrap().uid() + 1);
        let found = folder_of(&folder, other);
        assert_eq!(found[0].symptom, Some(&FOLDER_IS_SOMEBODY_ELSES));
        chmod(&folder, 0o750);
        let found = folder_of(&folder, None);
        assert_eq!(found[0].symptom, Some(&FOLDER_IS_OPEN));
        assert_eq!(found[0].mend, format!("chmod 700 {}", folder.display()));

        let key = folder.join("key");
        assert_eq!(file(&key), None);
        std::fs::write(&key, "").unwrap();
        chmod(&key, 0o600);
        assert_eq!(file(&key), None);
        chmod(&key, 0o644);
        assert_eq!(file(&key).unwrap().symptom, Some(&FILE_IS_OPEN));
    }

    #[test]
    fn little_room_is_found() {
        let path = Path::new("/state");
        assert_eq!(room(path, 1 << 30).symptom, None);
        assert_eq!(room(path, 100 * MIB).symptom, Some(&DISK_IS_NEARLY_FULL));
        assert_eq!(room(path, MIB).symptom, Some(&DISK_IS_FULL));
        assert!(disk(Path::new("/no/such/folder")).is_some());
    }
}
