//! Cores: from a release or a file to a folder of their own.

use std::path::{Path, PathBuf};

use super::address::shown_text;
use super::archive::CORE;
use super::download::Fetcher;
use super::progress::Step;
use super::receive::Receiving;
use super::record::Record;
use super::shelf::{Kind, Shelf};
use super::staging::{Kept, Staging};
use super::{
    Architecture, Digest, Error, Patience, Progress, Reporter, Wanted, archive, local, probe,
};
use crate::xray::version::Version;

/// The largest archive.
const MAX_ARCHIVE: u64 = 256 << 20;
/// The largest core.
const MAX_CORE: u64 = 256 << 20;
/// Behind the name of an archive, the file with its digests.
const DIGESTS: &str = ".dgst";

const KIND: Kind = Kind {
    record: "core.json",
    files: &[CORE],
};

/// The cores of a node, below its state folder.
#[derive(Clone, Debug)]
pub struct Cores {
    shelf: Shelf,
    /// How long an installation may take.
    pub patience: Patience,
}

/// Where a core comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The releases at a URL, laid out as GitHub does it.
    Releases {
        /// [`RELEASES`](super::RELEASES), or a mirror of it.
        url: String,
        /// What the archive must be. Without it, what the file of digests beside it says, and then the
        /// URL has to be one that nobody on the way can speak for.
        sha256: Option<Digest>,
    },
    /// An archive on this machine.
    File {
        /// Where it is.
        path: PathBuf,
        /// What it is called in errors and in the list of what is installed.
        name: String,
        /// How it is known to be the right one.
        proof: Proof,
    },
}

/// How a file of this machine is known to be the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// There is a file of digests beside it.
    Beside,
    /// It has this digest.
    Sha256(Digest),
    /// Whoever calls says that it is.
    Trusted,
}

/// A core that is checked and not kept yet. Dropped, it is gone.
#[derive(Debug)]
pub struct Staged {
    staging: Staging,
    version: Version,
    record: Record,
}

impl Cores {
    /// Those of the node with that state folder.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            shelf: Shelf::new(state_dir.join("cores"), KIND),
            patience: Patience::default(),
        }
    }

    /// What is there, and which of it is used.
    #[must_use]
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// The core that is used, by a path that stays the same when another one is; `None` where none is.
    #[must_use]
    pub fn binary(&self) -> Option<PathBuf> {
        Some(self.shelf.current()?.join(CORE))
    }

    /// Gets a core, and looks at it: it has its digest, is for this machine, runs, and is the version that
    /// is wanted. Nothing is used or changed by that.
    ///
    /// # Errors
    /// With the first thing that is wrong with it, or when somebody else installs something.
    pub async fn stage(
        &self,
        source: &Source,
        wanted: &Wanted,
        report: &Reporter,
    ) -> Result<Staged, Error> {
        let architecture = Architecture::here()?;
        let staging = Staging::new(self.shelf.turn()?)?;
        let archive = staging.aside("archive");
        let (origin, digest) = match source {
            Source::Releases { url, sha256 } => {
                let name = architecture.archive();
                let url = wanted.url(url, name);
                let digest = self.download(&url, name, *sha256, &archive, report).await?;
                (shown_text(&url), digest)
            }
            Source::File { path, name, proof } => {
                let digest = copy(path, name, *proof, &archive, report).await?;
                (name.clone(), digest)
            }
        };
        let (staging, core) = unpack(staging, archive, architecture, report.clone()).await?;
        report.say(Progress::of(Step::Try, CORE));
        let binary = staging.content().join(CORE);
        let version = probe::version(&binary, self.patience.answer).await?;
        wanted.admit(version)?;
        let record = Record::new(version.to_string(), origin, Some(digest), [(CORE, core)]);
        Ok(Staged {
            staging,
            version,
            record,
        })
    }

    async fn download(
        &self,
        url: &str,
        name: &'static str,
        known: Option<Digest>,
        to: &Path,
        report: &Reporter,
    ) -> Result<Digest, Error> {
        let fetcher = Fetcher::new(url, known.is_some(), self.patience).await?;
        report.say(Progress::of(Step::Digest, name));
        // First of all: an archive that can't be checked need not come.
        let expected = match known {
            Some(known) => known,
            None => fetcher.digest_beside(url, DIGESTS).await?,
        };
        let into = Receiving::create(to, Progress::of(Step::Download, name), report).await?;
        let found = fetcher.file(url, MAX_ARCHIVE, into).await?;
        found.must_be(expected, name)
    }
}

/// What an archive of this machine must be, by the file of digests beside it.
///
/// # Errors
/// When there is none, or it does not name the archive.
pub async fn digest_beside(archive: &Path) -> Result<Digest, Error> {
    local::digest_beside(archive, DIGESTS).await
}

async fn copy(
    path: &Path,
    name: &str,
    proof: Proof,
    to: &Path,
    report: &Reporter,
) -> Result<Digest, Error> {
    const NAME: &str = "archive";

    report.say(Progress::of(Step::Digest, NAME));
    let expected = match proof {
        Proof::Sha256(known) => Some(known),
        Proof::Beside => Some(digest_beside(path).await?),
        Proof::Trusted => None,
    };
    let into = Receiving::create(to, Progress::of(Step::Copy, NAME), report).await?;
    let found = local::copy(path, MAX_ARCHIVE, into).await?;
    match expected {
        Some(expected) => found.must_be(expected, name),
        None => Ok(found),
    }
}

/// Takes the core out of its archive, on a thread that may wait. What is staged goes along and comes back:
/// when nobody waits any more, it goes when the thread has ended.
async fn unpack(
    staging: Staging,
    archive: PathBuf,
    architecture: Architecture,
    report: Reporter,
) -> Result<(Staging, Digest), Error> {
    let path = archive.clone();
    let work = tokio::task::spawn_blocking(move || {
        let core = staging.content().join(CORE);
        let digest = archive::unpack(&archive, &core, MAX_CORE, architecture, &report)?;
        // It is as large as the core, and nobody needs it any more.
        std::fs::remove_file(&archive).map_err(Error::disk(&archive))?;
        Ok((staging, digest))
    });
    work.await
        .map_err(|error| Error::disk(&path)(error.into()))?
}

impl Staged {
    /// The core, where it can be tried further.
    #[must_use]
    pub fn binary(&self) -> PathBuf {
        self.staging.content().join(CORE)
    }

    /// The version that it says it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Makes it one of the node's cores, by the name of its version; with another number behind it where
    /// another core has that name, and not at all where the very same is there. Old cores go; the one
    /// that is used and the one before do not.
    ///
    /// # Errors
    /// When the disk refuses; the core that is used is as before then.
    pub fn keep(self) -> Result<Kept, Error> {
        let name = self.version.to_string();
        self.staging.keep(&name, &self.record)
    }
}

#[cfg(test)]
mod tests;
