//! What a node is doing.

use std::sync::Arc;
use std::time::Duration;

use super::applied::Applied;
use super::roster::Roster;
use super::standing::Because;
use crate::xray::core::Core;

#[expect(
    clippy::large_enum_variant,
    reason = "there is one of it, and it is nearly always the large one"
)]
pub(super) enum Phase {
    /// Nothing runs and nothing should.
    Idle,
    /// A core serves.
    Serving { core: Core, applied: Applied },
    /// The core comes by itself.
    Down {
        applied: Applied,
        retry: tokio::time::Instant,
        because: Because,
    },
    /// The core died too often: it waits for somebody to change something.
    GaveUp { applied: Applied, why: Arc<str> },
}

/// Something that a phase was waiting for.
pub(super) enum CoreEvent {
    Ended { how: String, ran: Duration },
    RetryDue,
}

impl Phase {
    /// Who is served, or is to be served again.
    pub(super) fn roster(&self) -> Option<&Roster> {
        match self {
            Self::Idle => None,
            Self::Serving { applied, .. }
            | Self::Down { applied, .. }
            | Self::GaveUp { applied, .. } => Some(&applied.roster),
        }
    }

    /// Cancel-safe: it only watches.
    pub(super) async fn event(&self) -> CoreEvent {
        match self {
            Self::Idle | Self::GaveUp { .. } => std::future::pending().await,
            Self::Serving { core, .. } => {
                let how = core.ended().await;
                CoreEvent::Ended {
                    how,
                    ran: core.ready_since().elapsed(),
                }
            }
            Self::Down { retry, .. } => {
                tokio::time::sleep_until(*retry).await;
                CoreEvent::RetryDue
            }
        }
    }
}
