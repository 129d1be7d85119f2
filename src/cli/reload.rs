//! `raynode reload`: the daemon that runs with these settings reads them anew.

use std::process::ExitCode;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::say;
use crate::proto::raynode::v1::ReloadRequest;
use crate::settings::Settings;

pub(super) async fn run(settings: &Settings) -> Result<ExitCode, Failure> {
    let daemon = Daemon::find(&settings.runtime_dir).await?;
    daemon.operator().reload(ReloadRequest {}).await?;
    say("told the node; its log says what it took over")?;
    Ok(ExitCode::SUCCESS)
}
