//! `raynode core`: versions of Xray and geo files.

mod alone;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use self::alone::Alone;
use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{Form, POOR, bytes, day, say, say_json, styled, table, waiting};
use crate::lock::Lock;
use crate::proto::raynode::v1::install_core_request::Part;
use crate::proto::raynode::v1::install_progress::State;
use crate::proto::raynode::v1::{
    CoreOrder, InstallCoreRequest, InstallGeoFilesRequest, InstallProgress, InstallStep, Installed,
    ListInstalledCoresRequest, ListInstalledCoresResponse, RollBackCoreRequest,
    RollBackGeoFilesRequest, UseCoreRequest,
};
use crate::settings::Settings;
use crate::xray::install;

/// How much of an archive goes in one message.
const PIECE: usize = 1 << 18;
/// How many of them wait for the daemon.
const PIECES: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// What is installed, and what is used.
    List {
        #[command(flatten)]
        form: Form,
    },
    /// Install a version of Xray and use it: checked, tried with the configuration of now, and handed over to.
    Install {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        form: Form,
    },
    /// Use one that is installed.
    Use {
        /// Its name, as the list has it.
        name: String,
        #[command(flatten)]
        form: Form,
    },
    /// Use the one again that was used before.
    Rollback {
        /// Geo files instead of the core.
        #[arg(long)]
        geo: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Install the geo files for a region, and use them.
    Geo {
        /// iran, russia or china.
        region: String,
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Debug, clap::Args)]
struct Order {
    /// A version such as 26.3.27, or latest.
    #[arg(default_value = "latest", value_parser = a_version)]
    version: String,
    /// What the archive must be, 64 hexadecimal digits. Without it: what the .dgst file beside it says.
    #[arg(long, value_parser = a_digest)]
    sha256: Option<String>,
    /// An archive on this machine, such as Xray-linux-64.zip, instead of one from the releases.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Take the archive as it is, without a SHA-256.
    #[arg(long, requires = "from", conflicts_with = "sha256")]
    trust: bool,
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn a_version(text: &str) -> Result<String, String> {
    let parsed = text.parse::<install::Wanted>();
    parsed
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

fn a_digest(text: &str) -> Result<String, String> {
    let parsed = text.parse::<install::Digest>();
    parsed
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}

impl Order {
    /// What is wanted, and the archive on this machine.
    fn parts(self) -> (CoreOrder, Option<PathBuf>) {
        let order = CoreOrder {
            version: self.version,
            sha256: self.sha256.unwrap_or_default(),
            upload: self.from.is_some(),
            trusted: self.trust,
            file_name: self.from.as_deref().map_or_else(String::new, file_name),
        };
        (order, self.from)
    }
}

pub(super) async fn run(settings: Settings, arguments: Arguments) -> Result<ExitCode, Failure> {
    match Daemon::find(&settings.runtime_dir).await {
        Ok(daemon) => through(&daemon, arguments.command).await?,
        Err(Failure::NoDaemon { socket, reason }) => {
            if Lock::holder(&settings.runtime_dir).ok().flatten().is_some() {
                // One that is about to answer, or to end.
                return Err(Failure::NoDaemon { socket, reason });
            }
            without(&Alone::new(settings), arguments.command).await?;
        }
        Err(other) => return Err(other),
    }
    Ok(ExitCode::SUCCESS)
}

async fn through(daemon: &Daemon, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { form } => {
            let request = ListInstalledCoresRequest {};
            let listed = daemon.installed().list_installed_cores(request).await?;
            list(&listed.into_inner(), form)
        }
        Command::Install { order, form } => {
            let (order, from) = order.parts();
            tell(&order_core(daemon, order, from.as_deref()).await?, form)
        }
        Command::Use { name, form } => {
            let request = UseCoreRequest { name };
            let shown = waiting("handing over");
            let used = daemon.installing().use_core(request).await;
            shown.finish_and_clear();
            tell(&used?.into_inner(), form)
        }
        Command::Rollback { geo, form } => {
            let shown = waiting("handing over");
            let mut installing = daemon.installing();
            let used = if geo {
                let request = RollBackGeoFilesRequest {};
                installing.roll_back_geo_files(request).await
            } else {
                installing.roll_back_core(RollBackCoreRequest {}).await
            };
            shown.finish_and_clear();
            tell(&used?.into_inner(), form)
        }
        Command::Geo { region, form } => {
            let request = InstallGeoFilesRequest { region };
            let steps = daemon.installing().install_geo_files(request).await?;
            tell(&follow(steps.into_inner()).await?, form)
        }
    }
}

async fn without(alone: &Alone, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { form } => list(&alone.list().await?, form),
        Command::Install { order, form } => {
            let (order, from) = order.parts();
            tell(&alone.install(&order, from.as_deref()).await?, form)
        }
        Command::Use { name, form } => tell(&alone.use_core(&name).await?, form),
        Command::Rollback { geo, form } => tell(&alone.roll_back(geo).await?, form),
        Command::Geo { region, form } => tell(&alone.geo(&region).await?, form),
    }
}

fn list(listed: &ListInstalledCoresResponse, form: Form) -> Result<(), Failure> {
    if form.json {
        return say_json("ListInstalledCoresResponse", listed);
    }
    let mut shown = table(&["NAME", "VERSION", ">SIZE", "SINCE", ""]);
    for core in &listed.cores {
        let role = match (core.in_use, core.previous) {
            (true, _) => "in use",
            (false, true) => "before",
            (false, false) => "",
        };
        shown.add_row([
            core.name.clone(),
            core.version.clone(),
            bytes(core.size),
            day(core.installed),
            role.to_owned(),
        ]);
    }
    if !listed.cores.is_empty() {
        say(shown.trim_fmt())?;
    }
    let version = match listed.version.as_str() {
        "" => "no Xray".to_owned(),
        version => format!("Xray {version}"),
    };
    say(format!("the next core is {} ({version})", listed.binary))?;
    if !listed.managed {
        let text = "XRAY_EXECUTABLE_PATH names it, so none that is installed is used";
        say(styled(POOR, text))?;
    }
    Ok(())
}

async fn order_core(
    daemon: &Daemon,
    mut order: CoreOrder,
    from: Option<&Path>,
) -> Result<Installed, Failure> {
    if let Some(path) = from
        && order.sha256.is_empty()
        && !order.trusted
    {
        let digest = install::digest_beside(path).await;
        let digest = digest.map_err(|error| Failure::Other(error.to_string()))?;
        order.sha256 = digest.to_string();
    }
    let (pieces, sent) = mpsc::channel(PIECES);
    let first = InstallCoreRequest {
        part: Some(Part::Order(order)),
    };
    drop(pieces.send(Some(first)).await);
    let reading = match from {
        Some(path) => Some((open(path).await?, path.to_owned())),
        None => None,
    };
    let sending = tokio::spawn(send(reading, pieces));
    let sent = futures_util::stream::unfold(sent, |mut sent| async move {
        match sent.recv().await {
            Some(message) => Some((message?, sent)),
            // What was cut must not look whole.
            None => std::future::pending().await,
        }
    });
    let steps = daemon.installing().install_core(sent).await?;
    tokio::select! {
        done = follow(steps.into_inner()) => done,
        Ok(Err(unread)) = sending => Err(unread),
    }
}

async fn open(path: &Path) -> Result<File, Failure> {
    let file = File::open(path).await;
    file.map_err(Failure::of(path.display()))
}

/// Sends a file piece by piece, and `None` behind the last one. Whoever takes them may stop at any time.
async fn send(
    reading: Option<(File, PathBuf)>,
    pieces: mpsc::Sender<Option<InstallCoreRequest>>,
) -> Result<(), Failure> {
    if let Some((mut file, path)) = reading {
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece).await;
            let length = read.map_err(Failure::of(path.display()))?;
            if length == 0 {
                break;
            }
            let archive = piece.get(..length).unwrap_or_default().to_vec();
            let message = InstallCoreRequest {
                part: Some(Part::Archive(archive)),
            };
            if pieces.send(Some(message)).await.is_err() {
                return Ok(());
            }
        }
    }
    drop(pieces.send(None).await);
    Ok(())
}

/// Shows how far it is, until it is done.
async fn follow(mut steps: Streaming<InstallProgress>) -> Result<Installed, Failure> {
    // Cleared also where nobody waits for the end.
    let bar = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    while let Some(progress) = steps.message().await? {
        match progress.state {
            Some(State::Step(step)) => show(&bar, &step),
            Some(State::Done(done)) => {
                bar.finish_and_clear();
                return Ok(done);
            }
            None => {}
        }
    }
    bar.finish_and_clear();
    Err(Status::unavailable("the node ended; what was used before is used still").into())
}

fn show(bar: &ProgressBar, step: &InstallStep) {
    let measured =
        ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}");
    if step.total > 0
        && let Ok(style) = measured
    {
        bar.set_style(style);
        bar.set_length(step.total);
        bar.set_position(step.done);
    } else {
        bar.set_style(ProgressStyle::default_spinner());
    }
    bar.set_message(format!("{} {}", step.name, step.file));
}

fn tell(used: &Installed, form: Form) -> Result<(), Failure> {
    if form.json {
        return say_json("Installed", used);
    }
    let before = match used.before.as_str() {
        before if before.is_empty() || before == used.name => String::new(),
        before => format!(", before {before}; `raynode core rollback` goes back"),
    };
    say(format!("{} is used now{before}", used.name))?;
    match used.serving.as_str() {
        "" => say("no core serves: the next one is made of it"),
        version => say(format!("Xray {version} serves")),
    }
}
