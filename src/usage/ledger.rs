//! The durable account of usage: one thread that keeps the book in memory and on disk.
//!
//! Whatever is answered is on disk first. A disk that refuses stops nothing: what cores count is kept in
//! memory, and in the cores themselves, until it takes it again; only deliveries wait, because one that is
//! not on disk could come twice.

mod figures;
mod keeper;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

pub use self::figures::{Figures, Verdicts};

use self::keeper::Keeper;
use super::Policy;
use super::book::{Entry, Epoch, Of, TooMany};
use super::counter::{Bytes, Kind};
use crate::proto::xray::app::stats::command::UserStat;
use crate::xray::client::Counter;

/// How many callers may wait before others wait to be heard.
const QUEUE: usize = 256;

/// Why there is no usage to be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Too many deliveries wait for their proof.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The disk refuses.
    #[error(
        "the usage ledger {}: {reason}; nothing is lost, it comes with a later read", .path.display()
    )]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the disk says.
        reason: Arc<str>,
    },
    /// A number that no batch has.
    #[error("{0:?} is not the number of a batch")]
    NotABatch(String),
    /// The node is ending.
    #[error("the node is shutting down")]
    Closed,
}

/// What a core's counters said.
#[derive(Debug)]
pub(super) enum Readings {
    /// All there are.
    Sweep(Vec<Counter>),
    /// Some of them.
    Some(Vec<Counter>),
    /// Those of users who are online.
    Users(Vec<UserStat>),
}

/// What a panel is about to be told.
#[derive(Debug)]
pub struct Report {
    /// How much of what.
    pub entries: Vec<Entry>,
    /// What becomes of it depends on whether it arrives; `None` where there is nothing to lose.
    pub ticket: Option<Ticket>,
}

/// A batch for a panel that will send a receipt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number, which no other batch ever has.
    pub id: String,
    /// How much of what.
    pub entries: Vec<Entry>,
    /// Whether there is more behind it.
    pub more: bool,
}

/// What one user, inbound or outbound used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    /// Of what.
    pub kind: Kind,
    /// E-mail or tag.
    pub name: Arc<str>,
    /// Counted ever, as far as that is known.
    pub lifetime: Bytes,
    /// What of that nobody has: it waits for a panel, or is on its way to one.
    pub pending: Bytes,
    /// For how many seconds the oldest of that has waited, counting those in which a daemon ran; 0 where there
    /// is nothing.
    pub waits: u64,
}

enum Command {
    Count(Epoch, Vec<Readings>, oneshot::Sender<Vec<Arc<str>>>),
    /// There is something in the notes.
    Look,
    OfCores(Vec<Epoch>, Of, oneshot::Sender<Vec<Entry>>),
    Knows(Epoch, String, oneshot::Sender<bool>),
    Totals(oneshot::Sender<Vec<Total>>),
    Report(Of, oneshot::Sender<Result<Report, Error>>),
    Batch {
        cursor: String,
        limit: usize,
        reply: oneshot::Sender<Result<Option<Batch>, Error>>,
    },
    Receipts(Vec<String>, oneshot::Sender<Result<usize, Error>>),
    Close(oneshot::Sender<()>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Arrived,
    Lost,
    Unsure,
}

/// What nobody waits for an answer to.
#[derive(Debug, Default)]
struct Notes {
    adopted: Vec<Epoch>,
    alive: Option<Vec<Epoch>>,
    /// As many as there are deliveries, at most.
    judgements: Vec<(u64, Judgement)>,
}

/// A place for notes, and the bell beside it.
#[derive(Clone, Debug)]
struct Board {
    notes: Arc<Mutex<Notes>>,
    commands: mpsc::WeakSender<Command>,
}

impl Board {
    fn note(&self, write: impl FnOnce(&mut Notes)) {
        write(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        // Where the queue is full the thread looks at the notes before long anyhow.
        if let Some(commands) = self.commands.upgrade() {
            drop(commands.try_send(Command::Look));
        }
    }

    fn take(&self) -> Notes {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The door to the ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    commands: mpsc::Sender<Command>,
    board: Board,
    figures: Arc<ArcSwap<Figures>>,
}

impl Ledger {
    /// Opens the ledger in the state folder. One that is damaged is moved aside; one that can't be read is
    /// tried again and again.
    #[must_use]
    pub fn open(state_dir: &Path, policy: Policy) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE);
        let board = Board {
            notes: Arc::default(),
            commands: commands.downgrade(),
        };
        let figures = Arc::new(ArcSwap::default());
        let ledger = Self {
            commands,
            board: board.clone(),
            figures: Arc::clone(&figures),
        };
        let path = state_dir.join("ledger.redb");
        let spawned = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || Keeper::new(path, policy, board, figures).run(queue));
        if let Err(error) = spawned {
            tracing::error!(%error, "there is no thread for the usage ledger");
        }
        ledger
    }

    /// What it says to those who only look. Never waits, not for the disk either.
    #[must_use]
    pub fn figures(&self) -> Arc<Figures> {
        self.figures.load_full()
    }

    /// Takes what a core says, in the order in which it said it, and returns users of whom the last of it says
    /// something new. It is on disk then, or the disk refuses, and it is kept in memory.
    pub(super) async fn count(
        &self,
        epoch: Epoch,
        readings: Vec<Readings>,
    ) -> Result<Vec<Arc<str>>, Error> {
        self.ask(|reply| Command::Count(epoch, readings, reply))
            .await
    }

    /// A core that was there before this daemon.
    pub fn adopt(&self, epoch: Epoch) {
        self.board.note(|notes| notes.adopted.push(epoch));
    }

    /// The cores of all other epochs are gone.
    pub fn only_epochs(&self, alive: Vec<Epoch>) {
        self.board.note(|notes| notes.alive = Some(alive));
    }

    /// What these cores together have counted since they started, by the last time they were read.
    ///
    /// # Errors
    /// When the node is ending.
    pub async fn of_cores(&self, epochs: Vec<Epoch>, of: Of) -> Result<Vec<Entry>, Error> {
        self.ask(|reply| Command::OfCores(epochs, of, reply)).await
    }

    /// What everybody and everything used, in no order.
    ///
    /// # Errors
    /// When the node is ending.
    pub async fn totals(&self) -> Result<Vec<Total>, Error> {
        self.ask(Command::Totals).await
    }

    /// Whether a core has counted anything for a user.
    pub async fn knows_user(&self, epoch: Epoch, email: String) -> bool {
        let known = self.ask(|reply| Command::Knows(epoch, email, reply)).await;
        known.unwrap_or_default()
    }

    /// Makes one delivery of what is pending. Until its ticket is judged nobody else gets any of it.
    ///
    /// # Errors
    /// When the disk refuses or too many deliveries are on their way; everything stays pending then.
    pub async fn report(&self, of: Of) -> Result<Report, Error> {
        self.ask(|reply| Command::Report(of, reply)).await?
    }

    /// The batch behind `cursor`, or the first one where that is empty: one that was handed out before and
    /// has no receipt, or a new one with up to `limit` entries of what is pending; none with a limit of 0.
    ///
    /// # Errors
    /// As for a report.
    pub async fn batch(&self, cursor: String, limit: usize) -> Result<Option<Batch>, Error> {
        self.ask(|reply| Command::Batch {
            cursor,
            limit,
            reply,
        })
        .await?
    }

    /// These batches have arrived; returns how many of them had no receipt before. Of those that are not
    /// known any more nothing changes.
    ///
    /// # Errors
    /// When one is no number of a batch, or the disk refuses.
    pub async fn receipts(&self, batches: Vec<String>) -> Result<usize, Error> {
        self.ask(|reply| Command::Receipts(batches, reply)).await?
    }

    /// Ends the thread, after everything that was asked before.
    pub async fn close(&self) {
        drop(self.ask(Command::Close).await);
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

/// One delivery, until it is judged. Dropped without a judgement it counts as lost as long as nothing of it
/// can have left, and as unsure from then on.
#[derive(Clone, Debug)]
pub struct Ticket(Arc<Pending>);

#[derive(Debug)]
struct Pending {
    id: u64,
    left: AtomicBool,
    judged: AtomicBool,
    board: Board,
}

impl Ticket {
    /// The delivery's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// From now on some of it may be on the wire.
    pub fn leaves(&self) {
        self.0.left.store(true, Ordering::Relaxed);
    }

    /// The panel has it.
    pub fn arrived(&self) {
        self.0.judge(Judgement::Arrived);
    }

    /// The panel does not have it and never will.
    pub fn lost(&self) {
        self.0.judge(Judgement::Lost);
    }

    /// Nobody can know; the operator's policy decides.
    pub fn unsure(&self) {
        self.0.judge(Judgement::Unsure);
    }
}

impl Pending {
    fn judge(&self, judgement: Judgement) {
        if !self.judged.swap(true, Ordering::Relaxed) {
            self.board
                .note(|notes| notes.judgements.push((self.id, judgement)));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.judge(if self.left.load(Ordering::Relaxed) {
            Judgement::Unsure
        } else {
            Judgement::Lost
        });
    }
}
