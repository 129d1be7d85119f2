//! `raynode after-stop`: what systemd runs when the daemon has ended, however it did (`ExecStopPost=`).
//!
//! A daemon that is stopped stops its core. One that hangs can't: systemd kills it and, by the unit, it alone.
//! Then the core ends here. Where the daemon is about to come back, or nobody asked for its end, the core
//! serves on.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command speaks to its operator"
)]

use std::process::ExitCode;

use super::{EXIT_FAILED, EXIT_USAGE};
use crate::lock::Lock;
use crate::settings::Settings;
use crate::systemd;
use crate::xray::leftover;

pub(super) fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(end_what_is_left()),
        Err(error) => {
            eprintln!("raynode: the runtime can't be started: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

async fn end_what_is_left() -> ExitCode {
    if !systemd::is_stopping_us().await {
        return ExitCode::SUCCESS;
    }
    let folder = match Settings::load() {
        Ok(settings) => settings.runtime_dir,
        Err(mistakes) => {
            eprintln!(
                "raynode: the settings are wrong, so nobody knows whether a core is left:\n{mistakes}"
            );
            return ExitCode::from(EXIT_USAGE);
        }
    };
    // Where another daemon has it, the core is that one's.
    match Lock::take(&folder) {
        Ok(Some(_alone)) => {
            let ended = leftover::end(&folder, &[]).await;
            if ended > 0 {
                println!(
                    "raynode: the daemon did not stop its core, so it was ended now ({ended})"
                );
            }
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raynode: {}: {error}", folder.display());
            ExitCode::from(EXIT_FAILED)
        }
    }
}
