//! How this process ends, known to everybody who has something to end.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// What becomes of the core and the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The core ends, too.
    Stop,
    /// The core serves on: another daemon is about to come.
    Detach,
    /// The same, and the ports stay open: the daemon that comes is this process.
    Exec,
}

/// The one end of a process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    how: Arc<OnceLock<How>>,
    begun: CancellationToken,
}

impl Shutdown {
    /// Begins it; the first one decides how.
    pub fn begin(&self, how: How) {
        self.how.get_or_init(|| how);
        self.begun.cancel();
    }

    /// Waits until it has begun. Cancel-safe.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Cancelled when it has begun.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.begun
    }

    /// How it ends; until it has begun, with the core.
    #[must_use]
    pub fn how(&self) -> How {
        self.how.get().copied().unwrap_or(How::Stop)
    }
}
