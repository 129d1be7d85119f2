//! What is no part of a shelf yet: seen by nobody, and gone without a trace unless it is kept.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Error;
use super::links;
use super::record::Record;
use super::turn::{Switched, Turn};
use crate::disk;

/// In front of the name of what is no part of a shelf yet, or any more.
const SCRATCH: &str = ".staging-";

/// Whether a name is one of those.
pub(super) fn is_scratch(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(SCRATCH)
}

/// A folder that goes when nobody needs it any more.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A name for one in `folder`; it need not be there yet.
    pub(super) fn name_in(folder: &Path) -> Self {
        Self(folder.join(format!("{SCRATCH}{}", Uuid::new_v4())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "a leftover stays until the next start");
            }
            _ => {}
        }
    }
}

/// Something on its way to a shelf, which nobody else may write to until it is there or given up.
#[derive(Debug)]
pub(super) struct Staging {
    scratch: Scratch,
    turn: Turn,
}

impl Staging {
    /// # Errors
    /// When the disk refuses.
    pub(super) fn new(turn: Turn) -> Result<Self, Error> {
        let scratch = Scratch::name_in(turn.shelf().folder());
        let staging = Self { scratch, turn };
        let content = staging.content();
        let made = disk::private_folder(&content);
        made.map_err(Error::disk(&content))?;
        Ok(staging)
    }

    /// The folder that may be kept.
    pub(super) fn content(&self) -> PathBuf {
        self.scratch.path().join("content")
    }

    /// A place for a file that is not kept.
    pub(super) fn aside(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes the content a part of the shelf, unless the same is there already; the oldest goes.
    ///
    /// # Errors
    /// When the disk refuses: what is used is as before.
    pub(super) fn keep(self, stem: &str, record: &Record) -> Result<Kept, Error> {
        let Self { scratch, turn } = self;
        let (name, reused) = turn.name_for(stem, record);
        if !reused {
            let content = scratch.path().join("content");
            record.write(&turn.shelf().record_in(&content))?;
            links::run(&links::keeping(&content, turn.shelf().folder(), &name))?;
        }
        drop(scratch);
        if let Err(error) = turn.prune(&name) {
            tracing::warn!(%error, "what was installed long ago is not cleared away");
        }
        Ok(Kept { turn, name, reused })
    }
}

/// Something on a shelf, which nobody else may write to until this is dropped.
#[derive(Debug)]
pub struct Kept {
    turn: Turn,
    name: String,
    reused: bool,
}

impl Kept {
    /// What it is called there.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the very same was there already.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Uses it from now on.
    ///
    /// # Errors
    /// When the disk refuses: what was used before is used still or, where the disk refused at the very
    /// end, this is.
    pub fn switch(self) -> Result<(Turn, Switched), Error> {
        let switched = self.turn.switch_to(&self.name)?;
        Ok((self.turn, switched))
    }
}
