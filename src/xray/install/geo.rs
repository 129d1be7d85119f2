//! Geo files: which networks and names belong to a country or a list. Both come and go together.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::address::shown_text;
use super::digest::Hasher;
use super::download::Fetcher;
use super::receive::Receiving;
use super::record::Record;
use super::shelf::{Kind, Shelf};
use super::staging::{Kept, Staging};
use super::{Digest, Error, Patience, Progress, Reporter, Step, entries, local};

const FILES: [&str; 2] = ["geoip.dat", "geosite.dat"];
/// Behind the name of a file, the file with its digest.
const DIGEST: &str = ".sha256sum";
/// The largest of them; those of Russia have about 75 MB.
const MAX_FILE: u64 = 256 << 20;

const KIND: Kind = Kind {
    record: "geo.json",
    files: &FILES,
};

/// A region for which there are geo files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Iran.
    Iran,
    /// Russia.
    Russia,
    /// China.
    China,
}

impl Region {
    fn name(self) -> &'static str {
        match self {
            Self::Iran => "iran",
            Self::Russia => "russia",
            Self::China => "china",
        }
    }

    /// Where its files are released, with their digests beside them.
    fn releases(self) -> &'static str {
        match self {
            Self::Iran => {
                "https://github.com/Chocolate4U/Iran-v2ray-rules/releases/latest/download"
            }
            Self::Russia => {
                "https://github.com/runetfreedom/russia-v2ray-rules-dat/releases/latest/download"
            }
            Self::China => {
                "https://github.com/Loyalsoldier/v2ray-rules-dat/releases/latest/download"
            }
        }
    }
}

impl FromStr for Region {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut all = [Self::Iran, Self::Russia, Self::China].into_iter();
        let found = all.find(|region| region.name() == text);
        found.ok_or_else(|| Error::NotARegion(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where geo files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GeoSource {
    /// The files for a region, of those who are known for them.
    Region(Region),
    /// The files for a region, with their digests beside them, in a folder of a server that nobody on the
    /// way can speak for.
    Mirror {
        /// The folder's URL. `{region}` in it becomes the name of the region.
        url: String,
        /// Which region.
        region: Region,
    },
    /// The files in a folder of this machine.
    Folder {
        /// Which.
        path: PathBuf,
        /// They are taken as they are. Otherwise each has the file with its digest beside it.
        trusted: bool,
    },
}

/// The geo files of a node, below its state folder.
#[derive(Clone, Debug)]
pub struct GeoFiles {
    shelf: Shelf,
    /// How long an installation may take.
    pub patience: Patience,
}

/// Geo files that are checked and not kept yet. Dropped, they are gone.
#[derive(Debug)]
pub struct StagedGeo {
    staging: Staging,
    name: String,
    record: Record,
}

impl GeoFiles {
    /// Those of the node with that state folder.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            shelf: Shelf::new(state_dir.join("assets"), KIND),
            patience: Patience::default(),
        }
    }

    /// What is there, and which of it is used. [`Shelf::current`] is the folder that a core is given.
    #[must_use]
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Gets both files, and looks at them: each has its digest and holds geo entries. Nothing is used or
    /// changed by that.
    ///
    /// # Errors
    /// With the first thing that is wrong with them, or when somebody else installs some.
    pub async fn stage(&self, source: &GeoSource, report: &Reporter) -> Result<StagedGeo, Error> {
        let staging = Staging::new(self.shelf.turn()?)?;
        let to = staging.content();
        let (version, origin, files) = match source {
            GeoSource::Region(region) => {
                let url = region.releases();
                (
                    region.name(),
                    shown_text(url),
                    self.download(url, &to, report).await?,
                )
            }
            GeoSource::Mirror { url, region } => {
                let url = url.replace("{region}", region.name());
                (
                    region.name(),
                    shown_text(&url),
                    self.download(&url, &to, report).await?,
                )
            }
            GeoSource::Folder { path, trusted } => {
                let origin = path.display().to_string();
                ("local", origin, copy(path, *trusted, &to, report).await?)
            }
        };
        let staging = look_at(staging, report.clone()).await?;
        let mut both = Hasher::new();
        for (_, digest) in &files {
            both.take(digest.to_string().as_bytes());
        }
        let short: String = both.finish().to_string().chars().take(12).collect();
        Ok(StagedGeo {
            staging,
            name: format!("{version}-{short}"),
            record: Record::new(version.to_owned(), origin, None, files),
        })
    }

    async fn download(
        &self,
        folder: &str,
        to: &Path,
        report: &Reporter,
    ) -> Result<Vec<(&'static str, Digest)>, Error> {
        let folder = folder.trim_end_matches('/');
        let fetcher = Fetcher::new(folder, false, self.patience).await?;
        let mut files = Vec::new();
        for name in FILES {
            let url = format!("{folder}/{name}");
            report.say(Progress::of(Step::Digest, name));
            let expected = fetcher.digest_beside(&url, DIGEST).await?;
            let progress = Progress::of(Step::Download, name);
            let into = Receiving::create(&to.join(name), progress, report).await?;
            let found = fetcher.file(&url, MAX_FILE, into).await?;
            files.push((name, found.must_be(expected, name)?));
        }
        Ok(files)
    }
}

async fn copy(
    folder: &Path,
    trusted: bool,
    to: &Path,
    report: &Reporter,
) -> Result<Vec<(&'static str, Digest)>, Error> {
    let mut files = Vec::new();
    for name in FILES {
        let path = folder.join(name);
        report.say(Progress::of(Step::Digest, name));
        let expected = if trusted {
            None
        } else {
            Some(local::digest_beside(&path, DIGEST).await?)
        };
        let progress = Progress::of(Step::Copy, name);
        let into = Receiving::create(&to.join(name), progress, report).await?;
        let found = local::copy(&path, MAX_FILE, into).await?;
        let expected = expected.unwrap_or(found);
        files.push((name, found.must_be(expected, &path.display().to_string())?));
    }
    Ok(files)
}

/// Looks at what has come, on a thread that may wait for the disk.
async fn look_at(staging: Staging, report: Reporter) -> Result<Staging, Error> {
    let content = staging.content();
    let work = tokio::task::spawn_blocking(move || {
        for name in FILES {
            report.say(Progress::of(Step::Try, name));
            entries::check(&staging.content().join(name), name)?;
        }
        Ok(staging)
    });
    work.await
        .map_err(|error| Error::disk(&content)(error.into()))?
}

impl StagedGeo {
    /// The folder with both files, where a core can be tried with them.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.staging.content()
    }

    /// Makes them some of the node's geo files, by a name made of the region and of what they are; the very
    /// same are not kept twice. Old ones go; those that are used and those before do not.
    ///
    /// # Errors
    /// When the disk refuses; the files that are used are as before then.
    pub fn keep(self) -> Result<Kept, Error> {
        self.staging.keep(&self.name, &self.record)
    }
}

#[cfg(test)]
mod tests;
