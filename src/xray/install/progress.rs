//! How far an installation is.

use std::fmt;

use tokio::sync::watch;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Learning which digest a file must have.
    Digest,
    /// Getting a file from a server.
    Download,
    /// Getting a file from this machine.
    Copy,
    /// Taking the core out of its archive.
    Unpack,
    /// Trying what has come.
    Try,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Digest => "digest",
            Self::Download => "download",
            Self::Copy => "copy",
            Self::Unpack => "unpack",
            Self::Try => "try",
        })
    }
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// To which file.
    pub file: &'static str,
    /// So many bytes are done.
    pub done: u64,
    /// Of so many, where that is known.
    pub total: Option<u64>,
}

impl Progress {
    /// A step that begins.
    pub(super) fn of(step: Step, file: &'static str) -> Self {
        Self {
            step,
            file,
            done: 0,
            total: None,
        }
    }
}

/// Where an installation says how far it is. Whoever listens sees the latest, and slows nothing down.
#[derive(Clone, Debug)]
pub struct Reporter(watch::Sender<Option<Progress>>);

impl Reporter {
    /// One, and what it says; nothing before the first step.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<Option<Progress>>) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), receiver)
    }

    /// One to which nobody listens.
    #[must_use]
    pub fn silent() -> Self {
        Self::new().0
    }

    pub(super) fn say(&self, progress: Progress) {
        self.0.send_replace(Some(progress));
    }
}
