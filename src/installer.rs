//! Brings cores and geo files to a node that serves: fetched, checked, tried with the configuration of now, switched,
//! and handed over to; and everything as before when one of that fails.
//!
//! What has begun goes on when its caller hangs up, and nobody else installs meanwhile: a switch is either kept, with
//! a core that has taken over, or taken back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::task::TaskTracker;

use crate::node::{self, Node, ServedLast};
use crate::panel::maintenance::{self, Failure};
use crate::settings::{InstallSettings, Mistakes, Settings};
use crate::xray::core::Launcher;
use crate::xray::install::{
    self, Cores, GeoFiles, GeoSource, Kept, Region, Reporter, Shelf, Source, Switched, Turn, Wanted,
};
use crate::xray::parts::Parts;

/// Why nothing was installed, or what was installed is not used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is wrong with what was to be installed, or with the disk.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The operator names what is used.
    #[error(
        "{variable} names what is used ({path}), so nothing that is installed would be: take it out of the node's settings, restart the node, and try again", path = .path.display()
    )]
    Named {
        /// The setting.
        variable: &'static str,
        /// What it names.
        path: PathBuf,
    },
    /// It does not run what is served now.
    #[error("it does not run the configuration of now: {0}; nothing changed")]
    Tried(node::Error),
    /// Nobody could tell whether it would.
    #[error("it could not be tried: {0}; nothing changed")]
    Untried(node::Error),
    /// It did not take over.
    #[error(
        "it does not take over from the core that serves: {0}; what was used before is used again"
    )]
    NotTakenOver(node::Error),
    /// And what was used before could not be put back.
    #[error(
        "it does not take over from the core that serves: {refused}; and it could not be taken back: {failed}"
    )]
    NotTakenBack {
        /// Why it does not.
        refused: Box<node::Error>,
        /// Why it could not.
        failed: install::Error,
    },
    /// The settings can't be read any more.
    #[error("the node's settings are wrong:\n{0}")]
    Settings(#[from] Mistakes),
    /// A defect.
    #[error(
        "the installation broke off, which is a defect of this program: the log says how, and `raynode core list` what is used"
    )]
    Broken,
    /// The node is ending.
    #[error("the node is shutting down; what was used before is used still")]
    Ending,
}

/// What is used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// What it is called.
    pub name: String,
    /// What was used before.
    pub before: Option<String>,
    /// The very same was there already.
    pub reused: bool,
}

/// What has to run what is installed.
#[derive(Clone, Debug)]
enum Serves {
    /// A node that serves, or could.
    Now(Node),
    /// The daemon that comes, with what was served last.
    Later(Arc<(Launcher, Option<ServedLast>)>),
}

impl Serves {
    async fn would_run(&self, parts: Parts) -> Result<(), Error> {
        let tried = match self {
            Self::Now(node) => node.would_run(parts).await,
            Self::Later(later) => match &**later {
                (launcher, Some(last)) => last.would_run(launcher, &parts).await,
                (_, None) => Ok(()),
            },
        };
        tried.map_err(|error| match error {
            node::Error::Occupied(_) | node::Error::ShuttingDown => Error::Untried(error),
            _ => Error::Tried(error),
        })
    }

    async fn renew(&self, settings: &Settings) -> Result<(), node::Error> {
        match self {
            Self::Now(node) => node.renew(settings.core.parts(), settings.handover).await,
            Self::Later(_) => Ok(()),
        }
    }
}

/// What is installed: each has a shelf, and a part of what cores are made of.
#[derive(Clone, Copy, Debug)]
enum Ware {
    Core,
    GeoFiles,
}

/// Installs for one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Installer {
    serves: Serves,
    settings: fn() -> Result<Settings, Mistakes>,
    cores: Cores,
    geo_files: GeoFiles,
    sources: InstallSettings,
    under_way: TaskTracker,
}

impl Installer {
    /// For this node. Clears away what an installation left that was cut off.
    #[must_use]
    pub fn new(node: Node, state_dir: &Path, sources: InstallSettings) -> Self {
        let installer = Self {
            serves: Serves::Now(node),
            settings: Settings::load,
            cores: Cores::new(state_dir),
            geo_files: GeoFiles::new(state_dir),
            sources,
            under_way: TaskTracker::new(),
        };
        for shelf in [installer.cores.shelf(), installer.geo_files.shelf()] {
            if let Err(error) = shelf.tidy() {
                tracing::warn!(%error, "what an installation left was not cleared away");
            }
        }
        installer
    }

    /// For the daemon that comes: nobody serves, or whoever serves is left alone.
    #[must_use]
    pub fn without_a_daemon(launcher: Launcher, settings: Settings) -> Self {
        let Settings {
            state_dir,
            runtime_dir,
            sources,
            ..
        } = settings;
        let last = ServedLast::read(&state_dir, &runtime_dir);
        Self {
            serves: Serves::Later(Arc::new((launcher, last))),
            settings: Settings::find,
            cores: Cores::new(&state_dir),
            geo_files: GeoFiles::new(&state_dir),
            sources,
            under_way: TaskTracker::new(),
        }
    }

    /// The cores that are installed.
    #[must_use]
    pub fn cores(&self) -> &Cores {
        &self.cores
    }

    /// Where releases come from.
    #[must_use]
    pub fn releases(&self, sha256: Option<install::Digest>) -> Source {
        Source::Releases {
            url: self.sources.releases.clone(),
            sha256,
        }
    }

    /// Gets a core and uses it.
    ///
    /// # Errors
    /// With the first thing that is wrong; what was used before is used still, or again.
    pub async fn install_core(
        &self,
        source: Source,
        wanted: Wanted,
        report: Reporter,
    ) -> Result<Used, Error> {
        let this = self.clone();
        self.whatever_its_caller_does(async move {
            let parts = this.parts_to_come(Ware::Core)?;
            let staged = this.cores.stage(&source, &wanted, &report).await?;
            let binary = staged.binary();
            this.serves.would_run(parts.with_binary(binary)).await?;
            this.use_kept(staged.keep()?).await
        })
        .await
    }

    /// Gets geo files and uses them.
    ///
    /// # Errors
    /// As for a core.
    pub async fn install_geo_files(&self, region: Region, report: Reporter) -> Result<Used, Error> {
        let this = self.clone();
        self.whatever_its_caller_does(async move {
            let parts = this.parts_to_come(Ware::GeoFiles)?;
            let source = match this.sources.geo_files.clone() {
                Some(url) => GeoSource::Mirror { url, region },
                None => GeoSource::Region(region),
            };
            let staged = this.geo_files.stage(&source, &report).await?;
            let assets = staged.folder();
            this.serves.would_run(parts.with_assets(assets)).await?;
            this.use_kept(staged.keep()?).await
        })
        .await
    }

    /// Uses a core that is installed.
    ///
    /// # Errors
    /// When there is none of that name, or it does not run what is served.
    pub async fn use_core(&self, name: String) -> Result<Used, Error> {
        self.exchange(Ware::Core, Some(name)).await
    }

    /// Uses the core again that was used before.
    ///
    /// # Errors
    /// When there is none, or it does not run what is served.
    pub async fn roll_back_core(&self) -> Result<Used, Error> {
        self.exchange(Ware::Core, None).await
    }

    /// Uses the geo files again that were used before.
    ///
    /// # Errors
    /// When there are none, or the core does not run with them.
    pub async fn roll_back_geo_files(&self) -> Result<Used, Error> {
        self.exchange(Ware::GeoFiles, None).await
    }

    /// Uses the one of that name, or the one of before.
    async fn exchange(&self, ware: Ware, name: Option<String>) -> Result<Used, Error> {
        let this = self.clone();
        self.whatever_its_caller_does(async move {
            let parts = this.parts_to_come(ware)?;
            let turn = this.shelf(ware).turn()?;
            let place = match &name {
                Some(name) => turn.place(name)?,
                None => turn.place_of_previous()?,
            };
            let parts = match ware {
                Ware::Core => parts.with_binary(place.join("xray")),
                Ware::GeoFiles => parts.with_assets(place),
            };
            this.serves.would_run(parts).await?;
            let switched = match name {
                Some(name) => turn.switch_to(&name)?,
                None => turn.rollback()?,
            };
            this.take_over(&turn, switched, true).await
        })
        .await
    }

    fn shelf(&self, ware: Ware) -> &Shelf {
        match ware {
            Ware::Core => self.cores.shelf(),
            Ware::GeoFiles => self.geo_files.shelf(),
        }
    }

    async fn use_kept(&self, kept: Kept) -> Result<Used, Error> {
        let reused = kept.reused();
        let (turn, switched) = kept.switch()?;
        self.take_over(&turn, switched, reused).await
    }

    /// What serves makes way for what is used now; when that does not take over, the switch is taken back.
    async fn take_over(
        &self,
        turn: &Turn,
        switched: Switched,
        reused: bool,
    ) -> Result<Used, Error> {
        let renewed = match (self.settings)() {
            Ok(settings) => self.serves.renew(&settings).await,
            Err(mistakes) => {
                turn.undo(&switched)?;
                return Err(mistakes.into());
            }
        };
        if let Err(refused) = renewed {
            return Err(match turn.undo(&switched) {
                Ok(()) => Error::NotTakenOver(refused),
                Err(failed) => Error::NotTakenBack {
                    refused: Box::new(refused),
                    failed,
                },
            });
        }
        let Switched { now, before, .. } = switched;
        tracing::info!(name = now, before, "this is used now");
        Ok(Used {
            name: now,
            before,
            reused,
        })
    }

    /// What the next core is made of; only where the operator has not named what is to be exchanged.
    fn parts_to_come(&self, ware: Ware) -> Result<Parts, Error> {
        let settings = (self.settings)()?;
        let (variable, named) = match ware {
            Ware::Core => ("XRAY_EXECUTABLE_PATH", &settings.core.binary),
            Ware::GeoFiles => ("XRAY_ASSETS_PATH", &settings.core.assets),
        };
        match named.clone() {
            Some(path) => Err(Error::Named { variable, path }),
            None => Ok(settings.core.parts()),
        }
    }

    /// A switch that is cut off would leave what nobody has tried.
    async fn whatever_its_caller_does(
        &self,
        work: impl Future<Output = Result<Used, Error>> + Send + 'static,
    ) -> Result<Used, Error> {
        let task = self.under_way.spawn(work);
        task.await.unwrap_or_else(|ended| {
            Err(if ended.is_panic() {
                Error::Broken
            } else {
                Error::Ending
            })
        })
    }
}

impl maintenance::Installer for Installer {
    fn install_core<'a>(&'a self, version: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async {
            let wanted = version
                .parse()
                .map_err(|error| of(&Error::Install(error)))?;
            let (source, report) = (self.releases(None), Reporter::silent());
            let installed = self.install_core(source, wanted, report).await;
            installed.map(drop).map_err(|error| of(&error))
        })
    }

    fn update_geo_files<'a>(&'a self, region: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async {
            let region = region.parse().map_err(|error| of(&Error::Install(error)))?;
            let installed = self.install_geo_files(region, Reporter::silent()).await;
            installed.map(drop).map_err(|error| of(&error))
        })
    }
}

fn of(error: &Error) -> Failure {
    let text = error.to_string();
    match error {
        Error::Named { .. } => Failure::NotHere(text),
        Error::Install(
            install::Error::NotAVersion(_)
            | install::Error::NotARegion(_)
            | install::Error::Status { .. }
            | install::Error::NoDigest { .. },
        ) => Failure::NoSuch(text),
        _ => Failure::Failed(text),
    }
}
