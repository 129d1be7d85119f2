//! Why a command did not do what it was asked, and what the shell is told.

use std::path::PathBuf;
use std::process::ExitCode;

use tonic::{Code, Status};

use super::{EXIT_FAILED, EXIT_NO_DAEMON, EXIT_USAGE};
use crate::settings::Mistakes;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The settings can't be read.
    #[error("the settings are wrong:\n{0}")]
    Settings(#[from] Mistakes),
    /// Nobody answers.
    #[error(
        "no daemon answers at {} ({reason}); start one with `systemctl start raynode` or `raynode run`, or name its RUNTIME_DIR", .socket.display()
    )]
    NoDaemon {
        /// Where it was looked for.
        socket: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Somebody answers, and not to us.
    #[error("{}: {error}; do this as root or as the node's user", .socket.display())]
    NotAllowed {
        /// Where the daemon is.
        socket: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The daemon refused.
    #[error("{}", refusal(.0))]
    Refused(#[from] Box<Status>),
    /// Whoever reads what is printed has gone, as `head` does.
    #[error("the standard output: {0}")]
    Unheard(std::io::Error),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Whether it is the client's own word for a deadline that has passed.
pub(super) fn is_late(status: &Status) -> bool {
    matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
}

fn refusal(status: &Status) -> String {
    if is_late(status) {
        return "the daemon does not answer in time; its log, and `raynode doctor`, may say why"
            .to_owned();
    }
    status.message().to_owned()
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Failure {
    /// What went wrong with something, and what it was.
    pub(super) fn of(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Other(format!("{what}: {error}"))
    }

    /// Says it where errors are said.
    #[expect(clippy::print_stderr, reason = "a command speaks to its operator")]
    pub(super) fn tell(&self) {
        // Whoever reads no further, as `head` does, need not be told.
        let is_gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
        if !matches!(self, Self::Unheard(error) if is_gone(error)) {
            eprintln!("raynode: {self}");
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Settings(_) => EXIT_USAGE,
            Self::NoDaemon { .. } => EXIT_NO_DAEMON,
            Self::NotAllowed { .. } | Self::Unheard(_) | Self::Refused(_) | Self::Other(_) => {
                EXIT_FAILED
            }
        })
    }
}
