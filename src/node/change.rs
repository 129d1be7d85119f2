//! Everything that changes the node, as values: the driver takes them one at a time.

use std::time::Duration;

use tokio::task::JoinHandle;
use uuid::Uuid;

use super::Error;
use super::plan::Desired;
use super::user::Users;
use crate::xray::config::Rule;
use crate::xray::handover::Policy;
use crate::xray::parts::Parts;

/// One change.
pub(super) enum Change {
    /// Control starts: run this, for me.
    Start {
        /// What to run, in the making: the change has its place in the queue from the moment at
        /// which it was asked for, however long its configuration takes to read.
        desired: JoinHandle<Result<Desired, Error>>,
        /// When the session ends without calls; `None` for never.
        keep_alive: Option<Duration>,
    },
    /// Control ends.
    Stop,
    /// The core starts anew, with what it has.
    RestartCore,
    /// Later cores are made of these parts and make way like this; the one that serves, too.
    Renew {
        /// Of what.
        parts: Parts,
        /// How.
        policy: Policy,
    },
    /// These users change, all others stay.
    UpdateUsers {
        /// The users.
        users: Users,
        /// Whether one refused user refuses all.
        all_or_nothing: bool,
    },
    /// These users and nobody else.
    ReplaceUsers {
        /// The users.
        users: Users,
    },
    /// One more routing rule.
    AddRule {
        /// The rule.
        rule: Rule,
        /// Whether all others go.
        reset: bool,
    },
    /// A routing rule goes.
    RemoveRule {
        /// Its tag.
        tag: String,
    },
    /// A balancer is told what to take.
    OverrideBalancer {
        /// The balancer's tag.
        balancer: String,
        /// The outbound's tag; empty: what it likes.
        target: String,
    },
}

/// The name of a renewal: the one change that nobody may have asked for by itself.
pub const RENEWAL: &str = "renew the core";

impl Change {
    /// What is asked for.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop => "stop",
            Self::RestartCore => "restart the core",
            Self::Renew { .. } => RENEWAL,
            Self::UpdateUsers { .. } => "update users",
            Self::ReplaceUsers { .. } => "replace users",
            Self::AddRule { .. } => "add a routing rule",
            Self::RemoveRule { .. } => "remove a routing rule",
            Self::OverrideBalancer { .. } => "override a balancer",
        }
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a change brings back: the session that a Start made, `None` for all others.
pub(super) type Outcome = Result<Option<Uuid>, Error>;
