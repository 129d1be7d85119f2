//! One node in a folder: two would end each other's cores.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Held for as long as a node works in a folder. The kernel lets it go with the process.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes it; `None` when another node has it.
    ///
    /// # Errors
    /// When the folder can't be written.
    pub(crate) fn take(folder: &Path) -> io::Result<Option<Self>> {
        let mut file = open(folder)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Some(Self(file)))
    }

    /// The number of the process that has it; `None` when none has. Makes nothing and follows no link: the
    /// folder may be somebody else's.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(crate) fn holder(folder: &Path) -> io::Result<Option<i32>> {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NOFOLLOW);
        let mut file = match options.open(folder.join("lock")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match file.try_lock() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                Read::by_ref(&mut file).take(32).read_to_string(&mut text)?;
                Ok(text.trim().parse().ok())
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A process that was just started holds our files until it is another program. What can't be
        // let go now is let go with them.
        drop(self.0.unlock());
    }
}

fn open(folder: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(folder.join("lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_and_others_see_who() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Lock::holder(folder.path()).unwrap(), None);
        assert_eq!(Lock::holder(&folder.path().join("none")).unwrap(), None);
        let lock = Lock::take(folder.path()).unwrap().unwrap();
        assert!(Lock::take(folder.path()).unwrap().is_none());
        let this = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Lock::holder(folder.path()).unwrap(), Some(this));
        drop(lock);
        assert_eq!(Lock::holder(folder.path()).unwrap(), None);
        assert!(Lock::take(folder.path()).unwrap().is_some());
        assert!(Lock::take(&folder.path().join("nowhere")).is_err());
    }
}
