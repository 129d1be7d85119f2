//! A folder with several of one thing: one is used, one was used before, the rest may go.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Error;
use super::links::{self, CURRENT, PREVIOUS};
use super::record::Record;
use super::turn::Turn;
use crate::disk;
use crate::lock::Lock;

/// What makes one whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// The file that says what it is.
    pub(super) record: &'static str,
    /// The files that are used.
    pub(super) files: &'static [&'static str],
}

/// A folder of cores, or of geo files.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
    kind: Kind,
}

/// Something that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// What it is called here.
    pub name: String,
    /// The version of a core; the region of geo files.
    pub version: String,
    /// The URL or the path that it came from.
    pub source: String,
    /// When that was.
    pub installed: SystemTime,
    /// How many bytes its files have.
    pub bytes: u64,
    /// Whether it is the one that is used.
    pub in_use: bool,
    /// Whether it is the one that a rollback uses.
    pub previous: bool,
}

impl Shelf {
    pub(super) fn new(folder: PathBuf, kind: Kind) -> Self {
        Self { folder, kind }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the record is of what is in `folder`.
    pub(super) fn record_in(&self, folder: &Path) -> PathBuf {
        folder.join(self.kind.record)
    }

    /// The folder by which the one is found that is used, whichever it is; `None` where none is.
    #[must_use]
    pub fn current(&self) -> Option<PathBuf> {
        let current = self.folder.join(CURRENT);
        self.is_whole_at(&current).then_some(current)
    }

    /// What is installed, the latest first. Runs nothing.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn list(&self) -> Result<Vec<Installed>, Error> {
        let mut found = Vec::new();
        for name in self.names()? {
            let folder = self.folder.join(&name);
            let Some(record) = Record::read(&self.record_in(&folder)) else {
                continue;
            };
            if !self.is_whole_at(&folder) {
                continue;
            }
            let size = |file: &&str| fs::metadata(folder.join(file)).map_or(0, |file| file.len());
            found.push(Installed {
                in_use: self.linked(CURRENT).as_ref() == Some(&name),
                previous: self.to_go_back_to().as_ref() == Some(&name),
                bytes: self.kind.files.iter().map(size).sum(),
                installed: record.installed(),
                version: record.version,
                source: record.source,
                name,
            });
        }
        found.sort_by(|a, b| (b.installed, &b.name).cmp(&(a.installed, &a.name)));
        Ok(found)
    }

    /// Clears away what an installation left that was cut off, unless one is under way. For the start.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn tidy(&self) -> Result<(), Error> {
        if !self.folder.exists() {
            return Ok(());
        }
        match self.turn() {
            Err(Error::Busy { .. }) => Ok(()),
            turn => turn?.tidy(),
        }
    }

    /// Keeps everybody else from writing.
    ///
    /// # Errors
    /// When somebody else is at work, or the folder is not ours.
    pub fn turn(&self) -> Result<Turn, Error> {
        self.check_owner()?;
        let fail = Error::disk(&self.folder);
        let lock = disk::private_folder(&self.folder).and_then(|()| Lock::take(&self.folder));
        match lock.map_err(fail)? {
            Some(lock) => Ok(Turn::new(self.clone(), lock)),
            None => Err(Error::Busy {
                folder: self.folder.clone(),
                by: Lock::holder(&self.folder).ok().flatten(),
            }),
        }
    }

    /// What root leaves here, the node could not replace.
    fn check_owner(&self) -> Result<(), Error> {
        let known = |path: &&Path| fs::metadata(path).ok().map(|found| found.uid());
        let above = self.folder.parent().unwrap_or(&self.folder);
        match [&*self.folder, above].iter().find_map(known) {
            Some(uid) if uid != nix::unistd::geteuid().as_raw() => Err(Error::NotOurs {
                folder: self.folder.clone(),
                uid,
            }),
            _ => Ok(()),
        }
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::disk(&self.folder))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::disk(&self.folder))?.file_name();
            names.extend(name.into_string().ok().filter(|name| links::is_name(name)));
        }
        Ok(names)
    }

    pub(super) fn is_whole(&self, name: &str) -> bool {
        links::is_name(name) && self.is_whole_at(&self.folder.join(name))
    }

    pub(super) fn is_whole_at(&self, folder: &Path) -> bool {
        let is_file = |name: &&str| folder.join(name).is_file();
        self.kind.files.iter().all(is_file)
    }

    /// What a link leads to, if that is there.
    pub(super) fn linked(&self, link: &str) -> Option<String> {
        links::read(&self.folder, link).filter(|to| self.is_whole_at(&self.folder.join(to)))
    }

    /// What a rollback would use.
    pub(super) fn to_go_back_to(&self) -> Option<String> {
        let current = self.linked(CURRENT);
        self.linked(PREVIOUS)
            .filter(|name| Some(name) != current.as_ref())
    }
}

#[cfg(test)]
mod tests;
