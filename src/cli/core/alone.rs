//! The same with no daemon: what is installed is used by the one that comes.

use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use tokio::sync::watch;

use super::{Failure, show};
use crate::installer::{Installer, Used};
use crate::proto::raynode::v1::{
    CoreOrder, InstallStep, Installed, InstalledCore, ListInstalledCoresResponse,
};
use crate::settings::Settings;
use crate::xray::core::Launcher;
use crate::xray::install::{Progress, Proof, Reporter, Source};
use crate::xray::logs::Logs;

/// Installs where no daemon runs, as the user to whom the node's folder belongs.
pub(super) struct Alone {
    installer: Installer,
    launcher: Launcher,
    binary: String,
    managed: bool,
}

impl Alone {
    pub(super) fn new(settings: Settings) -> Self {
        let parts = settings.core.parts();
        let managed = settings.core.binary.is_none();
        let binary = parts.binary.display().to_string();
        let launcher = || {
            let logs = Arc::new(Logs::new(1));
            let launcher = Launcher::new(parts.clone(), settings.runtime_dir.clone(), logs);
            launcher.as_the_owner_of(&settings.state_dir)
        };
        let (ours, its) = (launcher(), launcher());
        Self {
            installer: Installer::without_a_daemon(its, settings),
            launcher: ours,
            binary,
            managed,
        }
    }

    pub(super) async fn list(&self) -> Result<ListInstalledCoresResponse, Failure> {
        let cores = self.installer.cores().shelf().list();
        let version = self.launcher.version().await.ok();
        Ok(ListInstalledCoresResponse {
            cores: cores
                .map_err(failed)?
                .into_iter()
                .map(InstalledCore::from)
                .collect(),
            binary: self.binary.clone(),
            version: version.map(|known| known.to_string()).unwrap_or_default(),
            managed: self.managed,
        })
    }

    pub(super) async fn install(
        &self,
        order: &CoreOrder,
        from: Option<&Path>,
    ) -> Result<Installed, Failure> {
        let wanted = order.version.parse().map_err(failed)?;
        let sha256 = match order.sha256.as_str() {
            "" => None,
            text => Some(text.parse().map_err(failed)?),
        };
        let source = match (from, sha256) {
            (None, sha256) => self.installer.releases(sha256),
            (Some(path), sha256) => Source::File {
                path: path.to_owned(),
                name: path.display().to_string(),
                proof: match sha256 {
                    Some(digest) => Proof::Sha256(digest),
                    None if order.trusted => Proof::Trusted,
                    None => Proof::Beside,
                },
            },
        };
        let (report, steps) = Reporter::new();
        let work = self.installer.install_core(source, wanted, report);
        shown(steps, work).await
    }

    pub(super) async fn use_core(&self, name: &str) -> Result<Installed, Failure> {
        done(self.installer.use_core(name.to_owned()).await)
    }

    pub(super) async fn roll_back(&self, geo: bool) -> Result<Installed, Failure> {
        done(if geo {
            self.installer.roll_back_geo_files().await
        } else {
            self.installer.roll_back_core().await
        })
    }

    pub(super) async fn geo(&self, region: &str) -> Result<Installed, Failure> {
        let region = region.parse().map_err(failed)?;
        let (report, steps) = Reporter::new();
        let work = self.installer.install_geo_files(region, report);
        shown(steps, work).await
    }
}

/// Shows how far some work is, until it is done.
async fn shown(
    mut steps: watch::Receiver<Option<Progress>>,
    work: impl Future<Output = Result<Used, crate::installer::Error>>,
) -> Result<Installed, Failure> {
    let bar = ProgressBar::new_spinner();
    let mut work = std::pin::pin!(work);
    let used = loop {
        tokio::select! {
            used = &mut work => break used,
            Ok(()) = steps.changed() => {
                let step = *steps.borrow_and_update();
                if let Some(step) = step {
                    show(&bar, &InstallStep::from(step));
                }
            }
        }
    };
    bar.finish_and_clear();
    done(used)
}

fn done(used: Result<Used, crate::installer::Error>) -> Result<Installed, Failure> {
    let used = used.map_err(failed)?;
    Ok(Installed {
        name: used.name,
        before: used.before.unwrap_or_default(),
        reused: used.reused,
        serving: String::new(),
    })
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Other(error.to_string())
}
