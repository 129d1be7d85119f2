//! Reads what serves, again and again, for as long as anything does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::state::State;
use crate::usage::harvest::{Harvester, Source};
use crate::xray::core::Core;

/// After a harvest that failed.
const PAUSE: Duration = Duration::from_secs(2);

/// How a core is read.
pub(super) fn source(core: &Core) -> Source {
    Source {
        epoch: core.id(),
        client: core.client().clone(),
        version: core.version(),
    }
}

/// Harvests the core that serves until it is dropped; those that drain read themselves. Whatever goes wrong costs nothing as long as the core lives: it counts on.
pub(super) async fn run(harvester: Arc<Harvester>, mut state: watch::Receiver<State>) {
    let mut failing = false;
    loop {
        let serving = state.borrow_and_update().serving.clone();
        let wait = match &serving {
            Some(serving) => match harvester.harvest(&serving.source).await {
                Ok(wait) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("usage is read again");
                    }
                    wait
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "usage can't be read; the core counts on");
                    }
                    PAUSE
                }
            },
            None => Duration::MAX,
        };
        let epoch = serving.map(|serving| serving.source.epoch);
        let other = state
            .wait_for(|state| state.serving.as_ref().map(|serving| serving.source.epoch) != epoch);
        if let Ok(Err(_)) = tokio::time::timeout(wait, other).await {
            return;
        }
    }
}
