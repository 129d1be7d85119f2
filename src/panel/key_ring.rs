//! Where the keys come from that open the node: its own, and those of a file beside it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::auth::{Keys, NamedKey};
use crate::identity;

/// The name of the node's own key.
pub const OWN: &str = "API_KEY";

/// The longest name of a key.
const LONGEST: usize = 64;

/// The keys that open the node, and the files that they are in.
pub struct KeyRing {
    /// The node's own, where its operator has set it.
    set: Option<Uuid>,
    state_dir: PathBuf,
    /// More of them: the operator's file, which has to be there, or the node's own, which may be.
    file: KeysFile,
    keys: Arc<Keys>,
    /// Whoever changes a file does it alone.
    turn: Mutex<()>,
}

enum KeysFile {
    Named(PathBuf),
    Own(PathBuf),
}

impl KeysFile {
    fn path(&self) -> &Path {
        match self {
            Self::Named(path) | Self::Own(path) => path,
        }
    }
}

/// Why a key was not added or revoked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files can't be read or written.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// Not a name.
    #[error("{0:?} is no name for a key: up to 64 letters, digits, dots, dashes and underscores")]
    Name(String),
    /// There is one of this name.
    #[error("there is a key {0:?} already; revoke it first, or choose another name")]
    Exists(String),
    /// There is none of this name.
    #[error("there is no key {0:?}; `raynode key list` names those that there are")]
    NotFound(String),
    /// The node's own key is not the node's to change.
    #[error("API_KEY is set in the node's settings: change it there and restart the node")]
    SetByOperator,
    /// Without it the operator's file would hold no key.
    #[error("{0:?} is the only key in {path}: add another one first, or leave API_KEYS_FILE out", path = .1.display())]
    Last(String, PathBuf),
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing")
            .field("file", &self.file.path())
            .finish_non_exhaustive()
    }
}

impl KeyRing {
    /// Reads the keys; the node's own is made where there is none.
    ///
    /// # Errors
    /// When a file can't be read or is not what it should be.
    pub fn open(
        set: Option<Uuid>,
        state_dir: &Path,
        file: Option<PathBuf>,
    ) -> Result<Self, identity::Error> {
        let file = match file {
            Some(path) => KeysFile::Named(path),
            None => KeysFile::Own(state_dir.join("keys")),
        };
        let ring = Self {
            set,
            state_dir: state_dir.to_owned(),
            file,
            keys: Arc::new(Keys::new(Vec::new())),
            turn: Mutex::default(),
        };
        ring.keys.replace(ring.read()?);
        Ok(ring)
    }

    /// What is in force.
    #[must_use]
    pub fn keys(&self) -> &Arc<Keys> {
        &self.keys
    }

    /// The node's own.
    ///
    /// # Errors
    /// As for opening.
    pub fn own(&self) -> Result<Uuid, identity::Error> {
        match self.set {
            Some(key) => Ok(key),
            None => identity::api_key(&self.state_dir),
        }
    }

    /// The file of the others, which may not be there.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn read(&self) -> Result<Vec<NamedKey>, identity::Error> {
        let mut keys = vec![NamedKey {
            name: OWN.to_owned(),
            key: self.own()?,
        }];
        let more = match &self.file {
            KeysFile::Named(path) => identity::keys_file(path)?,
            KeysFile::Own(path) => identity::any_keys(path)?,
        };
        let more = more.into_iter();
        keys.extend(more.map(|(name, key)| NamedKey { name, key }));
        Ok(keys)
    }

    /// Reads the keys anew; where that fails the old ones stay.
    pub fn reload(&self) {
        let _turn = self.turn();
        if let Err(error) = self.take_over() {
            tracing::error!(%error, "the keys were not reloaded, the old ones stay");
        }
    }

    fn take_over(&self) -> Result<(), identity::Error> {
        let fresh = self.read()?;
        tracing::info!(count = fresh.len(), "these keys open the node now");
        self.keys.replace(fresh);
        Ok(())
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.keys.names()
    }

    /// One more key, in force at once.
    ///
    /// # Errors
    /// When the name is none or is taken, or the file can't be written.
    pub fn add(&self, name: &str) -> Result<Uuid, Error> {
        let fits = |char: char| char.is_ascii_alphanumeric() || ".-_".contains(char);
        if name.is_empty() || name.len() > LONGEST || !name.chars().all(fits) {
            return Err(Error::Name(name.to_owned()));
        }
        let _turn = self.turn();
        // What is in the file counts: one that can't be read would not open with this key either.
        if self.read()?.iter().any(|known| known.name == name) {
            return Err(Error::Exists(name.to_owned()));
        }
        let key = Uuid::new_v4();
        identity::add_key(self.path(), name, key)?;
        tracing::info!(name, "a key was added");
        self.take_over()?;
        Ok(key)
    }

    /// A key opens the node no more. The node's own is replaced by another one, which is returned.
    ///
    /// # Errors
    /// When there is none of this name, it is not the node's to change, or the file can't be written.
    pub fn revoke(&self, name: &str) -> Result<Option<Uuid>, Error> {
        let _turn = self.turn();
        let fresh = if name == OWN {
            if self.set.is_some() {
                return Err(Error::SetByOperator);
            }
            Some(identity::replace_api_key(&self.state_dir)?)
        } else {
            if !self.names().iter().any(|known| known == name) {
                return Err(Error::NotFound(name.to_owned()));
            }
            // Its own file goes with its last key; the operator's would be one without a key.
            if let KeysFile::Named(path) = &self.file
                && self.names().len() == 2
            {
                return Err(Error::Last(name.to_owned(), path.clone()));
            }
            // Whatever else is in the file, and whether it can be written.
            self.keys.forget(name);
            identity::revoke_key(self.path(), name)?;
            None
        };
        tracing::info!(name, "a key was revoked");
        self.take_over()?;
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_and_go_and_the_nodes_own_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let ring = KeyRing::open(None, folder.path(), None).unwrap();
        let own = ring.own().unwrap();
        assert_eq!(ring.names(), [OWN]);
        let key = ring.add("home").unwrap();
        assert!(ring.keys().holds(key.to_string().as_bytes()));
        assert!(matches!(ring.add("home"), Err(Error::Exists(_))));
        assert!(matches!(ring.add("a b"), Err(Error::Name(_))));
        assert!(matches!(ring.add(""), Err(Error::Name(_))));
        let again = KeyRing::open(None, folder.path(), None).unwrap();
        assert_eq!(again.names(), [OWN, "home"]);

        assert!(matches!(ring.revoke("away"), Err(Error::NotFound(_))));
        assert_eq!(ring.revoke("home").unwrap(), None);
        assert!(!ring.keys().holds(key.to_string().as_bytes()));
        ring.add("lost").unwrap();
        std::fs::remove_file(ring.path()).unwrap();
        assert_eq!(ring.revoke("lost").unwrap(), None);
        assert_eq!(ring.names(), [OWN]);
        let fresh = ring.revoke(OWN).unwrap().unwrap();
        assert!(fresh != own && ring.keys().holds(fresh.to_string().as_bytes()));
        assert!(!ring.keys().holds(own.to_string().as_bytes()));
    }

    #[test]
    fn a_file_that_can_not_be_read_keeps_no_revoked_key_and_takes_no_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let ring = KeyRing::open(None, folder.path(), None).unwrap();
        let key = ring.add("home").unwrap();
        let path = folder.path().join("keys");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}oops\n")).unwrap();
        assert!(matches!(ring.add("more"), Err(Error::Identity(_))));
        assert!(matches!(ring.revoke("home"), Err(Error::Identity(_))));
        assert!(!ring.keys().holds(key.to_string().as_bytes()));
        assert!(!std::fs::read_to_string(&path).unwrap().contains("home"));
        std::fs::write(&path, "# nobody\n").unwrap();
        assert_eq!(
            KeyRing::open(None, folder.path(), None).unwrap().names(),
            [OWN]
        );
    }

    #[test]
    fn many_come_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let ring = KeyRing::open(None, folder.path(), None).unwrap();
        std::thread::scope(|scope| {
            for number in 0..20 {
                let ring = &ring;
                scope.spawn(move || ring.add(&number.to_string()).unwrap());
            }
        });
        assert_eq!(ring.names().len(), 21);
    }

    #[test]
    fn the_operators_own_file_and_key_are_respected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let text = format!("# ours\nold {} # since May\n", Uuid::new_v4());
        std::fs::write(&path, &text).unwrap();
        let set = Uuid::new_v4();
        let ring = KeyRing::open(Some(set), folder.path(), Some(path.clone())).unwrap();
        assert!(matches!(ring.revoke(OWN), Err(Error::SetByOperator)));
        assert!(matches!(ring.revoke("old"), Err(Error::Last(..))));
        ring.add("new").unwrap();
        ring.revoke("old").unwrap();
        assert_eq!(ring.names(), [OWN, "new"]);
        let left = std::fs::read_to_string(&path).unwrap();
        assert!(left.starts_with("# ours\nnew "), "{left}");
        let missing = folder.path().join("none");
        assert!(KeyRing::open(None, folder.path(), Some(missing)).is_err());
    }
}
