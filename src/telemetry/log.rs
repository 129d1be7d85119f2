//! The node's own log.

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, Settings};

/// Sends the node's own log to the standard error, in the form and to the depth that the settings
/// name. Libraries speak only from warnings on: their lines explain nothing to an operator.
pub fn init(settings: &Settings) {
    use std::io::IsTerminal;

    let (filter, handle) = reload::Layer::new(filter(settings.log_level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let set = match settings.log_format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry
                .with(lines.with_ansi(colours).with_target(false))
                .try_init()
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    match set {
        Ok(()) => drop(LEVEL.set(handle)),
        Err(error) => tracing::debug!(%error, "somebody else takes the log already"),
    }
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
