//! The book on disk: one file, one synced transaction for each set of changes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use prost::Message;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use uuid::Uuid;

use super::book::{Changes, Contents, Delivery, Entry, Epoch, Proof, Row, of_kind, table};
use super::counter::{Bytes, Kind};

/// Goes up with every change of what is written.
const FORMAT: u64 = 1;
/// The file is small and its pages are in the kernel's memory, too.
const CACHE: usize = 8 << 20;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const ID: TableDefinition<'_, &str, u128> = TableDefinition::new("id");
/// Pending up and down, lifetime up and down, since, changed.
type Columns = (u64, u64, u64, u64, u64, u64);
/// Of a kind and a name.
const ROWS: TableDefinition<'_, (u8, &str), Columns> = TableDefinition::new("rows");
/// Epoch, kind and name; up and down. An epoch of which nothing was counted yet has a row of its own.
const SEEN: TableDefinition<'_, (u128, u8, &str), (u64, u64)> = TableDefinition::new("seen");
/// The row that says no more than that an epoch is known.
const BEGUN: u8 = 9;
const DELIVERIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("deliveries");

/// Why the disk does not have it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The file is there and is not what was written.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The disk refuses.
    #[error("{0}")]
    Refused(String),
}

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        let error = error.into();
        let text = error.to_string();
        match error {
            redb::Error::Corrupted(_)
            | redb::Error::RepairAborted
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_) => Self::Damaged(text),
            redb::Error::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Damaged(text)
            }
            _ => Self::Refused(text),
        }
    }
}

/// The open file.
pub(super) struct Store {
    database: Database,
    /// This ledger's own number: deliveries of another one are others.
    pub(super) id: Uuid,
    /// The one before it was damaged: of what cores had counted under it some was delivered.
    pub(super) after_damage: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the file, or makes one, and reads all of it. A new one notes whether it is one `after_damage`.
    pub(super) fn open(path: &Path, after_damage: bool) -> Result<(Self, Contents), Error> {
        // What is in a file that something else has written must not end the program.
        let opened = calmly(|| {
            let store = Self::open_or_create(path, after_damage)?;
            let contents = store.read()?;
            Ok((store, contents))
        });
        opened.unwrap_or_else(|| Err(Error::Damaged("it can't be read".to_owned())))
    }

    fn open_or_create(path: &Path, after_damage: bool) -> Result<Self, Error> {
        let file = private(path).map_err(|error| Error::Refused(error.to_string()))?;
        let database = Database::builder()
            .set_cache_size(CACHE)
            .set_check_integrity_on_open(true)
            .create_with_backend(FileBackend::new(file)?)?;
        let transaction = database.begin_write()?;
        let (id, after_damage) = {
            let mut meta = transaction.open_table(META)?;
            let format = meta.get("format")?.map(|format| format.value());
            match format {
                None => {
                    meta.insert("format", FORMAT)?;
                    meta.insert("after_damage", u64::from(after_damage))?;
                }
                Some(FORMAT) => {}
                Some(other) => {
                    return Err(Error::Damaged(format!(
                        "it has format {other}, this version knows {FORMAT}"
                    )));
                }
            }
            let after_damage = meta.get("after_damage")?.map(|flag| flag.value());
            let mut ids = transaction.open_table(ID)?;
            let id = ids.get("id")?.map(|id| id.value());
            let id = id.unwrap_or_else(|| Uuid::new_v4().as_u128());
            ids.insert("id", id)?;
            transaction.open_table(ROWS)?;
            transaction.open_table(SEEN)?;
            transaction.open_table(DELIVERIES)?;
            (Uuid::from_u128(id), after_damage == Some(1))
        };
        transaction.commit()?;
        Ok(Self {
            database,
            id,
            after_damage,
        })
    }

    fn read(&self) -> Result<Contents, Error> {
        let transaction = self.database.begin_read()?;
        let mut contents = Contents::default();
        let meta = transaction.open_table(META)?;
        let number = |name| Ok::<_, Error>(meta.get(name)?.map_or(0, |value| value.value()));
        contents.next = number("next")?;
        contents.time = number("time")?;
        for item in transaction.open_table(ROWS)?.iter()? {
            let (key, value) = item?;
            let (kind, name) = key.value();
            let (up, down, lifetime_up, lifetime_down, since, changed) = value.value();
            let row = Row {
                pending: Bytes { up, down },
                lifetime: Bytes {
                    up: lifetime_up,
                    down: lifetime_down,
                },
                since,
                changed,
            };
            of_kind(&mut contents.rows, kind_of(kind)?).insert(Arc::from(name), row);
        }
        for item in transaction.open_table(SEEN)?.iter()? {
            let (key, value) = item?;
            let (epoch, kind, name) = key.value();
            let (up, down) = value.value();
            let seen = contents.seen.entry(Uuid::from_u128(epoch)).or_default();
            if kind == BEGUN {
                continue;
            }
            let kind = kind_of(kind)?;
            let name = match table(&contents.rows, kind).get_key_value(name) {
                Some((name, _)) => Arc::clone(name),
                None => Arc::from(name),
            };
            of_kind(seen, kind).insert(name, Bytes { up, down });
        }
        for item in transaction.open_table(DELIVERIES)?.iter()? {
            let (key, value) = item?;
            let delivery = DeliveryRecord::decode(value.value())
                .map_err(|error| Error::Damaged(error.to_string()))?;
            contents
                .deliveries
                .insert(key.value(), delivery.try_into()?);
        }
        Ok(contents)
    }

    /// Writes what has changed; when this returns it is on the disk.
    pub(super) fn commit(&self, contents: &Contents, changes: &Changes) -> Result<(), Error> {
        self.in_one(|transaction| write(transaction, contents, changes))
    }

    /// Writes everything anew, whatever is there, as the ledger of this number.
    pub(super) fn rewrite(&mut self, contents: &Contents, id: Uuid) -> Result<(), Error> {
        self.in_one(|transaction| {
            transaction.open_table(ID)?.insert("id", id.as_u128())?;
            transaction.delete_table(ROWS)?;
            transaction.delete_table(SEEN)?;
            transaction.delete_table(DELIVERIES)?;
            write(transaction, contents, &everything(contents))
        })?;
        self.id = id;
        Ok(())
    }

    fn in_one(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let done = calmly(|| {
            let transaction = self.database.begin_write()?;
            work(&transaction)?;
            transaction.commit()?;
            Ok(())
        });
        done.unwrap_or_else(|| Err(Error::Refused("it can't be written".to_owned())))
    }

    /// Gives pages back that nothing needs any more.
    pub(super) fn compact(&mut self) -> Result<(), Error> {
        self.database.compact()?;
        Ok(())
    }
}

/// `None` when it panics.
fn calmly<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).ok()
}

fn write(
    transaction: &WriteTransaction,
    contents: &Contents,
    changes: &Changes,
) -> Result<(), Error> {
    let mut meta = transaction.open_table(META)?;
    meta.insert("next", contents.next)?;
    meta.insert("time", contents.time)?;
    let mut rows = transaction.open_table(ROWS)?;
    for (kind, name) in &changes.rows {
        let key = (number_of(*kind), &**name);
        match table(&contents.rows, *kind).get(name) {
            Some(row) => drop(rows.insert(key, row_of(row))?),
            None => drop(rows.remove(key)?),
        }
    }
    let mut seen = transaction.open_table(SEEN)?;
    for epoch in &changes.ended {
        let of_epoch = (epoch.as_u128(), 0, "")..(epoch.as_u128(), u8::MAX, "");
        seen.retain_in(of_epoch, |_, _| false)?;
    }
    for epoch in &changes.begun {
        seen.insert((epoch.as_u128(), BEGUN, ""), (0, 0))?;
    }
    for (epoch, kind, name) in &changes.seen {
        let tables = contents.seen.get(epoch);
        if let Some(bytes) = tables.and_then(|seen| table(seen, *kind).get(name)) {
            let key = (epoch.as_u128(), number_of(*kind), &**name);
            seen.insert(key, (bytes.up, bytes.down))?;
        }
    }
    let mut deliveries = transaction.open_table(DELIVERIES)?;
    for id in &changes.deliveries {
        match contents.deliveries.get(id) {
            Some(delivery) => {
                let record = DeliveryRecord::from(delivery).encode_to_vec();
                deliveries.insert(id, record.as_slice())?;
            }
            None => drop(deliveries.remove(id)?),
        }
    }
    Ok(())
}

fn everything(contents: &Contents) -> Changes {
    let names = |kind, epoch: Option<Epoch>| -> Vec<Arc<str>> {
        match epoch {
            None => table(&contents.rows, kind).keys().cloned().collect(),
            Some(epoch) => contents
                .seen
                .get(&epoch)
                .map(|seen| table(seen, kind).keys().cloned().collect())
                .unwrap_or_default(),
        }
    };
    let mut changes = Changes::default();
    for kind in Kind::ALL {
        let rows = names(kind, None).into_iter().map(|name| (kind, name));
        changes.rows.extend(rows);
        for epoch in contents.seen.keys() {
            let seen = names(kind, Some(*epoch)).into_iter();
            changes.seen.extend(seen.map(|name| (*epoch, kind, name)));
        }
    }
    changes.begun = contents.seen.keys().copied().collect();
    changes.deliveries = contents.deliveries.keys().copied().collect();
    changes
}

/// The file for our user alone, there or new.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn row_of(row: &Row) -> Columns {
    (
        row.pending.up,
        row.pending.down,
        row.lifetime.up,
        row.lifetime.down,
        row.since,
        row.changed,
    )
}

fn number_of(kind: Kind) -> u8 {
    match kind {
        Kind::User => 0,
        Kind::Inbound => 1,
        Kind::Outbound => 2,
    }
}

fn kind_of(number: u8) -> Result<Kind, Error> {
    Kind::ALL
        .into_iter()
        .find(|kind| number_of(*kind) == number)
        .ok_or_else(|| Error::Damaged(format!("there is no kind {number}")))
}

#[derive(Clone, PartialEq, Message)]
struct DeliveryRecord {
    #[prost(bool, tag = "1")]
    by_receipt: bool,
    #[prost(uint64, tag = "2")]
    made: u64,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<EntryRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, tag = "3")]
    up: u64,
    #[prost(uint64, tag = "4")]
    down: u64,
}

impl From<&Delivery> for DeliveryRecord {
    fn from(delivery: &Delivery) -> Self {
        let entries = delivery.entries.iter().map(|entry| EntryRecord {
            kind: number_of(entry.kind).into(),
            name: entry.name.as_ref().to_owned(),
            up: entry.bytes.up,
            down: entry.bytes.down,
        });
        Self {
            by_receipt: delivery.proof == Proof::Receipt,
            made: delivery.made,
            entries: entries.collect(),
        }
    }
}

impl TryFrom<DeliveryRecord> for Delivery {
    type Error = Error;

    fn try_from(record: DeliveryRecord) -> Result<Self, Error> {
        let entries = record.entries.into_iter().map(|entry| {
            Ok(Entry {
                kind: kind_of(u8::try_from(entry.kind).unwrap_or(u8::MAX))?,
                name: entry.name.into(),
                bytes: Bytes {
                    up: entry.up,
                    down: entry.down,
                },
            })
        });
        Ok(Self {
            proof: if record.by_receipt {
                Proof::Receipt
            } else {
                Proof::Evidence
            },
            made: record.made,
            entries: entries.collect::<Result<_, Error>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::book::{Book, Of};
    use crate::usage::counter::{Direction, Reading};

    fn reading(name: &str, value: u64) -> Reading<'_> {
        Reading {
            kind: Kind::User,
            name,
            direction: Direction::Down,
            value,
        }
    }

    fn commit(store: &Store, book: &mut Book) {
        let changes = book.take_changes();
        store.commit(book.contents(), &changes).unwrap();
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let (store, contents) = Store::open(&path, false).unwrap();
        let id = store.id;
        let mut book = Book::new(contents);
        let (gone, epoch) = (Uuid::new_v4(), Uuid::new_v4());
        book.pass(7);
        book.count(gone, [reading("1", 10), reading("2", 5)]);
        commit(&store, &mut book);
        book.count(epoch, [reading("1", 3)]);
        book.end_all_but(&[epoch]);
        book.report(&Of::All(Kind::User), 1 << 20).unwrap();
        book.count(epoch, [reading("2", 4)]);
        let batch = book.batch(1).unwrap();
        book.settle(batch.unwrap());
        commit(&store, &mut book);
        let before = format!("{:?}", sorted(book.contents()));
        drop(store);
        let (store, contents) = Store::open(&path, true).unwrap();
        assert_eq!(format!("{:?}", sorted(&contents)), before);
        assert_eq!((store.id, store.after_damage), (id, false));
        drop(store);
        // The same ledger in another file.
        std::fs::remove_file(&path).unwrap();
        let (mut store, _) = Store::open(&path, true).unwrap();
        store.rewrite(&contents, id).unwrap();
        drop(store);
        let (store, contents) = Store::open(&path, false).unwrap();
        assert_eq!(format!("{:?}", sorted(&contents)), before);
        assert_eq!((store.id, store.after_damage), (id, true));
    }

    /// The same contents always as the same text.
    fn sorted(contents: &Contents) -> impl std::fmt::Debug + use<> {
        let everything = everything(contents);
        let mut rows: Vec<_> = everything
            .rows
            .iter()
            .map(|(kind, name)| {
                format!(
                    "{kind:?} {name} {:?}",
                    table(&contents.rows, *kind).get(name)
                )
            })
            .collect();
        let mut seen: Vec<_> = everything
            .seen
            .iter()
            .map(|(epoch, kind, name)| {
                format!(
                    "{epoch} {kind:?} {name} {:?}",
                    table(&contents.seen[epoch], *kind).get(name)
                )
            })
            .collect();
        rows.sort();
        seen.sort();
        let mut deliveries = contents.deliveries.clone();
        for delivery in deliveries.values_mut() {
            delivery.entries.sort_by(|a, b| a.name.cmp(&b.name));
        }
        (rows, seen, deliveries, contents.next, contents.time)
    }

    #[test]
    fn a_file_that_is_torn_or_something_else_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let damaged = |what: &str| match Store::open(&path, false) {
            Err(Error::Damaged(_)) => {}
            other => panic!("{what}: {other:?}"),
        };
        std::fs::write(&path, "this is no ledger").unwrap();
        damaged("something else");
        std::fs::remove_file(&path).unwrap();
        let (store, contents) = Store::open(&path, false).unwrap();
        let mut book = Book::new(contents);
        let epoch = Uuid::new_v4();
        let names: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
        book.count(epoch, names.iter().map(|name| reading(name, 1)));
        commit(&store, &mut book);
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        for torn in [whole.len() / 2, whole.len() / 3 * 2] {
            let mut content = whole.clone();
            for byte in &mut content[torn..torn + 5000] {
                *byte ^= 0x55;
            }
            std::fs::write(&path, &content).unwrap();
            damaged("overwritten in the middle");
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        damaged("cut in half");
    }
}
