//! Brings cores and geo files to a node that serves: fetched, checked, tried with the configuration of now, switched,
//! and handed over to; and everything as before when one of that fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::node::{self, Node, ServedLast};
use crate::panel::maintenance::{self, Failure};
use crate::settings::{InstallSettings, Mistakes, Settings};
use crate::xray::core::Launcher;
use crate::xray::install::{
    self, Cores, GeoFiles, GeoSource, Region, Reporter, Shelf, Source, Switched, Wanted,
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
    /// It did not take over.
    #[error(
        "it does not take over from the core that serves: {0}; what was used before is used again"
    )]
    NotTakenOver(node::Error),
    /// The settings can't be read any more.
    #[error("the node's settings are wrong:\n{0}")]
    Settings(#[from] Mistakes),
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
    async fn would_run(&self, parts: Parts) -> Result<(), node::Error> {
        match self {
            Self::Now(node) => node.would_run(parts).await,
            Self::Later(later) => match &**later {
                (launcher, Some(last)) => last.would_run(launcher, &parts).await,
                (_, None) => Ok(()),
            },
        }
    }

    async fn renew(&self, settings: &Settings) -> Result<(), node::Error> {
        match self {
            Self::Now(node) => node.renew(settings.core.parts(), settings.handover).await,
            Self::Later(_) => Ok(()),
        }
    }
}

/// Installs for one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Installer {
    serves: Serves,
    settings: fn() -> Result<Settings, Mistakes>,
    cores: Cores,
    geo_files: GeoFiles,
    sources: InstallSettings,
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
        source: &Source,
        wanted: &Wanted,
        report: &Reporter,
    ) -> Result<Used, Error> {
        self.may_choose_core()?;
        let staged = self.cores.stage(source, wanted, report).await?;
        let mut parts = (self.settings)()?.core.parts();
        parts.binary = staged.binary();
        let tried = self.serves.would_run(parts).await;
        tried.map_err(Error::Tried)?;
        let kept = staged.keep()?;
        let reused = kept.reused();
        let switched = kept.switch()?;
        self.take_over(self.cores.shelf(), switched, reused).await
    }

    /// Uses a core that is installed.
    ///
    /// # Errors
    /// When there is none of that name, or it does not take over.
    pub async fn use_core(&self, name: &str) -> Result<Used, Error> {
        self.may_choose_core()?;
        let switched = self.cores.shelf().switch_to(name)?;
        self.take_over(self.cores.shelf(), switched, true).await
    }

    /// Uses the core again that was used before.
    ///
    /// # Errors
    /// When there is none, or it does not take over.
    pub async fn roll_back_core(&self) -> Result<Used, Error> {
        self.may_choose_core()?;
        let switched = self.cores.shelf().rollback()?;
        self.take_over(self.cores.shelf(), switched, true).await
    }

    /// Gets geo files and uses them.
    ///
    /// # Errors
    /// As for a core.
    pub async fn install_geo_files(
        &self,
        region: Region,
        report: &Reporter,
    ) -> Result<Used, Error> {
        self.may_choose_assets()?;
        let source = match &self.sources.geo_files {
            Some(url) => GeoSource::Mirror {
                url: url.clone(),
                region,
            },
            None => GeoSource::Region(region),
        };
        let staged = self.geo_files.stage(&source, report).await?;
        let mut parts = (self.settings)()?.core.parts();
        parts.assets = staged.folder();
        let tried = self.serves.would_run(parts).await;
        tried.map_err(Error::Tried)?;
        let kept = staged.keep()?;
        let reused = kept.reused();
        let switched = kept.switch()?;
        self.take_over(self.geo_files.shelf(), switched, reused)
            .await
    }

    /// Uses the geo files again that were used before.
    ///
    /// # Errors
    /// When there are none, or the core does not run with them.
    pub async fn roll_back_geo_files(&self) -> Result<Used, Error> {
        self.may_choose_assets()?;
        let switched = self.geo_files.shelf().rollback()?;
        self.take_over(self.geo_files.shelf(), switched, true).await
    }

    /// What serves makes way for what is used now; when that does not take over, the switch is taken back.
    async fn take_over(
        &self,
        place: &Shelf,
        switched: Switched,
        reused: bool,
    ) -> Result<Used, Error> {
        let settings = (self.settings)()?;
        if let Err(error) = self.serves.renew(&settings).await {
            place.undo(&switched)?;
            if let Err(error) = self.serves.renew(&settings).await {
                tracing::error!(%error, "the core of before is not what the next one is made of");
            }
            return Err(Error::NotTakenOver(error));
        }
        let Switched { now, before, .. } = switched;
        tracing::info!(name = now, before, "this is used now");
        Ok(Used {
            name: now,
            before,
            reused,
        })
    }

    fn may_choose_core(&self) -> Result<(), Error> {
        match (self.settings)()?.core.binary {
            None => Ok(()),
            Some(path) => Err(Error::Named {
                variable: "XRAY_EXECUTABLE_PATH",
                path,
            }),
        }
    }

    fn may_choose_assets(&self) -> Result<(), Error> {
        match (self.settings)()?.core.assets {
            None => Ok(()),
            Some(path) => Err(Error::Named {
                variable: "XRAY_ASSETS_PATH",
                path,
            }),
        }
    }
}

impl maintenance::Installer for Installer {
    fn install_core<'a>(&'a self, version: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async {
            let wanted = version
                .parse()
                .map_err(|error| of(&Error::Install(error)))?;
            let (source, report) = (self.releases(None), Reporter::silent());
            let installed = self.install_core(&source, &wanted, &report).await;
            installed.map(drop).map_err(|error| of(&error))
        })
    }

    fn update_geo_files<'a>(&'a self, region: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async {
            let region = region.parse().map_err(|error| of(&Error::Install(error)))?;
            let installed = self.install_geo_files(region, &Reporter::silent()).await;
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
