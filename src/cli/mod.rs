//! The command line: one file per subcommand, and the only place that prints.

mod after_stop;
mod init;
mod reload;
mod replace;
mod run;
mod signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The settings or the command line are wrong; nothing was started.
const EXIT_USAGE: u8 = 2;
/// The node could not run.
const EXIT_FAILED: u8 = 1;

/// The node daemon beside Xray: a panel says who may connect.
///
/// Settings come from the environment and from a file: .env in the working directory, unless the environment
/// names another one; see .env.example.
/// Exit codes: 0 after a stop that was asked for, 1 when the node could not run, 2 when the command
/// line or a setting is wrong.
#[derive(Debug, Parser)]
#[command(name = "raynode", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve panels until SIGTERM or SIGINT.
    Run(run::Arguments),
    /// Make the daemon that runs with these settings read them anew, as SIGHUP does: certificates, keys, and
    /// what the core is made of. A core that is to be made of another binary makes way for one that is.
    Reload,
    /// Be process 1 of a container: start the daemon, start it again when it dies, and reap.
    Init(init::Arguments),
    /// What systemd runs when the daemon has ended: where it was to be stopped and could not stop its core,
    /// that one ends now.
    #[command(hide = true)]
    AfterStop,
}

/// Runs what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Reload => reload::run(),
        Command::Init(arguments) => init::run(&arguments),
        Command::AfterStop => after_stop::run(),
    }
}
