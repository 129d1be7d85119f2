//! `raynode doctor`: what is wrong, what that means, and what mends it.

use std::error::Error as _;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use tonic::Status;

use super::EXIT_FAILED;
use super::daemon::Daemon;
use super::failure::{Failure, is_late};
use super::output::{BAD, FAINT, Form, GOOD, POOR, say, styled, waiting, width};
use crate::doctor::{self, Finding, Found, Running, Verdict};
use crate::lock::Lock;
use crate::proto::raynode::v1::{GetSettingsRequest, GetStatusRequest, ListCoresRequest};
use crate::settings::{Mistakes, Settings};

/// What stands below the first line of a finding begins behind it.
const INDENT: &str = "                    ";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print only what is not as it should be.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    form: Form,
}

pub(super) async fn run(
    settings: Result<Settings, Mistakes>,
    arguments: &Arguments,
) -> Result<ExitCode, Failure> {
    let looking = waiting("looking at everything");
    let found = match &settings {
        Ok(settings) => ask(settings).await,
        Err(_) => Found::Nobody,
    };
    let findings = doctor::examine(settings, found).await;
    looking.finish_and_clear();
    let shown = findings
        .iter()
        .filter(|one| !arguments.quiet || one.verdict() > Verdict::Ok);
    if arguments.form.json {
        say(shown.map(as_json).collect::<Value>())?;
    } else {
        for finding in shown {
            show(finding)?;
        }
        say(summary(&findings))?;
    }
    let fails = findings.iter().any(|one| one.verdict() == Verdict::Fail);
    Ok(if fails {
        ExitCode::from(EXIT_FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

/// What a daemon says of itself, where one answers.
async fn ask(settings: &Settings) -> Found {
    let daemon = match Daemon::find(&settings.runtime_dir).await {
        Ok(daemon) => daemon,
        Err(Failure::NotAllowed { .. }) => return Found::Closed,
        Err(_) => return whoever_works_there(settings),
    };
    match answers(&daemon).await {
        Ok(running) => Found::Running(Box::new(running)),
        // What is no answer of the daemon's has a cause on the way to it.
        Err(error) if is_late(&error) || error.source().is_some() => whoever_works_there(settings),
        Err(error) => Found::Failing(error.message().to_owned()),
    }
}

/// Somebody who does not answer, yet or any more, or nobody.
fn whoever_works_there(settings: &Settings) -> Found {
    let holder = Lock::holder(&settings.runtime_dir).ok().flatten();
    holder.map_or(Found::Nobody, Found::Hanging)
}

async fn answers(daemon: &Daemon) -> Result<Running, Status> {
    let began = Instant::now();
    let mut operator = daemon.operator();
    let status = operator.get_status(GetStatusRequest {}).await?;
    let latency = began.elapsed();
    let settings = operator.get_settings(GetSettingsRequest {}).await?;
    let cores = daemon.cores().list_cores(ListCoresRequest {}).await?;
    let cores = cores.into_inner();
    Ok(Running {
        status: status.into_inner(),
        cores: cores.cores,
        handovers: cores.handovers.unwrap_or_default(),
        settings: settings.into_inner(),
        latency,
    })
}

fn show(finding: &Finding) -> Result<(), Failure> {
    let verdict = finding.verdict();
    let style = match verdict {
        Verdict::Ok => GOOD,
        Verdict::Warn => POOR,
        Verdict::Fail => BAD,
    };
    let name = styled(style, format!("{:<4}", verdict.name()));
    let found = wrapped(&finding.found, width());
    say(format!("{name}  {:<12}  {found}", finding.about))?;
    if let Some(symptom) = finding.symptom {
        say(format!("{INDENT}{}", wrapped(symptom.means, width())))?;
        // Whole, because it is to be copied.
        let mend = styled(FAINT, format!("mend: {}", finding.mend));
        say(format!("{INDENT}{mend}"))?;
    }
    Ok(())
}

/// A text in lines that fit behind the indent; paths stay whole.
fn wrapped(text: &str, width: usize) -> String {
    let options = textwrap::Options::new(width.saturating_sub(INDENT.len()))
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::wrap(text, options).join(&format!("\n{INDENT}"))
}

fn summary(findings: &[Finding]) -> String {
    let count = |verdict| {
        let same = findings.iter().filter(|one| one.verdict() == verdict);
        same.count()
    };
    match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => "nothing is wrong".to_owned(),
        (fails, warns) => format!("{fails} fail, {warns} warn; docs/troubleshooting.md has more"),
    }
}

fn as_json(finding: &Finding) -> Value {
    json!({
        "about": finding.about,
        "verdict": finding.verdict().name(),
        "found": finding.found,
        "name": finding.symptom.map(doctor::symptoms::Symptom::name),
        "means": finding.symptom.map(|symptom| symptom.means),
        "mend": finding.symptom.map(|_| &finding.mend),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_paths_stay_whole() {
        let path = format!("/{}", "long".repeat(20));
        let text = format!("{} {path} is not there", "some words".repeat(10));
        let lines = wrapped(&text, 60);
        assert!(lines.contains(&path), "{lines}");
        let rest = lines.lines().skip(1);
        assert!(rest.clone().count() > 2, "{lines}");
        for line in rest {
            assert!(line.starts_with(INDENT), "{lines}");
            assert!(line.len() <= 60 || line.trim() == path, "{lines}");
        }
        let again: Vec<_> = lines.split_whitespace().collect();
        assert_eq!(again.join(" "), text);
    }
}
