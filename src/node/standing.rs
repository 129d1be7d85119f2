//! The node in a few words, for an operator who looks at it from outside.

use std::sync::Arc;
use std::time::Instant;

use super::Node;
use crate::xray::version::Version;

/// What a node is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The core that serves, or why none does.
    pub core: Result<Serves, Absent>,
    /// Until when it serves on though no panel has control.
    pub lingers_until: Option<Instant>,
    /// The processes of the cores that drain.
    pub draining: Vec<i32>,
    /// Whether a panel has control.
    pub controlled: bool,
}

/// A core that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serves {
    /// Its version.
    pub version: Version,
    /// The number of its process.
    pub pid: i32,
}

/// Why no core serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// None is wanted; the version that a panel's Start would start, `None` where there is no Xray.
    Unwanted(Option<Version>),
    /// It comes, at that moment if not at once.
    Comes(Because, Option<Instant>),
    /// It failed too often and waits for a panel's Start. Its own words are for the operator alone.
    GaveUp(Arc<str>),
}

/// Why a core comes that no panel has to ask for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// A panel has asked for it: the one before has ended, and this one is being started.
    Asked,
    /// It is what was served last, when the node was started.
    ServedLast,
    /// The one before ended unasked.
    Ended,
    /// It could not be started, and is tried again.
    NotStarted,
}

impl Node {
    /// What it is doing now. Waits for nothing.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let state = self.state.borrow().clone();
        let core = match (&state.serving, state.comes, &state.gave_up) {
            (Some(core), ..) => Ok(Serves {
                version: core.source.version,
                pid: core.pid,
            }),
            (None, Some((because, at)), _) => Err(Absent::Comes(because, Some(at))),
            (None, None, Some(why)) => Err(Absent::GaveUp(Arc::clone(why))),
            // Between two cores that can't stand beside each other.
            (None, None, None) if state.session.is_some() => {
                Err(Absent::Comes(Because::Asked, None))
            }
            (None, None, None) => Err(Absent::Unwanted(self.launcher.known_version())),
        };
        Standing {
            core,
            lingers_until: state.linger_until,
            draining: state.draining.iter().map(|core| core.pid).collect(),
            controlled: state.session.is_some(),
        }
    }
}
