//! The durable account of usage: one thread that keeps the book in memory and on disk.
//!
//! Whatever is answered is on disk first. A disk that refuses stops nothing: what cores count is kept in
//! memory, and in the cores themselves, until it takes it again; only deliveries wait, because one that is
//! not on disk could come twice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::book::{Book, Contents, Entry, Epoch, Of, Sum, TooMany};
use super::counter::{Bytes, Kind, Reading};
use super::store::{self, Store};
use super::{Policy, Unsure};
use crate::disk;
use crate::proto::xray::app::stats::command::UserStat;
use crate::xray::client::Counter;

/// How many callers may wait before others wait to be heard.
const QUEUE: usize = 256;
/// How often a disk that refuses is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Of so many cores the last sweep is kept where the file can't be read.
const UNREAD: usize = 64;
/// How often what is old is let go of.
const EXPIRE: Duration = Duration::from_secs(600);
/// How often the file is made smaller where that is possible: everybody waits for it.
const COMPACT: Duration = Duration::from_secs(86_400);
/// And only above so many bytes.
const LARGE: u64 = 8 << 20;

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

enum Command {
    Count(Epoch, Vec<Readings>, oneshot::Sender<Vec<Arc<str>>>),
    /// There is something in the notes.
    Look,
    OfCore(Epoch, Of, oneshot::Sender<Vec<Entry>>),
    Knows(Epoch, String, oneshot::Sender<bool>),
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
        let ledger = Self {
            commands,
            board: board.clone(),
        };
        let path = state_dir.join("ledger.redb");
        let spawned = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || Keeper::new(path, policy, board).run(queue));
        if let Err(error) = spawned {
            tracing::error!(%error, "there is no thread for the usage ledger");
        }
        ledger
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

    /// What a core has counted since it started, by the last time it was read.
    ///
    /// # Errors
    /// When the node is ending.
    pub async fn of_core(&self, epoch: Epoch, of: Of) -> Result<Vec<Entry>, Error> {
        self.ask(|reply| Command::OfCore(epoch, of, reply)).await
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

/// What is done with one command once the disk has everything.
type Answer = Box<dyn FnOnce(Result<(), &Error>)>;

/// The thread's own.
struct Keeper {
    path: PathBuf,
    policy: Policy,
    board: Board,
    book: Book,
    disk: Disk,
    /// Cores that were there before this daemon.
    adopted: Vec<Epoch>,
    /// The last sweeps of cores, where the file could not be read yet, and which of them are alive.
    unread: HashMap<Epoch, Readings>,
    alive: Option<Vec<Epoch>>,
    /// The ledger's number.
    id: Option<Uuid>,
    /// The ledger before this one was damaged: what cores counted under it may have been delivered.
    after_damage: bool,
    clock: Clock,
    expired: Instant,
    compacted: Instant,
}

enum Disk {
    Takes(Store),
    Refuses {
        why: Arc<str>,
        tried: Instant,
        /// Whether the book is what is to be written; otherwise the file was never read.
        read: bool,
    },
}

/// Whole seconds that have passed.
struct Clock(Instant);

impl Clock {
    fn passed(&mut self) -> u64 {
        let seconds = self.0.elapsed().as_secs();
        self.0 += Duration::from_secs(seconds);
        seconds
    }
}

impl Keeper {
    fn new(path: PathBuf, policy: Policy, board: Board) -> Self {
        let now = Instant::now();
        let mut keeper = Self {
            path,
            policy,
            board,
            book: Book::default(),
            disk: Disk::Refuses {
                why: Arc::from("it was not opened yet"),
                tried: now,
                read: false,
            },
            adopted: Vec::new(),
            unread: HashMap::new(),
            alive: None,
            id: None,
            after_damage: false,
            clock: Clock(now),
            expired: now,
            compacted: now,
        };
        keeper.open();
        keeper
    }

    fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.blocking_recv() {
            let mut answers: Vec<Answer> = Vec::new();
            let mut closing = None;
            let mut next = Some(first);
            self.book.pass(self.clock.passed());
            self.try_again();
            while let Some(command) = next {
                // Whoever asks after he has noted something finds it done.
                self.read_notes();
                if let Command::Close(done) = command {
                    closing = Some(done);
                    break;
                }
                answers.extend(self.take(command));
                next = queue.try_recv().ok();
            }
            self.expire();
            let written = self.write();
            for answer in answers {
                answer(written.as_ref().copied());
            }
            if let Some(done) = closing {
                drop(self.disk);
                done.send(()).ok();
                return;
            }
        }
    }

    fn read_notes(&mut self) {
        let notes = self.board.take();
        self.adopted.extend(notes.adopted);
        for (id, judgement) in notes.judgements {
            self.judge(id, judgement);
        }
        match (notes.alive, &self.disk) {
            (Some(alive), Disk::Refuses { read: false, .. }) => self.alive = Some(alive),
            (Some(alive), _) => self.book.end_all_but(&alive),
            (None, _) => {}
        }
    }

    /// Does what can be done in memory; the answer waits for the disk.
    fn take(&mut self, command: Command) -> Option<Answer> {
        match command {
            Command::Count(epoch, readings, reply) => {
                let moved = self.take_readings(epoch, readings);
                return Some(Box::new(move |_| drop(reply.send(moved))));
            }
            Command::OfCore(epoch, of, reply) => drop(reply.send(self.book.of_core(epoch, &of))),
            Command::Knows(epoch, email, reply) => {
                let known = self.book.knows_of(epoch, Kind::User, &email);
                reply.send(known).ok();
            }
            Command::Report(of, reply) => match self.report(&of) {
                Ok(report) => {
                    return Some(Box::new(move |written| {
                        // With its ticket a report that is not written goes back.
                        drop(reply.send(written.cloned_err().map(|()| report)));
                    }));
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Batch {
                cursor,
                limit,
                reply,
            } => match self.batch(&cursor, limit) {
                Ok(batch) => {
                    return Some(Box::new(move |written| {
                        drop(reply.send(written.cloned_err().map(|()| batch)));
                    }));
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Receipts(batches, reply) => match self.receipts(&batches) {
                Ok(count) => {
                    return Some(Box::new(move |written| {
                        drop(reply.send(written.cloned_err().map(|()| count)));
                    }));
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Look | Command::Close(_) => {}
        }
        None
    }

    fn take_readings(&mut self, epoch: Epoch, readings: Vec<Readings>) -> Vec<Arc<str>> {
        if let Disk::Refuses { read: false, .. } = &self.disk {
            // What of it is new is known when the file can be read; a sweep has all there is to know.
            let mut sweep = readings
                .into_iter()
                .filter(|readings| matches!(readings, Readings::Sweep(_)));
            if let Some(sweep) = sweep.next_back()
                && (self.unread.len() < UNREAD || self.unread.contains_key(&epoch))
            {
                self.unread.insert(epoch, sweep);
            }
            return Vec::new();
        }
        let mut moved = Vec::new();
        for readings in &readings {
            moved = self.count(epoch, readings);
        }
        moved
    }

    fn count(&mut self, epoch: Epoch, readings: &Readings) -> Vec<Arc<str>> {
        let is_older = self.adopted.contains(&epoch);
        let unknown = is_older && self.after_damage && !self.book.knows_epoch(epoch);
        let of = |counters| {
            let counters: std::slice::Iter<'_, Counter> = counters;
            counters.filter_map(|counter| Reading::parse(&counter.name, counter.value))
        };
        match readings {
            Readings::Sweep(counters) if unknown => {
                tracing::warn!(
                    "nobody knows any more what this core had counted and was delivered: it is counted from here on"
                );
                self.book.begin_at(epoch, of(counters.iter()));
                Vec::new()
            }
            // Some of them are no beginning; the next sweep is.
            _ if unknown => Vec::new(),
            Readings::Sweep(counters) | Readings::Some(counters) => {
                self.book.count(epoch, of(counters.iter()))
            }
            Readings::Users(users) => self.book.count(epoch, users.iter().flat_map(of_user)),
        }
    }

    fn judge(&mut self, id: u64, judgement: Judgement) {
        let arrived = match (judgement, self.policy.unsure) {
            (Judgement::Arrived, _) | (Judgement::Unsure, Unsure::Settle) => true,
            (Judgement::Lost, _) | (Judgement::Unsure, Unsure::Return) => false,
        };
        let sum = if arrived {
            self.book.settle(id)
        } else {
            self.book.put_back(id)
        };
        let Some(Sum { entries, bytes }) = sum else {
            return;
        };
        match judgement {
            Judgement::Arrived => tracing::debug!(id, entries, bytes, "usage arrived"),
            Judgement::Lost => {
                tracing::info!(
                    id,
                    entries,
                    bytes,
                    "a report of usage did not arrive, it comes again"
                );
            }
            Judgement::Unsure => tracing::warn!(
                id,
                entries,
                bytes,
                comes_again = !arrived,
                "nobody can know whether a report of usage arrived (USAGE_UNSURE)"
            ),
        }
    }

    fn report(&mut self, of: &Of) -> Result<Report, Error> {
        self.writable()?;
        let delivery = self.book.report(of, self.policy.reply)?;
        let entries = match (delivery.and_then(|id| self.book.delivery(id)), of) {
            (Some(delivery), _) => delivery.entries.clone(),
            (None, Of::One(kind, name)) if self.book.knows(*kind, name) => vec![Entry {
                kind: *kind,
                name: Arc::from(name.as_str()),
                bytes: Bytes::default(),
            }],
            (None, _) => Vec::new(),
        };
        let ticket = delivery.map(|id| {
            Ticket(Arc::new(Pending {
                id,
                left: AtomicBool::new(false),
                judged: AtomicBool::new(false),
                board: self.board.clone(),
            }))
        });
        Ok(Report { entries, ticket })
    }

    fn batch(&mut self, cursor: &str, limit: usize) -> Result<Option<Batch>, Error> {
        let store = self.writable()?.id;
        let behind = if cursor.is_empty() {
            0
        } else {
            // Behind a batch of a ledger that is no more there is everything.
            let (ledger, number) = parse(cursor)?;
            if ledger == store { number } else { 0 }
        };
        let id = match self.book.batch_after(behind) {
            Some(id) => Some(id),
            None if limit == 0 => None,
            None => self.book.batch(limit)?,
        };
        let Some((id, delivery)) = id.and_then(|id| Some((id, self.book.delivery(id)?))) else {
            return Ok(None);
        };
        Ok(Some(Batch {
            id: format!("{}-{id}", store.simple()),
            entries: delivery.entries.clone(),
            more: self.book.batch_after(id).is_some() || self.book.is_anything_pending(),
        }))
    }

    fn receipts(&mut self, batches: &[String]) -> Result<usize, Error> {
        let store = self.writable()?.id;
        let numbers = batches.iter().map(|batch| parse(batch));
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?.into_iter();
        let ours = numbers.filter(|(ledger, _)| *ledger == store);
        Ok(ours.filter(|(_, id)| self.book.receipt(*id)).count())
    }

    fn expire(&mut self) {
        if self.expired.elapsed() < EXPIRE {
            return;
        }
        self.expired = Instant::now();
        let Sum { entries, bytes } = self.book.expire(self.policy.retention.as_secs());
        if entries > 0 {
            tracing::error!(
                entries,
                bytes,
                "usage that nobody collected in all this time is dropped (USAGE_RETENTION)"
            );
        }
        if self.compacted.elapsed() < COMPACT {
            return;
        }
        self.compacted = Instant::now();
        if let Disk::Takes(store) = &mut self.disk
            && std::fs::metadata(&self.path).is_ok_and(|file| file.len() > LARGE)
            && let Err(error) = store.compact()
        {
            tracing::debug!(%error, "the ledger's file keeps its size");
        }
    }

    fn writable(&self) -> Result<&Store, Error> {
        match &self.disk {
            Disk::Takes(store) => Ok(store),
            Disk::Refuses { why, .. } => Err(self.refused(why)),
        }
    }

    fn refused(&self, why: &Arc<str>) -> Error {
        Error::Disk {
            path: self.path.clone(),
            reason: Arc::clone(why),
        }
    }

    fn write(&mut self) -> Result<(), Error> {
        let changes = self.book.take_changes();
        let store = self.writable()?;
        if changes.is_empty() {
            return Ok(());
        }
        let Err(error) = store.commit(self.book.contents(), &changes) else {
            return Ok(());
        };
        tracing::error!(path = %self.path.display(), %error, "the usage ledger is not written; what cores count is kept in memory meanwhile");
        let why = Arc::from(error.to_string());
        let error = self.refused(&why);
        self.disk = Disk::Refuses {
            why,
            tried: Instant::now(),
            read: true,
        };
        Err(error)
    }

    fn try_again(&mut self) {
        if let Disk::Refuses { tried, .. } = &self.disk
            && tried.elapsed() >= RETRY
        {
            self.open();
        }
    }

    /// Opens the file; what is known already goes into it, otherwise the book is what it says.
    fn open(&mut self) {
        let (was_read, was_told) = match &self.disk {
            Disk::Refuses { read, why, .. } => (*read, Some(Arc::clone(why))),
            Disk::Takes(_) => (true, None),
        };
        let mut opened = Store::open(&self.path, self.after_damage);
        if let Err(store::Error::Damaged(reason)) = &opened {
            // Where it can't be moved this is tried again and again, and said once.
            let is_said = was_told.as_ref().is_some_and(|told| told.contains(reason));
            if is_said {
                tracing::debug!(reason, "the usage ledger is still in the way");
            } else if was_read {
                tracing::error!(path = %self.path.display(), reason, "the usage ledger is moved aside and written anew; nothing of it is lost");
            } else {
                tracing::error!(path = %self.path.display(), reason, "the usage ledger is moved aside, a new one begins; what was pending in it is lost");
            }
            self.after_damage |= !was_read;
            disk::move_aside(&self.path);
            opened = Store::open(&self.path, self.after_damage);
        }
        let taken = opened.and_then(|(mut store, contents)| {
            if was_read {
                store.rewrite(self.book.contents(), self.id.unwrap_or(store.id))?;
            } else {
                self.after_damage = store.after_damage;
                self.begin_with(contents);
            }
            Ok(store)
        });
        match taken {
            Ok(store) => {
                if was_read {
                    tracing::info!("the usage ledger is written again");
                    // All of it was.
                    drop(self.book.take_changes());
                }
                self.id = Some(store.id);
                self.disk = Disk::Takes(store);
                self.read_on();
            }
            Err(error) => {
                let why: Arc<str> = Arc::from(error.to_string());
                if was_told.is_none_or(|told| told != why) {
                    tracing::error!(path = %self.path.display(), %error, "the usage ledger can't be used; cores keep what they count");
                }
                self.disk = Disk::Refuses {
                    why,
                    tried: Instant::now(),
                    read: was_read,
                };
            }
        }
    }

    /// What cores said while nobody knew what they had said before.
    fn read_on(&mut self) {
        for (epoch, sweep) in std::mem::take(&mut self.unread) {
            self.count(epoch, &sweep);
        }
        if let Some(alive) = self.alive.take() {
            self.book.end_all_but(&alive);
        }
    }

    /// The book as the last daemon left it. Whether the reports that were on their way then arrived,
    /// nobody knows.
    fn begin_with(&mut self, contents: Contents) {
        self.book = Book::new(contents);
        for id in self.book.reports() {
            self.judge(id, Judgement::Unsure);
        }
    }
}

fn of_user(user: &UserStat) -> impl Iterator<Item = Reading<'_>> {
    use super::counter::Direction::{Down, Up};

    let traffic = user.traffic.iter();
    let ways = traffic.flat_map(|traffic| [(Up, traffic.uplink), (Down, traffic.downlink)]);
    ways.filter_map(|(direction, value)| {
        Some(Reading {
            kind: Kind::User,
            name: &user.email,
            direction,
            value: u64::try_from(value).ok()?,
        })
    })
    .filter(|reading| !reading.name.is_empty() && reading.name != crate::xray::config::PLACEHOLDER)
}

fn parse(batch: &str) -> Result<(Uuid, u64), Error> {
    let parsed = batch
        .split_once('-')
        .and_then(|(ledger, number)| Some((Uuid::try_parse(ledger).ok()?, number.parse().ok()?)));
    parsed.ok_or_else(|| Error::NotABatch(batch.chars().take(64).collect()))
}

/// The error of a reference, as one's own.
trait ClonedErr {
    fn cloned_err(self) -> Result<(), Error>;
}

impl ClonedErr for Result<(), &Error> {
    fn cloned_err(self) -> Result<(), Error> {
        self.map_err(Clone::clone)
    }
}

#[cfg(test)]
mod tests;
