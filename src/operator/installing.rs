//! The calls by which cores and geo files are installed: `raynode.v1.InstallService`.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::installer::{Error, Installer, Used};
use crate::node::Node;
use crate::proto::raynode::v1::install_core_request::Part;
use crate::proto::raynode::v1::install_progress::State;
use crate::proto::raynode::v1::install_service_server::{InstallService, InstallServiceServer};
use crate::proto::raynode::v1::{
    InstallCoreRequest, InstallGeoFilesRequest, InstallProgress, InstallStep, Installed,
    InstalledCore, ListInstalledCoresRequest, ListInstalledCoresResponse, RollBackCoreRequest,
    RollBackGeoFilesRequest, UseCoreRequest,
};
use crate::settings::Settings;
use crate::xray::install::{self, Progress, Proof, Reporter, Source, Wanted};

/// The largest archive that a caller may send.
const MAX_UPLOAD: u64 = 256 << 20;
/// How much of its name is kept, in characters.
const LONGEST_NAME: usize = 255;
const UNPROVEN: &str = "nobody says that the archive is the right one: give its SHA-256, put the .dgst file of the release beside it, or say that it is to be trusted";
/// How long the next piece of it may take.
const PIECE_DEADLINE: Duration = Duration::from_secs(60);
/// How many words of progress wait for who reads them.
const WORDS: usize = 8;

/// The service, over one node.
#[derive(Clone, Debug)]
pub struct Installing {
    node: Node,
    installer: Installer,
    /// Where an archive of the caller's is while it comes; one at a time.
    upload: Arc<Mutex<PathBuf>>,
}

type Streamed = Pin<Box<dyn Stream<Item = Result<InstallProgress, Status>> + Send>>;

impl Installing {
    /// Installs for `node`. What callers send is kept in `folder` for as long as it takes.
    #[must_use]
    pub fn new(node: Node, installer: Installer, folder: &Path) -> Self {
        let upload = folder.join("upload.zip");
        // One that was cut off when the last daemon ended.
        drop(std::fs::remove_file(&upload));
        Self {
            node,
            installer,
            upload: Arc::new(Mutex::new(upload)),
        }
    }

    /// The service as gRPC serves it, with messages of at most so many bytes.
    #[must_use]
    pub fn into_server(self, max_message: usize) -> InstallServiceServer<Self> {
        InstallServiceServer::new(self).max_decoding_message_size(max_message)
    }

    fn installed(&self, used: Used) -> Installed {
        let (cores, _) = self.node.cores();
        let serving = cores.first().filter(|core| core.serves);
        Installed {
            name: used.name,
            before: used.before.unwrap_or_default(),
            reused: used.reused,
            serving: serving.map_or_else(String::new, |core| core.version.to_string()),
        }
    }

    /// Tells how far some work is. It goes on when nobody listens any more.
    fn tell(
        &self,
        mut steps: watch::Receiver<Option<Progress>>,
        mut work: BoxFuture<'static, Result<Used, Status>>,
    ) -> Streamed {
        let (words, told) = mpsc::channel(WORDS);
        let this = self.clone();
        tokio::spawn(async move {
            let done = loop {
                tokio::select! {
                    biased;
                    done = &mut work => break done,
                    Ok(()) = steps.changed() => {
                        let step = *steps.borrow_and_update();
                        if let Some(step) = step {
                            // Whoever is slow to read hears of a later one.
                            drop(words.try_send(Ok(progress(step))));
                        }
                    }
                }
            };
            let last = done.map(|used| InstallProgress {
                state: Some(State::Done(this.installed(used))),
            });
            drop(words.send(last).await);
        });
        let told = futures_util::stream::unfold(told, |mut told| async move {
            let next = told.recv().await?;
            Some((next, told))
        });
        Box::pin(told)
    }

    async fn core(
        self,
        mut parts: Streaming<InstallCoreRequest>,
        report: Reporter,
    ) -> Result<Used, Status> {
        let first = parts.message().await?.and_then(|first| first.part);
        let Some(Part::Order(order)) = first else {
            return Err(Status::invalid_argument("the first message is no order"));
        };
        let wanted: Wanted = order.version.parse().map_err(invalid)?;
        let sha256 = match order.sha256.as_str() {
            "" => None,
            text => Some(text.parse().map_err(invalid::<install::NotADigest>)?),
        };
        let installer = &self.installer;
        if !order.upload {
            let source = installer.releases(sha256);
            let done = installer.install_core(source, wanted, report).await;
            return done.map_err(|error| status(&error));
        }
        let proof = match sha256 {
            Some(digest) => Proof::Sha256(digest),
            None if order.trusted => Proof::Trusted,
            None => return Err(Status::invalid_argument(UNPROVEN)),
        };
        let path = self.upload.lock().await;
        let source = Source::File {
            path: path.clone(),
            name: shown_name(&order.file_name),
            proof,
        };
        let done = match receive(&path, parts).await {
            Ok(()) => installer
                .install_core(source, wanted, report)
                .await
                .map_err(|error| status(&error)),
            Err(refused) => Err(refused),
        };
        drop(tokio::fs::remove_file(&*path).await);
        done
    }
}

/// What a caller calls its archive, as it can be shown and kept.
fn shown_name(text: &str) -> String {
    let name = text.rsplit('/').next().unwrap_or_default();
    let name = name.chars().filter(|char| !char.is_control());
    let name: String = name.take(LONGEST_NAME).collect();
    if name.is_empty() {
        return "an archive without a name".to_owned();
    }
    name
}

fn invalid<E: std::fmt::Display>(error: E) -> Status {
    Status::invalid_argument(error.to_string())
}

async fn receive(path: &Path, mut parts: Streaming<InstallCoreRequest>) -> Result<(), Status> {
    let full =
        |error: std::io::Error| Status::resource_exhausted(format!("{}: {error}", path.display()));
    let mut file = tokio::fs::File::create(path).await.map_err(full)?;
    let mut length = 0;
    loop {
        let next = tokio::time::timeout(PIECE_DEADLINE, parts.message()).await;
        let next = next.map_err(|_| Status::deadline_exceeded("the archive does not come"))?;
        let Some(message) = next? else {
            break;
        };
        let Some(Part::Archive(piece)) = message.part else {
            return Err(Status::invalid_argument("there is more than one order"));
        };
        length += piece.len() as u64;
        if length > MAX_UPLOAD {
            return Err(Status::invalid_argument(
                "the archive is larger than 256 MiB",
            ));
        }
        file.write_all(&piece).await.map_err(full)?;
    }
    file.flush().await.map_err(full)
}

#[tonic::async_trait]
impl InstallService for Installing {
    type InstallCoreStream = Streamed;

    async fn install_core(
        &self,
        request: Request<Streaming<InstallCoreRequest>>,
    ) -> Result<Response<Streamed>, Status> {
        let (report, steps) = Reporter::new();
        let work = self.clone().core(request.into_inner(), report);
        Ok(Response::new(self.tell(steps, work.boxed())))
    }

    async fn list_installed_cores(
        &self,
        _: Request<ListInstalledCoresRequest>,
    ) -> Result<Response<ListInstalledCoresResponse>, Status> {
        let cores = self.installer.cores().shelf().list();
        let cores = cores.map_err(|error| status(&error.into()))?;
        let settings = Settings::load().map_err(|mistakes| status(&mistakes.into()))?;
        Ok(Response::new(ListInstalledCoresResponse {
            cores: cores.into_iter().map(Into::into).collect(),
            binary: self.node.parts().binary.display().to_string(),
            version: self.node.base_info().await.core_version,
            managed: settings.core.binary.is_none(),
        }))
    }

    async fn use_core(
        &self,
        request: Request<UseCoreRequest>,
    ) -> Result<Response<Installed>, Status> {
        let used = self.installer.use_core(request.into_inner().name).await;
        let used = used.map_err(|error| status(&error))?;
        Ok(Response::new(self.installed(used)))
    }

    async fn roll_back_core(
        &self,
        _: Request<RollBackCoreRequest>,
    ) -> Result<Response<Installed>, Status> {
        let used = self.installer.roll_back_core().await;
        let used = used.map_err(|error| status(&error))?;
        Ok(Response::new(self.installed(used)))
    }

    type InstallGeoFilesStream = Streamed;

    async fn install_geo_files(
        &self,
        request: Request<InstallGeoFilesRequest>,
    ) -> Result<Response<Streamed>, Status> {
        let region = request.into_inner().region.parse();
        let region = region.map_err(|error: install::Error| status(&error.into()))?;
        let (report, steps) = Reporter::new();
        let installer = self.installer.clone();
        let work = async move {
            let used = installer.install_geo_files(region, report).await;
            used.map_err(|error| status(&error))
        };
        Ok(Response::new(self.tell(steps, work.boxed())))
    }

    async fn roll_back_geo_files(
        &self,
        _: Request<RollBackGeoFilesRequest>,
    ) -> Result<Response<Installed>, Status> {
        let used = self.installer.roll_back_geo_files().await;
        let used = used.map_err(|error| status(&error))?;
        Ok(Response::new(self.installed(used)))
    }
}

fn progress(step: Progress) -> InstallProgress {
    InstallProgress {
        state: Some(State::Step(step.into())),
    }
}

impl From<Progress> for InstallStep {
    fn from(progress: Progress) -> Self {
        Self {
            name: progress.step.to_string(),
            file: progress.file.to_owned(),
            done: progress.done,
            total: progress.total.unwrap_or(0),
        }
    }
}

impl From<install::Installed> for InstalledCore {
    fn from(installed: install::Installed) -> Self {
        let since = installed.installed.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since.unwrap_or_default().as_secs();
        Self {
            name: installed.name,
            version: installed.version,
            source: installed.source,
            installed: i64::try_from(seconds).unwrap_or(i64::MAX),
            size: installed.bytes,
            in_use: installed.in_use,
            previous: installed.previous,
        }
    }
}

fn status(error: &Error) -> Status {
    let code = match error {
        Error::Named { .. } | Error::Settings(_) => Code::FailedPrecondition,
        Error::Tried(_) | Error::NotTakenOver(_) | Error::NotTakenBack { .. } => {
            Code::InvalidArgument
        }
        Error::Untried(_) | Error::Ending => Code::Unavailable,
        Error::Broken => Code::Internal,
        Error::Install(error) => match error {
            install::Error::Busy { .. } => Code::Aborted,
            install::Error::Unknown { .. } | install::Error::NoPrevious => Code::NotFound,
            install::Error::Disk { .. } => Code::ResourceExhausted,
            install::Error::Unreachable { .. }
            | install::Error::Status { .. }
            | install::Error::Cut { .. }
            | install::Error::Stalled { .. }
            | install::Error::Late { .. } => Code::Unavailable,
            _ => Code::InvalidArgument,
        },
    };
    Status::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_line_and_no_path() {
        assert_eq!(shown_name("Xray-linux-64.zip"), "Xray-linux-64.zip");
        assert_eq!(shown_name("/etc/a\n\x1b[31mb.zip"), "a[31mb.zip");
        assert_eq!(shown_name(&"x".repeat(1000)).len(), LONGEST_NAME);
        assert_eq!(shown_name("\n"), "an archive without a name");
    }
}
