//! What is kept and what is used: a list of single steps on disk, of which each leaves something that works.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::Error;

/// Names what is used.
pub(super) const CURRENT: &str = "current";
/// Names what was used before.
pub(super) const PREVIOUS: &str = "previous";
/// Behind a link that does not count yet.
const FRESH: &str = ".new";

/// One step: one call of the system, which happens or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// A file goes, where there is one.
    Unlink(PathBuf),
    /// A link is made where nothing is.
    Link { target: String, at: PathBuf },
    /// A name takes the place of another.
    Rename { from: PathBuf, to: PathBuf },
    /// What happened in a folder outlives the machine.
    Sync(PathBuf),
}

impl Act {
    fn run(&self) -> Result<(), Error> {
        match self {
            Self::Unlink(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
            .map_err(Error::disk(path)),
            Self::Link { target, at } => symlink(target, at).map_err(Error::disk(at)),
            Self::Rename { from, to } => fs::rename(from, to).map_err(Error::disk(to)),
            Self::Sync(folder) => File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(Error::disk(folder)),
        }
    }
}

/// Does one after the other.
///
/// # Errors
/// With the first that fails; those behind it are not tried.
pub(super) fn run(acts: &[Act]) -> Result<(), Error> {
    acts.iter().try_for_each(Act::run)
}

/// Makes what is whole in `staged` one of `folder`, as `name`.
pub(super) fn keeping(staged: &Path, folder: &Path, name: &str) -> Vec<Act> {
    let to = folder.join(name);
    vec![
        Act::Sync(staged.to_owned()),
        Act::Rename {
            from: staged.to_owned(),
            to,
        },
        Act::Sync(folder.to_owned()),
    ]
}

/// Uses `to` instead of `from`. The one that is used is exchanged last: until then all is as before, but
/// for the one to go back to.
pub(super) fn switching(folder: &Path, from: Option<&str>, to: &str) -> Vec<Act> {
    let previous = from.map(|from| pointing(folder, PREVIOUS, from));
    let mut acts = previous.unwrap_or_default();
    acts.extend(pointing(folder, CURRENT, to));
    acts
}

/// Uses `to` again, and remembers `from`. The one that is used is exchanged first: whoever goes back has
/// reasons.
pub(super) fn going_back(folder: &Path, from: Option<&str>, to: Option<&str>) -> Vec<Act> {
    let mut acts = pointing_or_not(folder, CURRENT, to);
    acts.extend(pointing_or_not(folder, PREVIOUS, from));
    acts
}

/// Takes what has that name out of sight, to where it may be removed file by file.
pub(super) fn leaving(folder: &Path, name: &str, to: &Path) -> Vec<Act> {
    vec![
        Act::Rename {
            from: folder.join(name),
            to: to.to_owned(),
        },
        Act::Sync(folder.to_owned()),
    ]
}

/// Lets nobody find the way to a name that goes.
pub(super) fn forgetting(folder: &Path, link: &str) -> Vec<Act> {
    vec![Act::Unlink(folder.join(link)), Act::Sync(folder.to_owned())]
}

fn pointing_or_not(folder: &Path, link: &str, to: Option<&str>) -> Vec<Act> {
    match to {
        Some(to) => pointing(folder, link, to),
        None => forgetting(folder, link),
    }
}

fn pointing(folder: &Path, link: &str, to: &str) -> Vec<Act> {
    let fresh = fresh(folder, link);
    vec![
        Act::Unlink(fresh.clone()),
        Act::Link {
            target: to.to_owned(),
            at: fresh.clone(),
        },
        Act::Rename {
            from: fresh,
            to: folder.join(link),
        },
        Act::Sync(folder.to_owned()),
    ]
}

/// The link before it counts; one is left where a switch was cut off.
fn fresh(folder: &Path, link: &str) -> PathBuf {
    folder.join(format!(".{link}{FRESH}"))
}

/// Clears away what a switch left that was cut off.
///
/// # Errors
/// When the disk refuses.
pub(super) fn tidy(folder: &Path) -> Result<(), Error> {
    run(&[CURRENT, PREVIOUS].map(|link| Act::Unlink(fresh(folder, link))))
}

/// What a link leads to: a name in its own folder, unless somebody has made it by hand.
pub(super) fn read(folder: &Path, link: &str) -> Option<String> {
    let target = fs::read_link(folder.join(link)).ok()?;
    target.to_str().map(ToOwned::to_owned)
}

/// Whether something may be installed under that name: one that leads nowhere else.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && !name.contains('/')
        && ![CURRENT, PREVIOUS].contains(&name)
}
