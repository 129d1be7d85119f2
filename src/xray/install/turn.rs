//! What may be done to a shelf by whose turn it is.

use std::fs;
use std::path::PathBuf;

use super::Error;
use super::links::{self, CURRENT, PREVIOUS};
use super::record::Record;
use super::shelf::{Installed, Shelf};
use super::staging::{self, Scratch};
use crate::lock::Lock;

/// How many are kept; the one that is used and the one before are always among them.
const KEEP: usize = 3;

/// What a switch has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switched {
    /// What is used now.
    pub now: String,
    /// What was used before; the same where nothing had to be changed.
    pub before: Option<String>,
    previous: Option<String>,
}

/// A shelf to which nobody else writes until this is dropped.
#[derive(Debug)]
pub struct Turn {
    shelf: Shelf,
    _lock: Lock,
}

impl Turn {
    pub(super) fn new(shelf: Shelf, lock: Lock) -> Self {
        Self { shelf, _lock: lock }
    }

    pub(super) fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Where the one is that a rollback would use.
    ///
    /// # Errors
    /// When there is nothing to go back to.
    pub fn place_of_previous(&self) -> Result<PathBuf, Error> {
        Ok(self.shelf.folder().join(self.previous()?))
    }

    fn previous(&self) -> Result<String, Error> {
        self.shelf.to_go_back_to().ok_or(Error::NoPrevious)
    }

    /// Where the one of that name is.
    ///
    /// # Errors
    /// When there is none.
    pub fn place(&self, name: &str) -> Result<PathBuf, Error> {
        if self.shelf.is_whole(name) {
            Ok(self.shelf.folder().join(name))
        } else {
            Err(self.unknown(name))
        }
    }

    /// Uses the one of that name from now on. What is read by way of [`Shelf::current`] is the
    /// old one or the new one at any moment, also after a kill.
    ///
    /// # Errors
    /// When there is none of that name; nothing has changed then. When the disk refuses, the old one is
    /// used still or, where it refused at the very end, the new one is.
    pub fn switch_to(&self, name: &str) -> Result<Switched, Error> {
        let place = &self.shelf;
        if !place.is_whole(name) {
            return Err(self.unknown(name));
        }
        let before = place.linked(CURRENT);
        let switched = Switched {
            now: name.to_owned(),
            previous: place.linked(PREVIOUS),
            before,
        };
        if switched.before.as_deref() != Some(name) {
            let before = switched.before.as_deref();
            links::run(&links::switching(place.folder(), before, name))?;
        }
        Ok(switched)
    }

    /// Uses the one again that was used before.
    ///
    /// # Errors
    /// When there is none, or the disk refuses.
    pub fn rollback(&self) -> Result<Switched, Error> {
        let place = &self.shelf;
        let now = self.previous()?;
        let before = place.linked(CURRENT);
        links::run(&links::going_back(
            place.folder(),
            before.as_deref(),
            Some(&now),
        ))?;
        Ok(Switched {
            previous: Some(now.clone()),
            now,
            before,
        })
    }

    /// Takes a switch back as if it had not been, also where nothing was used before it.
    ///
    /// # Errors
    /// When somebody has switched since, or the disk refuses.
    pub fn undo(&self, switched: &Switched) -> Result<(), Error> {
        let place = &self.shelf;
        if place.linked(CURRENT).as_ref() != Some(&switched.now) {
            return Err(Error::Overtaken(switched.now.clone()));
        }
        let is_there = |to: &&str| place.is_whole_at(&place.folder().join(to));
        let before = switched.before.as_deref();
        if before.is_some_and(|before| !is_there(&before)) {
            return Err(Error::NoPrevious);
        }
        let previous = switched.previous.as_deref().filter(is_there);
        links::run(&links::going_back(place.folder(), previous, before))
    }

    /// Removes one that is not used.
    ///
    /// # Errors
    /// When it is used, or not there, or the disk refuses.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let folder = self.shelf.folder();
        if !links::is_name(name) || !folder.join(name).is_dir() {
            return Err(self.unknown(name));
        }
        if links::read(folder, CURRENT).as_deref() == Some(name) {
            return Err(Error::InUse(name.to_owned()));
        }
        if links::read(folder, PREVIOUS).as_deref() == Some(name) {
            links::run(&links::forgetting(folder, PREVIOUS))?;
        }
        // It is whole or gone: what is removed file by file has no name any more.
        let scratch = Scratch::name_in(folder);
        links::run(&links::leaving(folder, name, scratch.path()))
    }

    /// Removes the oldest, but not `kept` and nothing that is linked.
    pub(super) fn prune(&self, kept: &str) -> Result<(), Error> {
        let all = self.shelf.list()?;
        let stays = |one: &Installed| one.in_use || one.previous || one.name == kept;
        let spare = KEEP.saturating_sub(all.iter().filter(|one| stays(one)).count());
        for one in all.iter().filter(|one| !stays(one)).skip(spare) {
            self.remove(&one.name)?;
        }
        Ok(())
    }

    pub(super) fn tidy(&self) -> Result<(), Error> {
        let folder = self.shelf.folder();
        links::tidy(folder)?;
        for entry in fs::read_dir(folder).map_err(Error::disk(folder))? {
            let entry = entry.map_err(Error::disk(folder))?;
            if staging::is_scratch(&entry.file_name()) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(Error::disk(&path))?;
            }
        }
        Ok(())
    }

    /// The name with which this is kept, `stem` if nothing else has that, and whether it is there already.
    pub(super) fn name_for(&self, stem: &str, record: &Record) -> (String, bool) {
        let mut name = stem.to_owned();
        for number in 2_u64.. {
            let folder = self.shelf.folder().join(&name);
            if folder.symlink_metadata().is_err() {
                return (name, false);
            }
            // By what is on disk: it may have been damaged since it came.
            let known = Record::read(&self.shelf.record_in(&folder)).is_some();
            if known && record.describes(&folder) {
                return (name, true);
            }
            name = format!("{stem}-{number}");
        }
        (name, false)
    }

    fn unknown(&self, name: &str) -> Error {
        Error::Unknown {
            name: name.to_owned(),
            folder: self.shelf.folder().to_owned(),
        }
    }
}
