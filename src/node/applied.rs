//! What a core was given, and is given again when it has to come back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::plan::Desired;
use super::roster::Roster;
use super::user::Email;
use crate::telemetry::metrics::Launch;
use crate::xray::account::Account;
use crate::xray::config::Skeleton;
use crate::xray::core::{self, Core, Launcher};
use crate::xray::parts::Parts;

/// A configuration and the users that a core has, or is to have again.
pub(super) struct Applied {
    pub(super) skeleton: Arc<Skeleton>,
    pub(super) roster: Roster,
    /// Balancers that were told which outbound to take, and which.
    pub(super) overrides: BTreeMap<String, String>,
    /// Users whom the core was asked to change without an answer: what it was asked for, `None` for
    /// being gone.
    pub(super) unanswered: HashMap<(Arc<str>, Email), Option<Account>>,
    /// A change of rules had no answer: nobody knows which the core has.
    pub(super) doubtful: bool,
}

/// What has served, and what its core was made of; `None` where an older daemon made it.
pub(super) struct Former {
    pub(super) applied: Applied,
    pub(super) parts: Option<Parts>,
}

impl From<Desired> for Applied {
    fn from(Desired { skeleton, roster }: Desired) -> Self {
        Self {
            skeleton,
            roster,
            overrides: BTreeMap::new(),
            unanswered: HashMap::new(),
            doubtful: false,
        }
    }
}

impl Applied {
    /// The same configuration with the users of the moment, as far as it has their inbounds.
    pub(super) fn with_users_of(mut self, other: &Self) -> Self {
        self.roster.take_over(&other.roster);
        self
    }

    /// The same for another core, which has to have all of it.
    pub(super) fn again(&self) -> Self {
        Self {
            skeleton: Arc::clone(&self.skeleton),
            roster: self.roster.clone(),
            overrides: self.overrides.clone(),
            unanswered: self.unanswered.clone(),
            doubtful: false,
        }
    }

    /// A core that has all of it, ready within `patience`.
    pub(super) async fn launch(
        &mut self,
        launcher: &Launcher,
        patience: Duration,
        why: Launch,
    ) -> Result<Core, core::Error> {
        self.settle_unanswered();
        let started = launcher.start(&self.skeleton, &self.roster, patience).await;
        launcher.metrics.launched(why, started.is_ok());
        let core = started?;
        self.override_balancers(&core).await;
        Ok(core)
    }

    /// Of a new core nothing is unknown.
    pub(super) fn settle_unanswered(&mut self) {
        for ((tag, email), wanted) in self.unanswered.drain() {
            match wanted {
                Some(account) => self.roster.put(&tag, &email, Some(account)),
                None => self.roster.take(&tag, &email),
            }
        }
    }

    /// Tells a new core what the balancers were told.
    pub(super) async fn override_balancers(&self, core: &Core) {
        for (balancer, target) in &self.overrides {
            if let Err(error) = core.client().override_balancer(balancer, target).await {
                tracing::warn!(balancer, target, %error, "the balancer chooses by itself again");
            }
        }
    }
}
