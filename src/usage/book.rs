//! The account of every byte: counted, pending, on its way, arrived. Pure.
//!
//! A byte that a core has counted is at any time in exactly one place: pending in a row, in a delivery, or
//! with the panel.

mod pending;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use self::pending::Pending;
use super::counter::{self, Bytes, Kind, Reading};
use super::ledger::Total;

/// One core's lifetime.
pub type Epoch = Uuid;

/// How many reports may wait for their evidence, each of them for a second at least.
const MAX_REPORTS: usize = 16_384;
/// How many batches may wait for their receipt.
const MAX_BATCHES: usize = 64;
/// What a value of an entry takes in a reply, without its name.
const ENTRY: usize = 48;
/// So many users are named who have moved something.
const MOVERS: usize = 1000;
/// Of so many ended epochs a late reading is known to be late.
const ENDED: usize = 64;

/// What is known of one user, inbound or outbound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Counted, and in no delivery.
    pub(super) pending: Bytes,
    /// Counted ever.
    pub(super) lifetime: Bytes,
    /// Since when something is pending, by the book's own time.
    pub(super) since: u64,
    /// When something was counted last, by the book's own time.
    pub(super) changed: u64,
}

/// Bytes of one user, inbound or outbound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of what.
    pub kind: Kind,
    /// E-mail or tag.
    pub name: Arc<str>,
    /// How many.
    pub bytes: Bytes,
}

/// By what a delivery is known to have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// By what is seen of the connection.
    Evidence,
    /// By the panel's word.
    Receipt,
}

/// Bytes that are with nobody yet and in nobody else's reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) proof: Proof,
    /// When it was made, by the book's own time.
    pub(super) made: u64,
    pub(super) entries: Vec<Entry>,
}

/// What a read is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// All of a kind.
    All(Kind),
    /// One, by e-mail or tag.
    One(Kind, String),
}

/// Why there is no delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} earlier reports of usage are still on their way, try again in a minute")]
pub struct TooMany(pub usize);

/// Where the bytes of several entries went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) entries: usize,
    pub(super) bytes: u64,
}

impl Sum {
    fn add(&mut self, bytes: Bytes) {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes.total());
    }
}

type ByKind<T> = [HashMap<Arc<str>, T>; 3];

/// Everything that is on disk, too.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) rows: ByKind<Row>,
    /// What each core's counters said when they were read last.
    pub(super) seen: HashMap<Epoch, ByKind<Bytes>>,
    pub(super) deliveries: BTreeMap<u64, Delivery>,
    /// The number of the next delivery.
    pub(super) next: u64,
    /// The book's own time: the seconds that a daemon had it open. A clock that steps changes nothing.
    pub(super) time: u64,
}

/// What the disk does not know yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) rows: Vec<(Kind, Arc<str>)>,
    pub(super) seen: Vec<(Epoch, Kind, Arc<str>)>,
    pub(super) begun: Vec<Epoch>,
    pub(super) ended: Vec<Epoch>,
    pub(super) deliveries: HashSet<u64>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
            && self.seen.is_empty()
            && self.begun.is_empty()
            && self.ended.is_empty()
            && self.deliveries.is_empty()
    }
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    contents: Contents,
    changes: Changes,
    ended: VecDeque<Epoch>,
    pending: Pending,
    counted: counter::ByKind<Bytes>,
}

impl Book {
    pub(super) fn new(contents: Contents) -> Self {
        Self {
            pending: Pending::of(&contents.rows),
            contents,
            ..Self::default()
        }
    }

    /// Everything that was counted since the book was opened, whatever became of it.
    pub(super) fn counted(&self) -> counter::ByKind<Bytes> {
        self.counted
    }

    /// What is pending in all rows together.
    pub(super) fn pending_bytes(&self) -> counter::ByKind<Bytes> {
        self.pending.bytes()
    }

    /// For how many seconds of the book's own time the oldest of it has been pending.
    pub(super) fn pending_for(&self, kind: Kind) -> Option<u64> {
        let oldest = self.pending.oldest(kind)?;
        Some(self.contents.time.saturating_sub(oldest))
    }

    pub(super) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// What has changed since this was asked last.
    pub(super) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// So many seconds have passed.
    pub(super) fn pass(&mut self, seconds: u64) {
        self.contents.time = self.contents.time.saturating_add(seconds);
    }

    /// Takes what a core has counted since it was read last, and returns users for whom it has, not more than
    /// [`MOVERS`] of them. Readings of one core have to come in the order in which they were made.
    pub(super) fn count<'a>(
        &mut self,
        epoch: Epoch,
        readings: impl IntoIterator<Item = Reading<'a>>,
    ) -> Vec<Arc<str>> {
        let mut moved: Vec<Arc<str>> = Vec::new();
        if self.ended.contains(&epoch) {
            return moved;
        }
        self.begin(epoch);
        let Contents {
            rows, seen, time, ..
        } = &mut self.contents;
        let changes = &mut self.changes;
        let seen = seen.entry(epoch).or_default();
        for reading in readings {
            let kind = reading.kind;
            let (rows, seen) = (of_kind(rows, kind), of_kind(seen, kind));
            // Nearly every counter of a sweep says what it said before.
            if let Some(before) = seen.get_mut(reading.name)
                && *before.one_way(reading.direction) == reading.value
            {
                continue;
            }
            let (name, before) = known(seen, rows, reading.name);
            let before = before.one_way(reading.direction);
            // Nobody but the node resets the counters, and it does not; where somebody did all the same,
            // they began anew.
            let fresh = reading.value.checked_sub(*before).unwrap_or(reading.value);
            *before = reading.value;
            let mark = (epoch, kind, name);
            let name = Arc::clone(&mark.2);
            if changes.seen.last() != Some(&mark) {
                changes.seen.push(mark);
            }
            if fresh == 0 {
                continue;
            }
            let is_next = moved.last() != Some(&name) && moved.len() < MOVERS;
            if kind == Kind::User && is_next {
                moved.push(Arc::clone(&name));
            }
            let row = rows.entry(Arc::clone(&name)).or_default();
            if row.pending.is_zero() {
                row.since = *time;
                self.pending.begin(kind, row.since);
            }
            row.changed = *time;
            self.pending.add_one_way(kind, reading.direction, fresh);
            self.counted.add_one_way(kind, reading.direction, fresh);
            for total in [&mut row.pending, &mut row.lifetime] {
                let total = total.one_way(reading.direction);
                *total = total.saturating_add(fresh);
            }
            let mark = (kind, name);
            if changes.rows.last() != Some(&mark) {
                changes.rows.push(mark);
            }
        }
        moved
    }

    /// Takes what a core of which nothing is known says as what had been counted before.
    pub(super) fn begin_at<'a>(
        &mut self,
        epoch: Epoch,
        readings: impl IntoIterator<Item = Reading<'a>>,
    ) {
        self.begin(epoch);
        for reading in readings {
            let rows = of_kind(&mut self.contents.rows, reading.kind);
            let seen = self.contents.seen.entry(epoch).or_default();
            let (name, seen) = known(of_kind(seen, reading.kind), rows, reading.name);
            *seen.one_way(reading.direction) = reading.value;
            self.changes.seen.push((epoch, reading.kind, name));
        }
    }

    fn begin(&mut self, epoch: Epoch) {
        if !self.knows_epoch(epoch) {
            self.contents.seen.insert(epoch, ByKind::default());
            self.changes.begun.push(epoch);
        }
    }

    pub(super) fn knows_epoch(&self, epoch: Epoch) -> bool {
        self.contents.seen.contains_key(&epoch)
    }

    /// The cores of all other epochs are gone: what is read of them from now on comes too late.
    pub(super) fn end_all_but(&mut self, alive: &[Epoch]) {
        let gone: Vec<Epoch> = self.contents.seen.keys().copied().collect();
        for epoch in gone {
            if alive.contains(&epoch) {
                continue;
            }
            self.contents.seen.remove(&epoch);
            self.changes.seen.retain(|(of, ..)| *of != epoch);
            self.changes.begun.retain(|of| *of != epoch);
            self.changes.ended.push(epoch);
            self.ended.push_back(epoch);
            if self.ended.len() > ENDED {
                self.ended.pop_front();
            }
        }
    }

    /// What these cores together have counted since they started, whether it was delivered or not.
    pub(super) fn of_cores(&self, epochs: &[Epoch], of: &Of) -> Vec<Entry> {
        let seen = epochs
            .iter()
            .filter_map(|epoch| self.contents.seen.get(epoch));
        let mut sums: HashMap<(Kind, &Arc<str>), Bytes> = HashMap::new();
        for seen in seen {
            match of {
                Of::All(kind) => {
                    for (name, bytes) in table(seen, *kind) {
                        sums.entry((*kind, name)).or_default().add(*bytes);
                    }
                }
                Of::One(kind, name) => {
                    if let Some((name, bytes)) = table(seen, *kind).get_key_value(name.as_str()) {
                        sums.entry((*kind, name)).or_default().add(*bytes);
                    }
                }
            }
        }
        let entry = |((kind, name), bytes): ((Kind, &Arc<str>), Bytes)| Entry {
            kind,
            name: Arc::clone(name),
            bytes,
        };
        sums.into_iter().map(entry).collect()
    }

    /// What everybody and everything used.
    pub(super) fn totals(&self) -> Vec<Total> {
        let now = self.contents.time;
        let mut on_their_way: HashMap<(Kind, &Arc<str>), (Bytes, u64)> = HashMap::new();
        for delivery in self.contents.deliveries.values() {
            for entry in &delivery.entries {
                let (sum, since) = on_their_way
                    .entry((entry.kind, &entry.name))
                    .or_insert((Bytes::default(), now));
                sum.add(entry.bytes);
                *since = delivery.made.min(*since);
            }
        }
        let rows = |kind| table(&self.contents.rows, kind).iter();
        let all = Kind::ALL
            .into_iter()
            .flat_map(|kind| rows(kind).map(move |(name, row)| (kind, name, row)));
        let total = |(kind, name, row): (Kind, &Arc<str>, &Row)| {
            let nothing = (Bytes::default(), now);
            let way = on_their_way.get(&(kind, name)).copied();
            let (mut pending, mut since) = way.unwrap_or(nothing);
            if !row.pending.is_zero() {
                pending.add(row.pending);
                since = row.since.min(since);
            }
            Total {
                kind,
                name: Arc::clone(name),
                lifetime: row.lifetime,
                pending,
                waits: now.saturating_sub(since),
            }
        };
        all.map(total).collect()
    }

    /// Whether bytes were ever counted for this name, as far as that is still known.
    pub(super) fn knows(&self, kind: Kind, name: &str) -> bool {
        let mut epochs = self.contents.seen.keys();
        table(&self.contents.rows, kind).contains_key(name)
            || epochs.any(|epoch| self.knows_of(*epoch, kind, name))
    }

    /// Whether this core has counted anything for this name.
    pub(super) fn knows_of(&self, epoch: Epoch, kind: Kind, name: &str) -> bool {
        let seen = self.contents.seen.get(&epoch);
        seen.is_some_and(|seen| table(seen, kind).contains_key(name))
    }

    /// Makes one delivery of what is pending, as far as it fits into so many bytes of a reply; `None` where
    /// nothing is. The rest stays pending.
    pub(super) fn report(&mut self, of: &Of, reply: usize) -> Result<Option<u64>, TooMany> {
        self.room(Proof::Evidence, MAX_REPORTS)?;
        let mut length = 0_usize;
        let mut fits = |name: &str| {
            length = length.saturating_add(2 * (name.len() + ENTRY));
            length <= reply
        };
        let names: Vec<(Kind, Arc<str>)> = match of {
            Of::All(kind) => self
                .pending(*kind)
                .take_while(|(_, name)| fits(name))
                .collect(),
            Of::One(kind, name) => table(&self.contents.rows, *kind)
                .get_key_value(name.as_str())
                .filter(|(_, row)| !row.pending.is_zero())
                .map(|(name, _)| (*kind, Arc::clone(name)))
                .into_iter()
                .collect(),
        };
        Ok(self.deliver(Proof::Evidence, names))
    }

    /// Makes one batch of what is pending, with so many entries at most; `None` where nothing is.
    pub(super) fn batch(&mut self, limit: usize) -> Result<Option<u64>, TooMany> {
        self.room(Proof::Receipt, MAX_BATCHES)?;
        let names = Kind::ALL
            .into_iter()
            .flat_map(|kind| self.pending(kind))
            .take(limit)
            .collect();
        Ok(self.deliver(Proof::Receipt, names))
    }

    /// The first batch behind `cursor` that has no receipt.
    pub(super) fn batch_after(&self, cursor: u64) -> Option<u64> {
        let behind = self.contents.deliveries.range(cursor.saturating_add(1)..);
        behind
            .filter(|(_, delivery)| delivery.proof == Proof::Receipt)
            .map(|(id, _)| *id)
            .next()
    }

    pub(super) fn delivery(&self, id: u64) -> Option<&Delivery> {
        self.contents.deliveries.get(&id)
    }

    pub(super) fn is_anything_pending(&self) -> bool {
        Kind::ALL
            .into_iter()
            .any(|kind| self.pending(kind).next().is_some())
    }

    fn pending(&self, kind: Kind) -> impl Iterator<Item = (Kind, Arc<str>)> {
        table(&self.contents.rows, kind)
            .iter()
            .filter(|(_, row)| !row.pending.is_zero())
            .map(move |(name, _)| (kind, Arc::clone(name)))
    }

    fn room(&self, proof: Proof, most: usize) -> Result<(), TooMany> {
        let deliveries = self.contents.deliveries.values();
        let there = deliveries.filter(|delivery| delivery.proof == proof);
        match there.count() {
            count if count < most => Ok(()),
            count => Err(TooMany(count)),
        }
    }

    fn deliver(&mut self, proof: Proof, names: Vec<(Kind, Arc<str>)>) -> Option<u64> {
        if names.is_empty() {
            return None;
        }
        let mut entries = Vec::with_capacity(names.len());
        for (kind, name) in names {
            if let Some(row) = of_kind(&mut self.contents.rows, kind).get_mut(&name) {
                let bytes = std::mem::take(&mut row.pending);
                self.pending.end(kind, row.since);
                self.pending.take(kind, bytes);
                self.changes.rows.push((kind, Arc::clone(&name)));
                entries.push(Entry { kind, name, bytes });
            }
        }
        self.contents.next += 1;
        let id = self.contents.next;
        let delivery = Delivery {
            proof,
            made: self.contents.time,
            entries,
        };
        self.contents.deliveries.insert(id, delivery);
        self.changes.deliveries.insert(id);
        Some(id)
    }

    /// A delivery has arrived. Repeating that changes nothing.
    pub(super) fn settle(&mut self, id: u64) -> Option<Sum> {
        let delivery = self.contents.deliveries.remove(&id)?;
        self.changes.deliveries.insert(id);
        Some(sum(&delivery))
    }

    /// A batch has arrived; what is no batch is left alone.
    pub(super) fn receipt(&mut self, id: u64) -> bool {
        let is_batch = |delivery: &Delivery| delivery.proof == Proof::Receipt;
        self.delivery(id).is_some_and(is_batch) && self.settle(id).is_some()
    }

    /// A delivery has not arrived and never will: its bytes are pending again.
    pub(super) fn put_back(&mut self, id: u64) -> Option<Sum> {
        let delivery = self.contents.deliveries.remove(&id)?;
        let sum = sum(&delivery);
        self.changes.deliveries.insert(id);
        for Entry { kind, name, bytes } in delivery.entries {
            let row = of_kind(&mut self.contents.rows, kind)
                .entry(Arc::clone(&name))
                .or_default();
            if row.pending.is_zero() {
                row.since = delivery.made;
            } else {
                self.pending.end(kind, row.since);
            }
            row.since = row.since.min(delivery.made);
            row.pending.add(bytes);
            self.pending.begin(kind, row.since);
            self.pending.add(kind, bytes);
            self.changes.rows.push((kind, name));
        }
        Some(sum)
    }

    /// The reports that were on their way when the last daemon ended.
    pub(super) fn reports(&self) -> Vec<u64> {
        let deliveries = self.contents.deliveries.iter();
        deliveries
            .filter(|(_, delivery)| delivery.proof == Proof::Evidence)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Lets go of what nobody collected for so long, and forgets who used nothing for so long.
    pub(super) fn expire(&mut self, retention: u64) -> Sum {
        let Some(limit) = self.contents.time.checked_sub(retention) else {
            return Sum::default();
        };
        let mut lost = Sum::default();
        for kind in Kind::ALL {
            let (changes, pending) = (&mut self.changes, &mut self.pending);
            of_kind(&mut self.contents.rows, kind).retain(|name, row| {
                if !row.pending.is_zero() && row.since < limit {
                    lost.add(row.pending);
                    pending.end(kind, row.since);
                    pending.take(kind, row.pending);
                    row.pending = Bytes::default();
                    changes.rows.push((kind, Arc::clone(name)));
                }
                let stays = !row.pending.is_zero() || row.changed >= limit;
                if !stays {
                    changes.rows.push((kind, Arc::clone(name)));
                }
                stays
            });
        }
        let deliveries = &self.contents.deliveries;
        let old: Vec<u64> = deliveries
            .iter()
            .filter(|(_, delivery)| delivery.made < limit)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            if let Some(sum) = self.settle(id) {
                lost.entries += sum.entries;
                lost.bytes = lost.bytes.saturating_add(sum.bytes);
            }
        }
        lost
    }
}

fn sum(delivery: &Delivery) -> Sum {
    let mut sum = Sum::default();
    for entry in &delivery.entries {
        sum.add(entry.bytes);
    }
    sum
}

/// The name as it is known, so that it is stored once, and what was seen of it.
fn known<'a>(
    seen: &'a mut HashMap<Arc<str>, Bytes>,
    rows: &HashMap<Arc<str>, Row>,
    name: &str,
) -> (Arc<str>, &'a mut Bytes) {
    let name = match seen.get_key_value(name) {
        Some((name, _)) => Arc::clone(name),
        None => rows
            .get_key_value(name)
            .map_or_else(|| Arc::from(name), |(name, _)| Arc::clone(name)),
    };
    let seen = seen.entry(Arc::clone(&name)).or_default();
    (name, seen)
}

/// The part of a table that is about one kind.
pub(super) fn table<T>(tables: &ByKind<T>, kind: Kind) -> &HashMap<Arc<str>, T> {
    let [users, inbounds, outbounds] = tables;
    match kind {
        Kind::User => users,
        Kind::Inbound => inbounds,
        Kind::Outbound => outbounds,
    }
}

pub(super) fn of_kind<T>(tables: &mut ByKind<T>, kind: Kind) -> &mut HashMap<Arc<str>, T> {
    let [users, inbounds, outbounds] = tables;
    match kind {
        Kind::User => users,
        Kind::Inbound => inbounds,
        Kind::Outbound => outbounds,
    }
}
