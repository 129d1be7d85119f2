//! What a new daemon finds: a core that outlived the last one, or a configuration to serve again.

use std::time::Duration;

use super::Error;
use super::applied::Applied;
use super::apply::change_users;
use super::last_good::{LastGood, Restored};
use super::phase::Phase;
use super::plan::{self, UserChanges};
use super::roster::Roster;
use super::user::Email;
use crate::usage::harvest::{Harvester, Source};
use crate::xray::client::Client;
use crate::xray::config::PLACEHOLDER;
use crate::xray::core::{Core, Launcher, NotAdopted};
use crate::xray::leftover;
use crate::xray::record::Record;
use crate::xray::version::Version;

/// What a new daemon begins with.
pub(super) struct Found {
    pub(super) phase: Phase,
    pub(super) keep_alive: Option<Duration>,
    /// A panel has stopped it.
    pub(super) stopped: bool,
    /// It is what the panel's session was about.
    pub(super) is_what_the_panel_had: bool,
}

/// Takes over what serves. What can't be taken over is ended, so that no core is alive then that
/// nobody knows of; a configuration without a core is started again with `start_again`.
pub(super) async fn restore(
    launcher: &Launcher,
    (last_good, harvester): (&mut LastGood, &Harvester),
    start_again: bool,
    lingers: bool,
) -> Found {
    let record = Record::read(&launcher.runtime_dir);
    let mut restored = last_good.load();
    let keep_alive = restored.as_ref().and_then(|restored| restored.keep_alive);
    let stopped = restored.as_ref().is_some_and(|restored| restored.stopped);
    let outdated = restored.as_ref().is_some_and(|restored| restored.outdated);
    let found = |phase, is_what_the_panel_had| Found {
        phase,
        keep_alive,
        stopped,
        is_what_the_panel_had,
    };
    if let Some(record) = &record {
        harvester.ledger().adopt(record.id);
        match adopt(launcher, record, restored.as_ref()).await {
            Ok(core) => {
                if let Some(restored) = restored.take() {
                    leftover::end(&launcher.runtime_dir, Some(core.pid())).await;
                    let applied = take_over(&core, last_good, restored, keep_alive).await;
                    return found(Phase::Serving { core, applied }, true);
                }
            }
            // Whoever does not answer will not stop when asked either.
            Err(Some(NotAdopted::Silent(_))) => leftover::kill(&launcher.runtime_dir),
            Err(_) => farewell(record, harvester).await,
        }
    }
    leftover::end(&launcher.runtime_dir, None).await;
    let phase = match restored {
        Some(restored) if start_again && (!stopped || lingers) => {
            tracing::info!("starting what was served last; the panel may be away");
            Phase::Down {
                applied: restored.applied,
                retry: tokio::time::Instant::now(),
            }
        }
        _ => Phase::Idle,
    };
    if outdated {
        tracing::warn!(
            "what is on disk is older than what was served last: a panel has to say what it wants"
        );
    }
    found(phase, !outdated)
}

async fn adopt(
    launcher: &Launcher,
    record: &Record,
    restored: Option<&Restored>,
) -> Result<Core, Option<NotAdopted>> {
    let pid = record.process.pid;
    let Some(restored) = restored.filter(|restored| restored.core == record.id) else {
        tracing::warn!(
            pid,
            "nobody knows the configuration of the core that the last daemon had"
        );
        return Err(None);
    };
    let adopted = launcher.adopt(record, &restored.applied.skeleton).await;
    adopted.map_err(|error| {
        tracing::warn!(pid, %error, "the core that the last daemon had is not taken over");
        Some(error)
    })
}

/// Makes the core's users those that were wanted: what the last daemon had written down and not yet
/// told the core is done now.
async fn take_over(
    core: &Core,
    last_good: &mut LastGood,
    restored: Restored,
    keep_alive: Option<Duration>,
) -> Applied {
    let Restored {
        mut applied,
        outdated,
        ..
    } = restored;
    match users_of(core.client(), &applied).await {
        Ok(found) => {
            // Rules may be others, too.
            applied.doubtful |= outdated;
            let changes = if outdated {
                tracing::warn!("the disk is older than the core: its users stay as they are");
                UserChanges::default()
            } else {
                plan::replace_all(&found, &applied.roster)
            };
            applied.roster = found;
            tracing::info!(
                changes = changes.len(),
                "compared the core's users with ours"
            );
            last_good.save(core.id(), &applied, keep_alive);
            if let Err(error) = change_users(core.client(), &mut applied, last_good, changes).await
            {
                tracing::error!(%error, "not all users of the core are as they should be; the panel's next list puts that right");
            }
        }
        Err(error) => {
            tracing::warn!(%error, "the core does not show its users, so they are taken to be ours");
            last_good.save(core.id(), &applied, keep_alive);
        }
    }
    applied
}

/// The core's users. An account is known where the core shows the one that we have.
async fn users_of(client: &Client, applied: &Applied) -> Result<Roster, Error> {
    let mut found = Roster::empty(applied.skeleton.inbounds());
    for inbound in applied.skeleton.inbounds() {
        let ours = applied.roster.inbound(&inbound.tag);
        let shown = client.users(&inbound.tag).await.map_err(Error::Read)?;
        for user in shown {
            if user.email.is_empty() || user.email == PLACEHOLDER {
                continue;
            }
            let email = Email::from(&*user.email);
            let account = ours
                .and_then(|ours| ours.users.get(&email)?.as_ref())
                .filter(|ours| {
                    let shown = user.account.as_ref();
                    shown.is_some_and(|shown| ours.is_shown_as(shown))
                });
            found.put(&inbound.tag, &email, account.cloned());
        }
    }
    Ok(found)
}

/// What a core has counted that is not taken over is read before its end.
pub(super) async fn farewell(record: &Record, harvester: &Harvester) {
    let source = Source {
        epoch: record.id,
        client: Client::new(record.socket.clone()),
        version: record.version().unwrap_or(Version::new(0, 0, 0)),
    };
    harvester.last(&source).await;
}
