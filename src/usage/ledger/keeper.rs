//! The ledger's thread: the book in memory, the file, and the order in which both change.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Batch, Board, Command, Error, Figures, Judgement, Pending, Readings, Report, Ticket};
use crate::disk;
use crate::proto::xray::app::stats::command::UserStat;
use crate::usage::book::{Book, Contents, Entry, Epoch, Of, Sum};
use crate::usage::counter::{ByKind, Bytes, Kind, Reading};
use crate::usage::store::{self, Store};
use crate::usage::{Policy, Unsure};
use crate::xray::client::Counter;

/// How often a disk that refuses is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// Of so many cores the last sweep is kept where the file can't be read.
const UNREAD: usize = 64;
/// How often what is old is let go of.
const EXPIRE: Duration = Duration::from_secs(600);
/// How often the file is made smaller where that is possible: everybody waits for it.
const COMPACT: Duration = Duration::from_secs(86_400);
/// And only above so many bytes.
const LARGE: u64 = 8 << 20;

/// What is done with one command once the disk has everything.
type Answer = Box<dyn FnOnce(Result<(), &Error>)>;

/// The thread's own.
pub(super) struct Keeper {
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
    /// As far as only this thread knows them.
    figures: Figures,
    published: Arc<ArcSwap<Figures>>,
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
    pub(super) fn new(
        path: PathBuf,
        policy: Policy,
        board: Board,
        published: Arc<ArcSwap<Figures>>,
    ) -> Self {
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
            figures: Figures::default(),
            published,
        };
        keeper.open();
        keeper.publish();
        keeper
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
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
            self.publish();
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
            Command::OfCores(epochs, of, reply) => {
                drop(reply.send(self.book.of_cores(&epochs, &of)));
            }
            Command::Knows(epoch, email, reply) => {
                let known = self.book.knows_of(epoch, Kind::User, &email);
                reply.send(known).ok();
            }
            Command::Totals(reply) => drop(reply.send(self.book.totals())),
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
        self.figures.verdicts.note(judgement);
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
        let arrived = ours.filter(|(_, id)| self.book.receipt(*id)).count();
        self.figures.verdicts.arrived += arrived as u64;
        Ok(arrived)
    }

    fn expire(&mut self) {
        if self.expired.elapsed() < EXPIRE {
            return;
        }
        self.expired = Instant::now();
        let Sum { entries, bytes } = self.book.expire(self.policy.retention.as_secs());
        self.figures.expired = self.figures.expired.saturating_add(bytes);
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
        self.figures.errors += 1;
        let why = Arc::from(error.to_string());
        let error = self.refused(&why);
        self.disk = Disk::Refuses {
            why,
            tried: Instant::now(),
            read: true,
        };
        Err(error)
    }

    fn publish(&mut self) {
        self.figures = Figures {
            counted: self.book.counted(),
            pending: self.book.pending_bytes(),
            oldest: ByKind::each(|kind| self.book.pending_for(kind).map(Duration::from_secs)),
            at: Instant::now(),
            deliveries: self.book.contents().deliveries.len(),
            writable: matches!(self.disk, Disk::Takes(_)),
            ..self.figures
        };
        self.published.store(Arc::new(self.figures));
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
            self.figures.errors += 1;
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
                self.figures.errors += 1;
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
    use crate::usage::counter::Direction::{Down, Up};

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
    .filter(|reading| !reading.name.is_empty() && !reading.kind.is_ours(reading.name))
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
