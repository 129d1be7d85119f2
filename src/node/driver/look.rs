//! Tells what only the driver knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Driver;
use crate::node::applied::Applied;
use crate::node::look::{Comparison, Listed, Look, Step};
use crate::node::phase::Phase;
use crate::node::plan::{self, Desired, Plan};
use crate::node::roster::Roster;
use crate::xray::config::Skeleton;

impl Driver {
    /// Whoever does not wait any more is told nothing.
    pub(super) fn tell(&self, look: Look) {
        tokio::task::block_in_place(|| match look {
            Look::Users(reply) => drop(reply.send(self.users())),
            Look::Applied(reply) => drop(reply.send(self.applied().map(|applied| Desired {
                skeleton: Arc::clone(&applied.skeleton),
                roster: applied.roster.clone(),
            }))),
            Look::Compare(skeleton, reply) => drop(reply.send(self.compare(skeleton))),
        });
    }

    /// What is served, or is to be as soon as a core is there again.
    fn applied(&self) -> Option<&Applied> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Serving { applied, .. }
            | Phase::Down { applied, .. }
            | Phase::GaveUp { applied, .. } => Some(applied),
        }
    }

    fn users(&self) -> Vec<Listed> {
        let mut users: BTreeMap<&str, Vec<Arc<str>>> = BTreeMap::new();
        let inbounds = self.applied().into_iter();
        for (tag, inbound) in inbounds.flat_map(|applied| applied.roster.inbounds()) {
            for email in inbound.users.keys() {
                users
                    .entry(email.as_str())
                    .or_default()
                    .push(Arc::clone(tag));
            }
        }
        let listed = |(email, mut inbounds): (&str, Vec<Arc<str>>)| {
            inbounds.sort();
            Listed {
                email: email.into(),
                inbounds,
            }
        };
        users.into_iter().map(listed).collect()
    }

    fn compare(&self, skeleton: Arc<Skeleton>) -> Comparison {
        let mut roster = Roster::empty(skeleton.inbounds());
        let Some(applied) = self.applied() else {
            return Comparison {
                step: Step::Fresh,
                differences: Vec::new(),
                dropped: Vec::new(),
            };
        };
        roster.take_over(&applied.roster);
        let mut dropped = applied.roster.gone_in(&roster);
        dropped.sort();
        let desired = Desired { skeleton, roster };
        let differences = applied.skeleton.differences(&desired.skeleton);
        let step = match (
            &self.phase,
            plan::plan(&applied.skeleton, &applied.roster, &desired),
        ) {
            (Phase::Idle | Phase::Down { .. } | Phase::GaveUp { .. }, _) => Step::Fresh,
            (Phase::Serving { .. }, Plan::Nothing) => Step::Nothing,
            (Phase::Serving { .. }, Plan::Users(_)) => Step::Users,
            (Phase::Serving { .. }, Plan::Rules { .. }) => Step::Rules,
            (Phase::Serving { .. }, Plan::Another { .. }) => {
                self.alone().map_or(Step::HandOver, Step::Restart)
            }
        };
        Comparison {
            step,
            differences,
            dropped,
        }
    }
}
