//! `raynode reload`: the daemon that runs with these settings reads them anew.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command speaks to its operator"
)]

use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{EXIT_FAILED, EXIT_USAGE};
use crate::lock::Lock;
use crate::settings::Settings;

pub(super) fn run() -> ExitCode {
    let settings = match Settings::load() {
        Ok(settings) => settings,
        Err(mistakes) => {
            eprintln!("raynode: the settings are wrong, and nothing was reloaded:\n{mistakes}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let folder = settings.runtime_dir;
    let pid = match Lock::holder(&folder) {
        Ok(Some(pid)) => Pid::from_raw(pid),
        Ok(None) => {
            eprintln!("raynode: no daemon runs in {}", folder.display());
            return ExitCode::from(EXIT_FAILED);
        }
        Err(error) => {
            eprintln!("raynode: {}: {error}", folder.display());
            return ExitCode::from(EXIT_FAILED);
        }
    };
    if let Err(error) = kill(pid, Signal::SIGHUP) {
        eprintln!("raynode: the daemon {pid} can't be told: {error}");
        return ExitCode::from(EXIT_FAILED);
    }
    println!("raynode: told the daemon {pid}; its log says what it took over");
    ExitCode::SUCCESS
}
