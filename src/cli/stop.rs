//! `raynode stop` and `raynode restart`: the daemon ends, or makes way for the binary on disk.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{say, waiting};
use crate::lock::Lock;
use crate::proto::raynode::v1::{GetStatusRequest, RenewCoreRequest, RestartRequest, StopRequest};

/// How long node and core may take to end: harvest, goodbyes and the core's own patience.
const END: Duration = Duration::from_secs(40);
/// How long the binary on disk may take to serve.
const RETURN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct RestartArguments {
    /// Give what is served a fresh core instead; the daemon stays.
    #[arg(long)]
    core: bool,
}

pub(super) async fn stop(runtime_dir: &Path) -> Result<ExitCode, Failure> {
    let folder = runtime_dir;
    let daemon = Daemon::find(folder).await?;
    daemon.operator().stop(StopRequest {}).await?;
    let shown = waiting("stopping node and core");
    let ended = until(END, || Ok(Lock::holder(folder)?.is_none()));
    let ended = ended.await.map_err(Failure::of(folder.display()))?;
    shown.finish_and_clear();
    if !ended {
        return Err(Failure::Other(format!(
            "the node does not end within {} s; its log says what it waits for",
            END.as_secs()
        )));
    }
    say("stopped")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restart(
    runtime_dir: &Path,
    arguments: &RestartArguments,
) -> Result<ExitCode, Failure> {
    let daemon = Daemon::find(runtime_dir).await?;
    if arguments.core {
        return renew(&daemon).await;
    }
    let before = daemon.operator().get_status(GetStatusRequest {}).await?;
    let told = daemon.operator().restart(RestartRequest {}).await?;
    let version = told.into_inner().version;
    let shown = waiting("making way for the binary on disk");
    let came = back(runtime_dir, &before.into_inner().instance).await;
    shown.finish_and_clear();
    if !came {
        return Err(Failure::Other(format!(
            "raynode {version} did not take over within {} s; the core serves on, and the node's log says why",
            RETURN.as_secs()
        )));
    }
    say(format!(
        "raynode {version} serves; no connection was closed"
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn renew(daemon: &Daemon) -> Result<ExitCode, Failure> {
    let shown = waiting("starting another core beside the one that serves");
    let renewed = daemon.fresh_core().renew_core(RenewCoreRequest {}).await;
    shown.finish_and_clear();
    let core = renewed?.into_inner().core.unwrap_or_default();
    say(format!("Xray {}, pid {}, serves", core.version, core.pid))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether another daemon than that one answers before long.
async fn back(runtime_dir: &Path, before: &str) -> bool {
    let deadline = Instant::now() + RETURN;
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        let Ok(daemon) = Daemon::find(runtime_dir).await else {
            continue;
        };
        if let Ok(status) = daemon.operator().get_status(GetStatusRequest {}).await
            && status.into_inner().instance != before
        {
            return true;
        }
    }
    false
}

async fn until(
    patience: Duration,
    mut is_so: impl FnMut() -> std::io::Result<bool>,
) -> std::io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        if is_so()? {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK).await;
    }
}
