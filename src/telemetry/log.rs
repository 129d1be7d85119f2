//! The node's own log.

use std::io;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, Settings};

/// Sends the node's own log to the standard error or to the journal, in the form and to the depth that the
/// settings name. Libraries speak only from warnings on: their lines explain nothing to an operator.
pub fn init(settings: &Settings) {
    use std::io::IsTerminal;

    let (filter, handle) = reload::Layer::new(filter(settings.log_level));
    let lines = fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let as_text = |lines: fmt::Layer<_, _, _, _>| {
        let colours = io::stderr().is_terminal();
        lines.with_ansi(colours).with_target(false)
    };
    let mut no_journal = None;
    let set = match settings.log_format {
        LogFormat::Text => registry.with(as_text(lines)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Journald => match journal() {
            Ok(journal) => registry.with(journal).try_init(),
            Err(error) => {
                no_journal = Some(error);
                registry.with(as_text(lines)).try_init()
            }
        },
    };
    match set {
        Ok(()) => drop(LEVEL.set(handle)),
        Err(error) => tracing::debug!(%error, "somebody else takes the log already"),
    }
    if let Some(error) = no_journal {
        tracing::warn!(%error, "there is no journal to write to (LOG_FORMAT), the log goes to the standard error as text");
    }
}

/// The journal by its own protocol, so that fields stay fields: `RAYNODE_PID`, `RAYNODE_ERROR` and so on
/// beside the message. The priorities are those that `journalctl -p` calls by the same names.
fn journal() -> io::Result<tracing_journald::Layer> {
    let priorities = PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    };
    let journal = tracing_journald::layer()?
        .with_syslog_identifier("raynode".to_owned())
        .with_field_prefix(Some("RAYNODE".to_owned()))
        .with_priority_mappings(priorities);
    Ok(journal)
}

/// From now on the log goes to this depth.
pub fn set_level(level: LevelFilter) {
    let set = LEVEL.get().map(|handle| handle.reload(filter(level)));
    if let Some(Err(error)) = set {
        tracing::error!(%error, "the level of the log stays as it was");
    }
}

static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

fn filter(level: LevelFilter) -> Targets {
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        // It knows only its own PINGs, and warns of each answer to one of ours.
        .with_target("h2::proto::ping_pong", LevelFilter::ERROR.min(level))
        .with_target("raynode", level)
}
