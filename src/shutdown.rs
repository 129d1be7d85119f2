//! How this process ends, known to everybody who has something to end.

use std::sync::{Arc, Mutex, PoisonError};

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
    how: Arc<Mutex<Option<How>>>,
    begun: CancellationToken,
    stop: CancellationToken,
}

impl Shutdown {
    /// Begins it. Nothing stays once somebody wants all of it stopped; otherwise the first one decides.
    pub fn begin(&self, how: How) {
        {
            let mut decided = self.how.lock().unwrap_or_else(PoisonError::into_inner);
            if decided.is_none() || how == How::Stop {
                *decided = Some(how);
            }
        }
        if how == How::Stop {
            self.stop.cancel();
        }
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

    /// Cancelled when the core has to end, too; that may come late.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// How it ends; until it has begun, with the core.
    #[must_use]
    pub fn how(&self) -> How {
        let decided = *self.how.lock().unwrap_or_else(PoisonError::into_inner);
        decided.unwrap_or(How::Stop)
    }
}
