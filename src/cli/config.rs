//! `raynode config`: the settings in force, and what a configuration for Xray would do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{
    self, BAD, Form, GOOD, POOR, counted, keep_whole, say, say_json, styled, table,
};
use crate::doctor::{Changed, Written, written_since};
use crate::proto::raynode::v1::{
    CompareConfigRequest, CompareConfigResponse, GetSettingsRequest, Setting, Step,
};
use crate::settings::{Effective, Settings, Sources};
use crate::xray::config::{Nobody, Skeleton};
use crate::xray::core::Launcher;
use crate::xray::logs::Logs;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every setting, its value here, and where that comes from. Secrets are not shown.
    Show {
        #[command(flatten)]
        form: Form,
    },
    /// Whether Xray would run this configuration. Nothing is changed, and no daemon is needed.
    Check {
        /// Xray's configuration, JSON, as a panel sends it.
        file: PathBuf,
    },
    /// What a Start with this configuration would change, and whose connections would end.
    Diff {
        /// Xray's configuration, JSON, as a panel sends it.
        file: PathBuf,
        #[command(flatten)]
        form: Form,
    },
}

pub(super) async fn run(settings: Settings, arguments: Arguments) -> Result<ExitCode, Failure> {
    match arguments.command {
        Command::Show { form } => show(&settings, form).await,
        Command::Check { file } => check(settings, &file).await,
        Command::Diff { file, form } => diff(&settings, &file, form).await,
    }
}

/// What the daemon runs with; without one, what the next one would.
async fn show(settings: &Settings, form: Form) -> Result<ExitCode, Failure> {
    let sources = Sources::found();
    let asked = match Daemon::find(&settings.runtime_dir).await {
        Ok(daemon) => {
            let asked = daemon.operator().get_settings(GetSettingsRequest {}).await;
            asked
                .map(tonic::Response::into_inner)
                .map_err(Failure::from)
        }
        Err(none) => Err(none),
    };
    let shown_ones = if let Ok(in_force) = &asked {
        in_force.settings.clone()
    } else {
        let written = Effective::all(&sources, Uuid::nil()).into_iter();
        written.map(Setting::from).collect()
    };
    if form.json {
        match asked {
            Ok(_) | Err(Failure::NoDaemon { .. }) => {}
            Err(failure) => return Err(failure),
        }
        let all: Vec<_> = shown_ones
            .iter()
            .map(|one| json!({ "name": one.name, "value": one.value, "from": one.from }))
            .collect();
        say(serde_json::Value::from(all))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut shown = table(&["SETTING", "VALUE", "FROM"]);
    keep_whole(&mut shown, 0);
    for one in &shown_ones {
        shown.add_row([&one.name, &one.value, &one.from]);
    }
    say(shown.trim_fmt())?;
    let notes = match asked {
        Ok(in_force) => notes(written_since(&in_force, &sources), &sources),
        Err(Failure::NoDaemon { .. }) => Vec::new(),
        Err(failure) => vec![format!(
            "this is what is written; what is in force: {failure}"
        )],
    };
    for note in notes {
        say(styled(POOR, note))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn notes(written: Written, sources: &Sources) -> Vec<String> {
    match written {
        Written::Since(changed) => {
            let note = |Changed { name, value, mend }: Changed| {
                format!("{name} is {value} in the file, and not in force yet: {mend}")
            };
            changed.into_iter().map(note).collect()
        }
        Written::Elsewhere(its) => {
            let ours = sources.absolute_file();
            let ours = ours.display();
            vec![format!(
                "the daemon reads {its}, and commands given here read {ours}"
            )]
        }
    }
}

async fn check(settings: Settings, file: &Path) -> Result<ExitCode, Failure> {
    let skeleton = Skeleton::parse(&read(file)?, &[])
        .map_err(|error| Failure::Other(format!("{}: {error}", file.display())))?;
    let logs = Arc::new(Logs::new(1));
    let parts = settings.core.parts();
    let launcher =
        Launcher::new(parts, settings.runtime_dir, logs).as_the_owner_of(&settings.state_dir);
    let trying = output::waiting("trying it with Xray");
    let checked = launcher.check(&skeleton, &Nobody).await;
    trying.finish_and_clear();
    checked.map_err(|error| Failure::Other(format!("{}: {error}", file.display())))?;
    let version = launcher.version().await.ok();
    let version = version.map(|version| version.to_string());
    say(format!(
        "{}: Xray {} runs it",
        file.display(),
        version.unwrap_or_default()
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn diff(settings: &Settings, file: &Path, form: Form) -> Result<ExitCode, Failure> {
    let daemon = Daemon::find(&settings.runtime_dir).await?;
    let request = CompareConfigRequest {
        config: read(file)?,
    };
    let comparing = output::waiting("comparing it with what is served");
    let compared = daemon.patient_operator().compare_config(request).await;
    comparing.finish_and_clear();
    let compared = compared?.into_inner();
    if form.json {
        say_json("CompareConfigResponse", &compared)?;
    } else {
        say_difference(&compared)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn say_difference(compared: &CompareConfigResponse) -> Result<(), Failure> {
    let what = match compared.step() {
        Step::Nothing | Step::Unspecified => {
            styled(GOOD, "nothing differs: a Start with it changes nothing")
        }
        Step::Users => styled(GOOD, "only users differ: no connection is closed"),
        Step::Rules => styled(
            GOOD,
            "only routing rules and users differ: no connection is closed",
        ),
        Step::HandOver => styled(
            POOR,
            "another core takes over; connections live on in the one that serves until they end",
        ),
        Step::Restart => styled(
            BAD,
            format!(
                "the core is stopped and started anew, and every connection ends: {}",
                compared.ends_connections
            ),
        ),
        Step::Start => "nothing is served now: a core is started".to_owned(),
    };
    say(what)?;
    if !compared.differences.is_empty() {
        say(format!("  differs: {}", compared.differences.join(", ")))?;
    }
    if compared.dropped_count > 0 {
        say(format!(
            "  without inbounds then, {}: {}",
            counted(compared.dropped_count, "user"),
            compared.dropped_users.join(", ")
        ))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(Failure::of(path.display()))
}
