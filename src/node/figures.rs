//! The node in numbers.

use std::sync::Arc;
use std::time::Instant;

use super::endurance::STABLE;
use super::handover::is_inbound;
use super::state::Serving;
use super::{CoreInfo, Node, Standing};
use crate::usage::book::Epoch;
use crate::usage::ledger;
use crate::xray::config::Endpoint;
use crate::xray::handover::{Tally, sockets};

/// What can be said of a node without asking its driver, its cores or its disk.
#[derive(Clone, Debug)]
pub struct Figures {
    /// What it is doing.
    pub standing: Standing,
    /// How often its core has failed in a row; none once one runs in peace.
    pub failures: u32,
    /// How many users are connected; `None` where a core does not tell.
    pub users_online: Option<usize>,
    /// The cores that are alive, the one that serves first.
    pub cores: Vec<CoreInfo>,
    /// How often one made way, and how.
    pub tally: Tally,
    /// What was used.
    pub usage: Arc<ledger::Figures>,
    /// Lines of the cores' logs.
    pub log_lines: u64,
    /// Lines that viewers of the log did not get.
    pub log_lines_missed: u64,
}

impl Node {
    /// The node in numbers. Looks at the processes of the cores, which takes the longer the more
    /// connections they have, and blocks meanwhile.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let (mut cores, tally) = self.cores();
        let state = self.state.borrow().clone();
        let epochs: Vec<Epoch> = cores.iter().map(|core| core.id).collect();
        let serving = state.serving.as_deref();
        if let (Some(core), Some(serving)) = (cores.first_mut(), serving)
            && core.id == serving.source.epoch
        {
            core.connections = connections(serving).unwrap_or_default();
        }
        let in_peace = serving.is_some_and(|serving| is_long_ago(serving.ready));
        Figures {
            standing: self.standing(),
            failures: if in_peace { 0 } else { state.failures },
            users_online: self
                .harvester
                .names_online(&epochs)
                .map(|names| names.len()),
            cores,
            tally,
            usage: self.harvester.ledger().figures(),
            log_lines: self.launcher.logs.lines(),
            log_lines_missed: self.launcher.logs.missed(),
        }
    }
}

fn is_long_ago(ready: Instant) -> bool {
    ready.elapsed() >= STABLE
}

/// How many are connected to the core that serves; `None` where nobody may look.
fn connections(serving: &Serving) -> Option<u64> {
    let inbounds: Vec<Endpoint> = serving.skeleton.endpoints().collect();
    let tcp = sockets::connections(serving.pid, |port| is_inbound(&inbounds, port)).ok()?;
    let unix = sockets::unix_connections(serving.pid, &serving.sockets).ok()?;
    Some((tcp.len() + unix) as u64)
}
