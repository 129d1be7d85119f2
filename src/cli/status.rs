//! `raynode status`: what runs, for whom, and what changed last.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::daemon::Daemon;
use super::failure::Failure;
use super::output::{
    BAD, Form, GOOD, POOR, bytes, counted, day, json, number, say, say_facts, seconds, span, styled,
};
use crate::proto::raynode::v1::{
    Core, GetStatusRequest, GetStatusResponse, ListCoresRequest, ListCoresResponse, Phase, Role,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    form: Form,
    /// Print nothing: the exit code tells whether the daemon answers. For health checks.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(runtime_dir: &Path, arguments: &Arguments) -> Result<ExitCode, Failure> {
    if arguments.quiet {
        let asked = ask(runtime_dir).await;
        return Ok(asked.map_or_else(|failure| failure.exit_code(), |_| ExitCode::SUCCESS));
    }
    let (daemon, status) = ask(runtime_dir).await?;
    let cores = daemon.cores().list_cores(ListCoresRequest {}).await?;
    let cores = cores.into_inner();
    if arguments.form.json {
        let mut shown = json("GetStatusResponse", &status)?;
        if let (Some(shown), Value::Object(cores)) =
            (shown.as_object_mut(), json("ListCoresResponse", &cores)?)
        {
            shown.extend(cores);
        }
        say(shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    show(&status, &cores)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(runtime_dir: &Path) -> Result<(Daemon, GetStatusResponse), Failure> {
    let daemon = Daemon::find(runtime_dir).await?;
    let status = daemon.operator().get_status(GetStatusRequest {}).await?;
    Ok((daemon, status.into_inner()))
}

fn show(status: &GetStatusResponse, cores: &ListCoresResponse) -> Result<(), Failure> {
    let started = u64::try_from(status.started).unwrap_or_default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let up = now
        .unwrap_or_default()
        .saturating_sub(Duration::from_secs(started));
    say(format!(
        "raynode {}, {}, pid {}, up {}",
        status.version,
        doing(status),
        status.pid,
        span(up)
    ))?;
    let mut facts: Vec<(&str, String)> = cores.cores.iter().map(core).collect();
    facts.push(("panel", panel(status)));
    facts.push(("users", users(status)));
    facts.push(("usage", pending(status)));
    if let Some(change) = &status.under_way {
        let how_long = seconds(change.seconds);
        facts.push((
            "change",
            format!("{}, under way for {how_long}", change.what),
        ));
    }
    if let Some(change) = &status.last_change {
        let mut line = format!("{}, {} ago", change.what, seconds(change.seconds_ago));
        if !change.how.is_empty() {
            line = format!("{line}: {}", change.how);
        }
        if !change.refused.is_empty() {
            line = format!(
                "{line}; {}",
                styled(BAD, format!("refused: {}", change.refused))
            );
        }
        facts.push(("last", line));
    }
    if let Some(tally) = cores.handovers.filter(|tally| *tally != <_>::default()) {
        facts.push((
            "so far",
            format!(
                "{} ({} without steering), {} refused, {}",
                counted(
                    tally.steered + tally.partly_steered + tally.plain,
                    "hand-over"
                ),
                tally.plain,
                tally.refused,
                counted(tally.restarts, "restart")
            ),
        ));
    }
    facts.push((
        "port",
        format!(
            "{}, certificate until {}",
            status.address,
            day(status.certificate_ends)
        ),
    ));
    say_facts(&facts)
}

fn doing(status: &GetStatusResponse) -> String {
    let next = seconds(status.next_seconds);
    match status.phase() {
        Phase::Serving => styled(GOOD, "serving"),
        Phase::Lingering => styled(
            POOR,
            format!("serving for {next} more: the panel stopped it"),
        ),
        Phase::Down => styled(BAD, format!("down, the core is started again in {next}")),
        Phase::GaveUp => styled(BAD, format!("down: {}", status.reason)),
        Phase::Idle | Phase::Unspecified => "waiting for a panel".to_owned(),
    }
}

fn core(core: &Core) -> (&'static str, String) {
    let name = match core.role() {
        Role::Draining => "draining",
        Role::Serving | Role::Unspecified => "core",
    };
    let mut line = format!(
        "Xray {}, pid {}, for {}, {}, {} open files",
        core.version,
        core.pid,
        seconds(core.seconds),
        bytes(core.memory),
        core.open_files
    );
    if core.role() == Role::Draining {
        line = format!("{line}, {}", counted(core.connections, "connection"));
    }
    (name, line)
}

fn panel(status: &GetStatusResponse) -> String {
    let Some(session) = &status.session else {
        return "none has control".to_owned();
    };
    let ends = match session.keep_alive_seconds {
        0 => "no keep-alive".to_owned(),
        after => format!("keep-alive {}", seconds(after)),
    };
    format!(
        "has control for {}, last call {} ago, {ends}",
        seconds(session.seconds),
        seconds(session.silent_seconds)
    )
}

fn users(status: &GetStatusResponse) -> String {
    let online = match status.online {
        Some(online) => format!(", {} online", number(online)),
        None => String::new(),
    };
    format!("{}{online}", number(status.users))
}

fn pending(status: &GetStatusResponse) -> String {
    let on_their_way = match status.deliveries {
        0 => String::new(),
        1 => ", 1 report is on its way".to_owned(),
        count => format!(", {} reports are on their way", number(count)),
    };
    match status.pending_bytes {
        0 => format!("the panel has all of it{on_their_way}"),
        waiting => format!(
            "{} of users wait for the panel, the oldest for {}{on_their_way}",
            bytes(waiting),
            seconds(status.oldest_pending_seconds)
        ),
    }
}
