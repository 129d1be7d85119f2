//! `raynode run`: the daemon.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command speaks to its operator"
)]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::pair;
use super::signals::Ending;
use super::{EXIT_FAILED, EXIT_USAGE};
use crate::app::{self, App};
use crate::replace;
use crate::settings::Settings;
use crate::shutdown::{How, Shutdown};
use crate::systemd::Manager;
use crate::xray::leftover;
use crate::{host, telemetry};

/// What still runs when everything has been told to end gets so long.
const LAST_CALLS: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print what a panel asks for when the node is added to it. This shows the API key.
    #[arg(long)]
    show_pairing: bool,
    /// Only say whether a node could run with these settings in the place of the one that runs.
    #[arg(long, hide = true)]
    check: bool,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let settings = match Settings::load() {
        Ok(settings) => settings,
        Err(mistakes) => {
            eprintln!("raynode: the settings are wrong:");
            for mistake in mistakes.0 {
                eprintln!("  {mistake}");
            }
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if arguments.check {
        if let Err(error) = app::check(&settings) {
            return failed(&error.to_string());
        }
        println!("raynode {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    telemetry::init(&settings);
    host::allow_many_open_files();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("the runtime can't be started: {error}")),
    };
    let binary = match replace::own_binary() {
        Ok(binary) => binary,
        Err(error) => return failed(&format!("the binary on disk can't be found: {error}")),
    };
    let runtime_dir = settings.runtime_dir.clone();
    let ended = runtime.block_on(serve(settings, binary.clone(), arguments.show_pairing));
    // A hung call must not keep the process.
    runtime.shutdown_timeout(LAST_CALLS);
    match ended {
        Ended::Failed(reason) => failed(&reason),
        Ended::Done => ExitCode::SUCCESS,
        Ended::Hurried(How::Stop) => {
            leftover::kill_all(&runtime_dir);
            ExitCode::from(EXIT_FAILED)
        }
        Ended::Hurried(How::Detach | How::Exec) => ExitCode::from(EXIT_FAILED),
        Ended::Replaced(ports) => {
            let error = replace::exec(&binary, ports);
            failed(&format!("{}: {error}", binary.display()))
        }
    }
}

/// How serving ended.
enum Ended {
    Done,
    /// By a second signal.
    Hurried(How),
    /// For the binary on disk, with these ports.
    Replaced(Vec<TcpListener>),
    Failed(String),
}

async fn serve(settings: Settings, binary: PathBuf, show_pairing: bool) -> Ended {
    let shutdown = Shutdown::default();
    let manager = Manager::from_env();
    // Before anything is started, so that no signal finds us without a handler.
    let signals = (Ending::listen(binary.clone()), signal(SignalKind::hangup()));
    let (ending, hangup) = match signals {
        (Ok(ending), Ok(hangup)) => (ending, hangup),
        (Err(error), _) | (_, Err(error)) => {
            return Ended::Failed(format!("signals can't be received: {error}"));
        }
    };
    let mut hurry = std::pin::pin!(ending.watch(&shutdown));
    let built = tokio::select! {
        built = manager.with_time_to_start(App::build(settings, binary.clone())) => built,
        () = &mut hurry => return Ended::Hurried(shutdown.how()),
    };
    let app = match built {
        Ok(app) => app,
        Err(error) => return Ended::Failed(error.to_string()),
    };
    if show_pairing {
        match app.identity().pairing() {
            Ok(pairing) => println!("{}", pair::describe(&pairing)),
            Err(error) => return Ended::Failed(error.to_string()),
        }
    }
    let ended = tokio::select! {
        ended = app.run(hangup, shutdown.clone(), manager) => ended,
        () = &mut hurry => return Ended::Hurried(shutdown.how()),
    };
    match ended {
        Ok(ports) if shutdown.how() == How::Exec => Ended::Replaced(ports),
        Ok(_) => Ended::Done,
        Err(error) => Ended::Failed(error.to_string()),
    }
}

fn failed(reason: &str) -> ExitCode {
    eprintln!("raynode: {reason}");
    ExitCode::from(EXIT_FAILED)
}
