//! What a new daemon finds: a core that outlived the last one, or a configuration to serve again.

use std::time::Duration;

use super::Error;
use super::applied::Applied;
use super::apply::change_users;
use super::handover::{Between, Means, Successor, groups_of, is_inbound, open_again};
use super::last_good::{LastGood, Restored};
use super::phase::Phase;
use super::plan::{self, UserChanges};
use super::roster::Roster;
use super::standing::Because;
use super::user::Email;
use crate::usage::harvest::{Harvester, Source};
use crate::xray::client::Client;
use crate::xray::config::{Endpoint, LogFiles, PLACEHOLDER};
use crate::xray::core::{ADOPTION_PATIENCE, Core, Launcher, NotAdopted};
use crate::xray::handover::Mode;
use crate::xray::handover::groups::{Group, Groups};
use crate::xray::handover::journal::{Drained, Journal};
use crate::xray::handover::procedure;
use crate::xray::leftover;
use crate::xray::record::Record;
use crate::xray::version::Version;

/// How long a core that was about to serve may take to answer.
const ANSWERS: Duration = Duration::from_secs(2);

/// What a new daemon begins with.
pub(super) struct Found {
    pub(super) phase: Phase,
    pub(super) keep_alive: Option<Duration>,
    /// A panel has stopped it.
    pub(super) stopped: bool,
    /// It is what the panel's session was about.
    pub(super) is_what_the_panel_had: bool,
    /// The cores that drain.
    pub(super) draining: Vec<(Core, Drained)>,
    /// Users who are connected to those and served nowhere any more.
    pub(super) gone: Vec<String>,
    pub(super) groups: Groups,
    pub(super) journal: Journal,
}

/// What the last daemon left, as far as it has been looked at.
struct Finding<'a> {
    launcher: &'a Launcher,
    harvester: &'a Harvester,
    last_good: &'a mut LastGood,
    mode: Mode,
    journal: Journal,
    groups: Groups,
    draining: Vec<(Core, Drained)>,
}

/// Takes over what serves, and ends a hand-over in which the last daemon died. What can't be taken over is
/// ended, so that no core is alive then that nobody knows of; a configuration without a core is started
/// again with `start_again`.
pub(super) async fn restore(
    launcher: &Launcher,
    (last_good, harvester): (&mut LastGood, &Harvester),
    mode: Mode,
    start_again: bool,
    lingers: bool,
) -> Found {
    let folder = &launcher.runtime_dir;
    let mut finding = Finding {
        launcher,
        harvester,
        last_good,
        mode,
        journal: Journal::read(folder),
        groups: Groups::default(),
        draining: Vec::new(),
    };
    let record = finding.which_serves();
    let mut restored = finding
        .last_good
        .load(record.as_ref().map(|record| record.id));
    let keep_alive = restored.as_ref().and_then(|restored| restored.keep_alive);
    let stopped = restored.as_ref().is_some_and(|restored| restored.stopped);
    let outdated = restored.as_ref().is_some_and(|restored| restored.outdated);
    let mut serving = None;
    if let Some(record) = &record {
        harvester.ledger().adopt(record.id);
        serving = finding.take_over(record, &mut restored, keep_alive).await;
    }
    let logs = serving
        .as_ref()
        .map(|(_, applied)| applied.skeleton.log_files().clone());
    let logs = logs.unwrap_or_default();
    finding.find_those_that_drain(record.as_ref(), &logs).await;
    finding.order_groups(serving.as_ref());
    let serving = finding.end_what_was_begun(serving, &logs, keep_alive).await;
    let cores = serving.as_ref().map(|(core, _)| core).into_iter();
    let cores = cores.chain(finding.draining.iter().map(|(core, _)| core));
    let pids: Vec<i32> = cores.map(Core::pid).collect();
    leftover::end(folder, &pids).await;
    let gone = match &serving {
        Some((_, applied)) => finding.who_is_gone(applied).await,
        None => Vec::new(),
    };
    let phase = match (serving, restored) {
        (Some((core, applied)), _) => Phase::Serving { core, applied },
        (None, Some(restored)) if start_again && (!stopped || lingers) => {
            tracing::info!("starting what was served last; the panel may be away");
            Phase::Down {
                applied: restored.applied,
                retry: tokio::time::Instant::now(),
                because: Because::ServedLast,
            }
        }
        (None, _) => Phase::Idle,
    };
    let is_adopted = matches!(phase, Phase::Serving { .. });
    if outdated && !is_adopted {
        tracing::warn!(
            "what is on disk is older than what was served last: a panel has to say what it wants"
        );
    }
    Found {
        phase,
        keep_alive,
        stopped,
        is_what_the_panel_had: is_adopted || !outdated,
        draining: finding.draining,
        gone,
        groups: finding.groups,
        journal: finding.journal,
    }
}

impl Finding<'_> {
    /// The core that served last. Where the journal names another one than its own record, the daemon died
    /// before it could write that one anew.
    fn which_serves(&self) -> Option<Record> {
        let folder = &self.launcher.runtime_dir;
        let named = self.journal.serving.clone();
        named
            .filter(|serving| leftover::is_core_of(folder, serving.process))
            .or_else(|| Record::read(folder))
    }

    async fn take_over(
        &mut self,
        record: &Record,
        restored: &mut Option<Restored>,
        keep_alive: Option<Duration>,
    ) -> Option<(Core, Applied)> {
        let folder = &self.launcher.runtime_dir;
        match adopt(self.launcher, record, restored.as_ref()).await {
            Ok(core) => {
                let applied = take_over(&core, self.last_good, restored.take()?, keep_alive).await;
                self.launcher.write_record(core.record());
                return Some((core, applied));
            }
            // Whoever does not answer will not stop when asked either.
            Err(Some(NotAdopted::Silent(_))) => leftover::kill(folder, record.process),
            Err(_) => farewell(record, self.harvester).await,
        }
        None
    }

    async fn find_those_that_drain(&mut self, serving: Option<&Record>, logs: &LogFiles) {
        // The journal goes on naming all of them until it is known who is there.
        for drained in self.journal.draining.clone() {
            let record = &drained.record;
            if serving.is_some_and(|serving| serving.id == record.id) {
                continue;
            }
            self.harvester.ledger().adopt(record.id);
            match self.launcher.adopt(record, logs, ADOPTION_PATIENCE).await {
                Ok(core) => self.draining.push((core, drained)),
                Err(NotAdopted::Ended) => {}
                Err(error) => {
                    tracing::warn!(pid = record.process.pid, %error, "a core that drained is not taken over");
                    farewell(record, self.harvester).await;
                }
            }
        }
    }

    /// By the journal, in the order in which they began to listen where that does not know them.
    fn order_groups(&mut self, serving: Option<&(Core, Applied)>) {
        let mut cores: Vec<(u64, &Core, Vec<Group>)> = Vec::new();
        if let Some((core, applied)) = serving {
            let inbounds: Vec<Endpoint> = applied.skeleton.endpoints().collect();
            let groups = groups_of(core.pid(), |port| is_inbound(&inbounds, port));
            cores.push((core.record().process.started, core, groups));
        }
        for (core, drained) in &self.draining {
            let ports = &drained.leaving.ports;
            let groups = groups_of(core.pid(), |port| {
                ports.iter().any(|range| range.contains(&port))
            });
            cores.push((core.record().process.started, core, groups));
        }
        cores.sort_by_key(|(started, ..)| *started);
        self.groups = std::mem::take(&mut self.journal.groups);
        let mut alive: Vec<_> = cores.iter().map(|(_, core, _)| core.id()).collect();
        alive.extend(self.journal.next.as_ref().map(|next| next.id));
        self.groups.only(&alive);
        for (_, core, groups) in cores {
            self.groups.set(core.id(), &groups);
        }
    }

    /// Who is connected to cores that drain and is no user any more. The last daemon may have had no time to
    /// cut them.
    async fn who_is_gone(&self, serving: &Applied) -> Vec<String> {
        let is_served = |email: &String| {
            // Inbounds that a panel does not manage have users of their own.
            serving.roster.has(&Email::from(email.as_str())) || serving.skeleton.names(email)
        };
        let mut gone = Vec::new();
        for (core, _) in &self.draining {
            let online = core.client().online_users().await.unwrap_or_default();
            gone.extend(online.into_iter().filter(|email| !is_served(email)));
        }
        gone
    }

    /// A core that was about to serve does so, or is gone.
    async fn end_what_was_begun(
        &mut self,
        serving: Option<(Core, Applied)>,
        logs: &LogFiles,
        keep_alive: Option<Duration>,
    ) -> Option<(Core, Applied)> {
        let folder = &self.launcher.runtime_dir;
        let given_up = std::mem::take(&mut self.journal.given_up);
        let Some(next) = self.journal.next.take() else {
            if let Some((core, applied)) = &serving {
                open_again(self.launcher, core, applied, &given_up).await;
            }
            return serving;
        };
        let ready = std::mem::take(&mut self.journal.flipping);
        let given = self.last_good.load_next(next.id);
        let Some(given) = given.filter(|_| ready) else {
            tracing::info!(
                pid = next.process.pid,
                "a core that was not ready when the last daemon died is ended"
            );
            leftover::kill(folder, next.process);
            if let Some((core, applied)) = &serving {
                open_again(self.launcher, core, applied, &given_up).await;
            }
            return serving;
        };
        let adopted = self.launcher.adopt(&next, logs, ANSWERS).await;
        let (core, answers) = match adopted {
            Ok(core) => (Some(core), Ok(())),
            Err(error) => (None, Err(Error::Failed(error.to_string()))),
        };
        let Some((old, before)) = serving else {
            // The old one died, too.
            let core = core?;
            self.launcher.write_record(core.record());
            if let Err(error) = core.show_sockets() {
                tracing::warn!(%error, "a unix socket of an inbound leads nowhere");
            }
            let applied = take_over(&core, self.last_good, given, keep_alive).await;
            return Some((core, applied));
        };
        self.journal.given_up = given_up;
        let means = Means {
            launcher: self.launcher,
            harvester: self.harvester,
            last_good: &mut *self.last_good,
            keep_alive,
            groups: &mut self.groups,
            journal: &mut self.journal,
            mode: self.mode,
        };
        let successor = Successor {
            applied: given.applied,
            core,
            tried: Duration::ZERO,
        };
        let mut between = Between::new(means, (&old, &before), successor);
        let resumed = procedure::resume(&mut between, answers).await;
        let (Successor { applied, core, .. }, drained) = between.into_parts();
        match (resumed, core) {
            (Ok(()), Some(core)) => {
                tracing::info!(
                    pid = core.pid(),
                    "ended the hand-over in which the last daemon died: the new core serves"
                );
                self.launcher.write_record(core.record());
                self.last_good.save(core.id(), &applied, keep_alive);
                self.draining.push((old, drained));
                Some((core, applied))
            }
            (resumed, _) => {
                let error = resumed.err().map(|error| error.to_string());
                tracing::warn!(
                    pid = next.process.pid,
                    error,
                    "undid the hand-over in which the last daemon died: the old core serves"
                );
                leftover::kill(folder, next.process);
                Some((old, before))
            }
        }
    }
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
    let logs = restored.applied.skeleton.log_files();
    let adopted = launcher.adopt(record, logs, ADOPTION_PATIENCE).await;
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
