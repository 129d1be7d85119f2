//! `raynode logs`: what the cores say.

use std::path::Path;
use std::process::ExitCode;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{Form, POOR, say, say_json, styled};
use crate::proto::raynode::v1::ReadLogsRequest;
use crate::settings::a_span;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Go on with every line as it comes, also of later cores.
    #[arg(long, short)]
    follow: bool,
    /// Not older than this: 90s, 5m, 2h.
    #[arg(long, value_parser = since)]
    since: Option<u64>,
    /// Of connections of this user.
    #[arg(long)]
    user: Option<String>,
    /// Of connections through this inbound.
    #[arg(long)]
    inbound: Option<String>,
    /// Of this level or a worse one.
    #[arg(long, value_parser = ["debug", "info", "warning", "error"])]
    level: Option<String>,
    /// With this text in them.
    #[arg(long)]
    text: Option<String>,
    /// Of what is remembered only the last so many lines.
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    tail: Option<u64>,
    #[command(flatten)]
    form: Form,
}

fn since(text: &str) -> Result<u64, String> {
    let span = a_span(text).ok_or("not a span such as 90s, 5m or 2h")?;
    Ok(span.as_secs().max(1))
}

pub(super) async fn run(runtime_dir: &Path, arguments: Arguments) -> Result<ExitCode, Failure> {
    let daemon = Daemon::find(runtime_dir).await?;
    let request = ReadLogsRequest {
        follow: arguments.follow,
        since_seconds: arguments.since.unwrap_or(0),
        user: arguments.user.unwrap_or_default(),
        inbound: arguments.inbound.unwrap_or_default(),
        level: arguments.level.unwrap_or_default(),
        text: arguments.text.unwrap_or_default(),
        tail: arguments.tail.unwrap_or(0),
    };
    let mut lines = daemon.operator().read_logs(request).await?.into_inner();
    while let Some(line) = lines.message().await? {
        if arguments.form.json {
            say_json("LogLine", &line)?;
        } else if line.lost > 0 {
            let missing = format!(
                "{} lines are missing here: this viewer reads too slowly",
                line.lost
            );
            say(styled(POOR, missing))?;
        } else {
            say(line.text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
