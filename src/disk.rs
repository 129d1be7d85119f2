//! Small files that must be whole or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes sure of a folder that only our user can enter, and creates it with its parents.
///
/// One that is there and open to others is closed when it is empty. One that holds something may be
/// somebody else's (`/tmp`, `/var/lib`), so it is left as it is.
///
/// # Errors
/// When it can't be created, or others can enter it and it is not empty.
pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    if fs::metadata(path)?.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(
            "this folder is not ours: choose another one",
        ));
    }
    let open_to_others = fs::metadata(path)?.permissions().mode() & 0o077;
    if open_to_others == 0 {
        return Ok(());
    }
    if fs::read_dir(path)?.next().is_some() {
        return Err(io::Error::other(
            "others can enter this folder and it is not empty: choose another one or, when it is the node's own, close it with chmod 700",
        ));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Writes a file that only our user can read: after a crash at any moment there is the old content
/// or the new one.
///
/// # Errors
/// When the disk refuses; the old file is still there then.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o600)
}

/// The same for a file that everybody may read.
///
/// # Errors
/// As for a private one.
pub(crate) fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o644)
}

/// Takes a file that can't be read out of the way, and keeps it for people.
pub(crate) fn move_aside(path: &Path) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    if let Err(error) = fs::rename(path, &aside) {
        tracing::error!(path = %path.display(), %error, "the damaged file stays where it is");
    }
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_by(path, mode, |file| file.write_all(content))
}

/// The same for content that is made while it is written.
///
/// # Errors
/// As for one that is there.
pub(crate) fn write_private_by(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    write_by(path, 0o600, write)
}

fn write_by(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    match fs::remove_file(fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(fresh)?;
    write(&mut file)?;
    file.sync_all()?;
    fs::rename(fresh, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_folder_is_closed_unless_it_may_be_somebody_elses() {
        let root = tempfile::tempdir().unwrap();
        let fresh = root.path().join("a/b");
        private_folder(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700);

        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        private_folder(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700, "an empty one is closed");

        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(fresh.join("file"), "").unwrap();
        assert!(
            private_folder(&fresh)
                .unwrap_err()
                .to_string()
                .contains("chmod 700")
        );
        assert_eq!(
            mode(&fresh),
            0o755,
            "one with something in it is left alone"
        );
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        write_private(&path, b"old").unwrap();
        fs::write(root.path().join("file.new"), "left by a crash").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), mode(&path)),
            (b"new".to_vec(), 0o600)
        );
        write_public(&path, b"public").unwrap();
        assert_eq!(mode(&path), 0o644);
    }
}
