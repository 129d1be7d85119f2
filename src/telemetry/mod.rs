//! What the node says about itself.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, Settings};

/// Sends the node's own log to the standard error, in the form and to the depth that the settings
/// name. Libraries speak only from warnings on: their lines explain nothing to an operator.
pub fn init(settings: &Settings) {
    use std::io::IsTerminal;
    use tracing::level_filters::LevelFilter;

    let filter = Targets::new()
        .with_default(settings.log_level.min(LevelFilter::WARN))
        .with_target("raynode", settings.log_level);
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
    if let Err(error) = set {
        tracing::debug!(%error, "somebody else takes the log already");
    }
}
