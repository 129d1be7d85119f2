//! `raynode run`: the daemon.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command speaks to its operator"
)]

use std::net::IpAddr;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{EXIT_FAILED, EXIT_USAGE};
use crate::app::{App, Pairing};
use crate::settings::{Protocols, Settings};
use crate::{host, telemetry};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print what a panel asks for when the node is added to it. This shows the API key.
    #[arg(long)]
    show_pairing: bool,
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
    runtime.block_on(serve(settings, arguments.show_pairing))
}

async fn serve(settings: Settings, show_pairing: bool) -> ExitCode {
    let shutdown = CancellationToken::new();
    // Before anything is started, so that no signal finds us without a handler.
    let stop = match stop_signal() {
        Ok(stop) => stop,
        Err(error) => return failed(&format!("signals can't be received: {error}")),
    };
    let hangup = || signal(SignalKind::hangup());
    let hangups = match (hangup(), hangup()) {
        (Ok(one), Ok(other)) => [one, other],
        (Err(error), _) | (_, Err(error)) => {
            return failed(&format!("signals can't be received: {error}"));
        }
    };
    let app = match App::build(settings).await {
        Ok(app) => app,
        Err(error) => return failed(&error.to_string()),
    };
    if show_pairing {
        print!("{}", describe(app.pairing()));
    }
    let asked = shutdown.clone();
    let signals = tokio::spawn(async move {
        stop.await;
        asked.cancel();
    });
    let ended = app.run(hangups, shutdown).await;
    signals.abort();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    })
}

fn failed(reason: &str) -> ExitCode {
    eprintln!("raynode: {reason}");
    ExitCode::from(EXIT_FAILED)
}

fn describe(pairing: &Pairing) -> String {
    let address = reachable(pairing.address.ip());
    let connection = match pairing.protocols {
        Protocols::Both => "grpc or rest",
        Protocols::Grpc => "grpc",
        Protocols::Rest => "rest",
    };
    format!(
        "\nAdd this node to your panel:\n\n  \
         address      {address}\n  \
         port         {}\n  \
         connection   {connection}\n  \
         API key      {}\n  \
         certificate  {}\n  \
         SHA-256      {}\n\n",
        pairing.address.port(),
        pairing.api_key,
        pairing.certificate.display(),
        pairing.fingerprint,
    )
}

/// An address that a panel could use: the one listened on, or the first that this machine has.
fn reachable(listening: IpAddr) -> IpAddr {
    if !listening.is_unspecified() {
        return listening;
    }
    let own = host::addresses();
    let same_family = own
        .iter()
        .find(|address| address.is_ipv4() == listening.is_ipv4());
    same_family
        .or(own.first())
        .copied()
        .unwrap_or(IpAddr::from([127, 0, 0, 1]))
}
