//! The command line: one file per subcommand, and the only place that prints.

mod after_stop;
mod cert;
mod config;
mod core;
mod daemon;
mod doctor;
mod failure;
mod init;
mod key;
mod logs;
mod output;
mod pair;
mod reload;
mod run;
mod signals;
mod status;
mod stop;
mod usage;
mod users;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::failure::Failure;
use crate::settings::{Mistakes, Settings};

/// The node could not run, or did not do what it was asked.
const EXIT_FAILED: u8 = 1;
/// The settings or the command line are wrong; nothing was started.
const EXIT_USAGE: u8 = 2;
/// A command for a running daemon found none.
const EXIT_NO_DAEMON: u8 = 3;

/// The node daemon beside Xray: a panel says who may connect.
///
/// Settings come from the environment and from a file: the one that `RAYNODE_SETTINGS` names, or .env in the
/// working directory; all commands but `run` and `init` read /etc/raynode/raynode.env where that is there.
/// `raynode config show` tells what is in force.
#[derive(Debug, Parser)]
#[command(
    name = "raynode",
    version,
    max_term_width = 80,
    after_help = "Exit codes: 0 when it was done, 1 when not, 2 when the command line or a setting is wrong, 3 when no daemon answers."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve panels until SIGTERM or SIGINT.
    Run(run::Arguments),
    /// Be process 1 of a container: start the daemon, start it again when it dies, and reap.
    Init(init::Arguments),
    /// What runs, since when, for whom, and what changed last.
    Status(status::Arguments),
    /// The log of the cores.
    Logs(logs::Arguments),
    /// Who may connect, who is online, who used how much.
    Users(users::Arguments),
    /// What was used, by user, inbound and outbound, and what the panel does not have yet.
    Usage(usage::Arguments),
    /// What a panel asks for when this node is added to it. This shows the API key.
    Pair(pair::Arguments),
    /// The certificate: show it, make another one, use one of yours.
    Cert(cert::Arguments),
    /// The API keys: add one, name them, revoke one.
    Key(key::Arguments),
    /// Versions of Xray and geo files: install one, use one, go back.
    Core(core::Arguments),
    /// The settings in force, and what a configuration for Xray would do.
    Config(config::Arguments),
    /// What is wrong, what that means, and what mends it. Works with the daemon down.
    Doctor(doctor::Arguments),
    /// Stop node and core.
    Stop,
    /// Make way for the binary on disk: the core serves on, and no connection is closed.
    Restart(stop::RestartArguments),
    /// Read settings, certificate and keys anew, as SIGHUP does. A core that is to be made of another binary makes
    /// way for one that is.
    Reload,
    /// Print a script that completes this command line.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// What systemd runs when the daemon has ended: where it was to be stopped and could not stop its core,
    /// that one ends now.
    #[command(hide = true)]
    AfterStop,
}

/// Runs what the command line asks for.
#[must_use]
#[expect(clippy::print_stderr, reason = "a command speaks to its operator")]
pub fn main() -> ExitCode {
    // Every command, because what the daemon is shows to those only that may do as much.
    if let Err(error) = crate::host::take_up_capabilities() {
        eprintln!("raynode: the capabilities of its file are of no use: {error}");
    }
    match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Status(arguments) => {
            ask_daemon(async |folder| status::run(folder, &arguments).await)
        }
        Command::Logs(arguments) => ask_daemon(async |folder| logs::run(folder, arguments).await),
        Command::Users(arguments) => {
            ask_daemon(async |folder| users::run(folder, &arguments).await)
        }
        Command::Usage(arguments) => {
            ask_daemon(async |folder| usage::run(folder, &arguments).await)
        }
        Command::Pair(arguments) => ask_daemon(async |folder| pair::run(folder, arguments).await),
        Command::Cert(arguments) => ask_daemon(async |folder| cert::run(folder, arguments).await),
        Command::Key(arguments) => ask_daemon(async |folder| key::run(folder, arguments).await),
        Command::Core(arguments) => ask(async |settings| core::run(settings, arguments).await),
        Command::Config(arguments) => ask(async |settings| config::run(settings, arguments).await),
        Command::Doctor(arguments) => {
            answer(async |settings| doctor::run(settings, &arguments).await)
        }
        Command::Stop => ask_daemon(async |folder| stop::stop(folder).await),
        Command::Restart(arguments) => {
            ask(async |settings| stop::restart(&settings.runtime_dir, &arguments).await)
        }
        Command::Reload => ask(async |settings| reload::run(&settings).await),
        Command::Completions { shell } => told(output::say(completions(shell).trim_end())),
        Command::AfterStop => after_stop::run(),
    }
}

/// The script for a shell, of the commands that an operator gives.
fn completions(shell: clap_complete::Shell) -> String {
    // The scripts would offer hidden ones, too, and a command can't be taken out of a line.
    let whole = Arguments::command();
    let shown: Vec<_> = whole
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .cloned()
        .collect();
    let mut line = clap::Command::new("raynode")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut line, "raynode", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Does something that only a daemon is needed for: what is wrong with other settings is in nobody's way.
fn ask_daemon(work: impl AsyncFnOnce(&Path) -> Result<ExitCode, Failure>) -> ExitCode {
    block_on(async {
        let folder = Settings::find_runtime_dir()?;
        work(&folder).await
    })
}

/// Does something that needs the settings and ends.
fn ask(work: impl AsyncFnOnce(Settings) -> Result<ExitCode, Failure>) -> ExitCode {
    answer(async |settings| work(settings?).await)
}

/// The same for what makes something of settings that are wrong.
fn answer(
    work: impl AsyncFnOnce(Result<Settings, Mistakes>) -> Result<ExitCode, Failure>,
) -> ExitCode {
    block_on(async { work(Settings::find()).await })
}

fn block_on(work: impl Future<Output = Result<ExitCode, Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(Failure::of("the runtime can't be started")(error)),
    };
    done.unwrap_or_else(|failure| {
        failure.tell();
        failure.exit_code()
    })
}

fn told(said: Result<(), Failure>) -> ExitCode {
    said.map_or_else(
        |failure| {
            failure.tell();
            failure.exit_code()
        },
        |()| ExitCode::SUCCESS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_shell_offers_what_is_not_for_operators() {
        use clap_complete::Shell::{Bash, Elvish, Fish, PowerShell, Zsh};

        for shell in [Bash, Elvish, Fish, PowerShell, Zsh] {
            let script = completions(shell);
            assert!(script.contains("doctor") && script.contains("version"));
            assert!(!script.contains("after-stop"), "{shell}");
        }
    }
}
