//! A node at a moment, for its operator. Needs no session, and nothing here changes anything.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::look::{Comparison, Listed, Look, Step};
use super::{Error, LastChange, Node, Session, Standing, UnderWay};
use crate::usage::book::Epoch;
use crate::usage::book::Of;
use crate::usage::counter::Kind;
use crate::usage::harvest::TELLS_USERS_STATS;
use crate::usage::ledger::{self, Total};
use crate::usage::{Address, OnlineUser};
use crate::xray::config::{Nobody, Skeleton};
use crate::xray::logs::Viewer;
use crate::xray::parts::Parts;

/// How long the driver may be busy before somebody who wants to be told gives up.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for who has waited for a download.
const LONG_PATIENCE: Duration = Duration::from_secs(120);
/// Of how many users an older core is asked where they are.
const ASKED_SINGLY: usize = 100;
/// How long the core may take to tell who is online, for who can do without.
const SHORT_PATIENCE: Duration = Duration::from_millis(300);

/// A node at a moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// What it does.
    pub standing: Standing,
    /// The panel that has control.
    pub session: Option<Arc<Session>>,
    /// What the core that serves was started from, where that is known.
    pub binary: Option<PathBuf>,
    /// For how long that one has been asked in vain what it counts.
    pub silent: Option<Duration>,
    /// How many may connect.
    pub users: usize,
    /// How many of them are online; `None` where the core does not tell.
    pub online: Option<usize>,
    /// The change that is being made.
    pub under_way: Option<Arc<UnderWay>>,
    /// The last one that was.
    pub last_change: Option<Arc<LastChange>>,
    /// How many changes there were.
    pub changes: u64,
}

impl Node {
    /// What it does just now. Waits for no change.
    pub async fn overview(&self) -> Overview {
        let serving = self.state.borrow().serving.clone();
        let source = serving.as_ref().map(|serving| &serving.source);
        Overview {
            silent: source.and_then(|source| self.harvester.silent_for(source.epoch)),
            binary: serving.as_ref().and_then(|serving| serving.binary.clone()),
            standing: self.standing(),
            session: self.session(),
            users: self.launcher.metrics.served(),
            online: self.count_online().await,
            under_way: self.history.under_way(),
            last_change: self.history.last(),
            changes: self.history.count(),
        }
    }

    async fn count_online(&self) -> Option<usize> {
        let serving = self.state.borrow().serving.clone()?;
        if serving.source.version < TELLS_USERS_STATS {
            return Some(self.names_online()?.len());
        }
        let online = tokio::time::timeout(SHORT_PATIENCE, self.online_at(&serving.source));
        Some(online.await.ok()?.ok()?.len())
    }

    fn names_online(&self) -> Option<BTreeSet<String>> {
        let alive = self.alive();
        let epochs: Vec<Epoch> = alive.iter().map(|core| core.epoch).collect();
        self.harvester.names_online(&epochs)
    }

    /// Everybody who is online, by the last harvest, with or without a session; `None` where no core tells.
    /// A core before 26.4.13 tells names only: of a hundred of them it is asked for the addresses, one by one.
    pub async fn whoever_is_online(&self) -> Option<Vec<OnlineUser>> {
        let serving = self.state.borrow().serving.clone()?;
        if serving.source.version >= TELLS_USERS_STATS {
            return self.online_at(&serving.source).await.ok();
        }
        let mut online = Vec::new();
        for (place, email) in self.names_online()?.into_iter().enumerate() {
            let addresses = if place < ASKED_SINGLY {
                self.asked_singly(&email).await
            } else {
                Vec::new()
            };
            online.push(OnlineUser { email, addresses });
        }
        Some(online)
    }

    /// The same of one of them, empty where he is not.
    pub async fn where_is(&self, email: &str) -> Option<Vec<OnlineUser>> {
        let is_he = |name: &str| name.to_lowercase() == email.to_lowercase();
        let serving = self.state.borrow().serving.clone()?;
        if serving.source.version >= TELLS_USERS_STATS {
            let mut online = self.online_at(&serving.source).await.ok()?;
            online.retain(|user| is_he(&user.email));
            return Some(online);
        }
        let email = self.names_online()?.into_iter().find(|name| is_he(name));
        let Some(email) = email else {
            return Some(Vec::new());
        };
        let addresses = self.asked_singly(&email).await;
        Some(vec![OnlineUser { email, addresses }])
    }

    async fn asked_singly(&self, email: &str) -> Vec<Address> {
        let addresses = self.addresses(email).await.unwrap_or_default();
        let addresses = addresses.into_iter().map(|(ip, latest)| Address {
            ip,
            latest,
            since: latest,
        });
        addresses.collect()
    }

    /// Everybody who may connect, sorted by e-mail.
    ///
    /// # Errors
    /// When a change takes too long.
    pub async fn users(&self) -> Result<Vec<Listed>, Error> {
        self.look(PATIENCE, Look::Users).await
    }

    /// What a Start with this configuration and the users of now would do.
    ///
    /// # Errors
    /// When the configuration can't be used, Xray would not run it, or a change takes too long.
    pub async fn compare(&self, config: &str) -> Result<Comparison, Error> {
        let skeleton = Arc::new(Skeleton::parse(config, &[])?);
        let compared = {
            let skeleton = Arc::clone(&skeleton);
            self.look(PATIENCE, |reply| Look::Compare(skeleton, reply))
                .await?
        };
        if matches!(
            compared.step,
            Step::HandOver | Step::Restart(_) | Step::Fresh
        ) {
            self.launcher.check(&skeleton, &Nobody).await?;
        }
        Ok(compared)
    }

    /// Whether a core of these parts would run what is served, or is to be. Nothing is changed by that.
    ///
    /// # Errors
    /// With the core's own words, or when a change takes too long.
    pub async fn would_run(&self, parts: Parts) -> Result<(), Error> {
        let Some(applied) = self.look(LONG_PATIENCE, Look::Applied).await? else {
            return Ok(());
        };
        let checked = self
            .launcher
            .check_parts(&parts, &applied.skeleton, &applied.roster);
        checked.await?;
        Ok(())
    }

    /// What the next core is made of.
    #[must_use]
    pub fn parts(&self) -> Parts {
        self.launcher.parts()
    }

    /// What is pending and what was reported. Waits for nothing.
    #[must_use]
    pub fn usage_figures(&self) -> Arc<ledger::Figures> {
        self.harvester.ledger().figures()
    }

    /// What everybody used, until now.
    ///
    /// # Errors
    /// When the node is ending.
    pub async fn totals_of_now(&self) -> Result<Vec<Total>, Error> {
        self.read_counters(&Of::All(Kind::User)).await;
        self.totals().await
    }

    /// What everybody used, by the last harvest.
    ///
    /// # Errors
    /// When the node is ending.
    pub async fn totals(&self) -> Result<Vec<Total>, Error> {
        Ok(self.harvester.ledger().totals().await?)
    }

    /// The log of the cores, from the oldest line that is remembered on.
    #[must_use]
    pub fn log_viewer(&self) -> Viewer {
        self.launcher.logs.viewer()
    }

    async fn look<T>(
        &self,
        patience: Duration,
        look: impl FnOnce(oneshot::Sender<T>) -> Look,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.looks
            .try_send(look(reply))
            .map_err(|_| self.occupied())?;
        match tokio::time::timeout(patience, answer).await {
            Ok(told) => told.map_err(|_| Error::ShuttingDown),
            Err(_) => Err(self.occupied()),
        }
    }

    fn occupied(&self) -> Error {
        let what = self.history.under_way().map(|change| change.what);
        Error::Occupied(what.unwrap_or("looking after its core"))
    }
}
