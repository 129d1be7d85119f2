//! What the node serves, on disk: so that it serves again when daemon and panel are gone.
//!
//! A snapshot holds the configuration and everybody in it; a journal behind it holds what has changed
//! since, one line a change. Changes of users are written down *before* the core is told, and put
//! right where the core refuses: a daemon that dies between is followed by one that knows what was
//! wanted, and finishes it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lz4_flex::frame::{FrameDecoder, FrameEncoder, FrameInfo};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::applied::Applied;
use super::plan::{UserChanges, UserOp};
use super::roster::Roster;
use super::user::Email;
use crate::disk;
use crate::xray::account::Account;
use crate::xray::config::Skeleton;

/// The snapshot's form; another one is moved aside.
const FORMAT: u32 = 1;
/// A journal of so many bytes is worth a new snapshot, if the snapshot is not larger still.
const LONG_JOURNAL: u64 = 4 << 20;
/// How often a disk that refuses is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// The same where there is no other place either.
const SOON: Duration = Duration::from_secs(2);

/// The files, and how they are.
#[derive(Debug)]
pub(super) struct LastGood {
    /// Outlives the machine.
    place: Place,
    /// Outlives the daemon: for as long as the disk refuses.
    spare: Place,
    /// What a core was given that does not serve yet.
    next: Place,
    /// Stands beside the core's record while both are older than what the core has.
    outdated: PathBuf,
    journal: Option<Journal>,
    failed: Option<Instant>,
    stopped: bool,
    /// Counts the snapshots: of two, the later one is the one that counts.
    sequence: u64,
}

#[derive(Clone, Debug)]
struct Place {
    snapshot: PathBuf,
    journal: PathBuf,
}

impl Place {
    fn below(folder: &Path) -> Self {
        Self {
            snapshot: folder.join("last-good"),
            journal: folder.join("last-good.journal"),
        }
    }

    /// Works where nothing can be written.
    fn clear(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.snapshot) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, id: Uuid, writing: &Writing<'_>) -> io::Result<Journal> {
        disk::write_private_by(&self.snapshot, |file| {
            // With a checksum: one flipped bit could be another user's secret.
            let form = FrameInfo::new().content_checksum(true);
            let mut encoder = FrameEncoder::with_frame_info(form, BufWriter::new(file));
            serde_json::to_writer(&mut encoder, writing)?;
            encoder.finish().map_err(io::Error::other)?.flush()
        })?;
        // A journal of another snapshot is not read, so it may be there until now.
        let mut first = serde_json::to_vec(&Entry::Of(id))?;
        first.push(b'\n');
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.journal)?;
        file.write_all(&first)?;
        Ok(Journal {
            file,
            bytes: 0,
            snapshot_bytes: std::fs::metadata(&self.snapshot)?.len(),
            unsynced: true,
        })
    }

    fn replay(&self, snapshot: Uuid, restored: &mut Restored) -> io::Result<()> {
        let file = match File::open(&self.journal) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // No more than is there now: a device has no end.
        let length = file.metadata()?.len();
        let mut reader = BufReader::new(file.take(length));
        let mut line = Vec::new();
        let mut first = true;
        loop {
            line.clear();
            reader.read_until(b'\n', &mut line)?;
            // A line that was torn by the end of its writer has no end either.
            let Some(text) = line.strip_suffix(b"\n") else {
                return Ok(());
            };
            match serde_json::from_slice(text)? {
                Entry::Of(id) if first && id == snapshot => first = false,
                // It belongs to an older snapshot, which had all of it.
                _ if first => return Ok(()),
                Entry::Of(_) => {}
                Entry::Put(tag, email, account) => {
                    let email = Email::from(&*email);
                    restored.applied.roster.put(&tag, &email, account);
                }
                Entry::Take(tag, email) => {
                    restored.applied.roster.take(&tag, &Email::from(&*email));
                }
                Entry::Stopped(stopped) => restored.stopped = stopped,
            }
        }
    }
}

#[derive(Debug)]
struct Journal {
    file: File,
    bytes: u64,
    snapshot_bytes: u64,
    unsynced: bool,
}

/// What was found on disk.
pub(super) struct Restored {
    sequence: u64,
    /// The core that had it.
    pub(super) core: Uuid,
    /// What it had.
    pub(super) applied: Applied,
    /// The panel stopped the node, and nobody started it again.
    pub(super) stopped: bool,
    /// How long the panel may be silent.
    pub(super) keep_alive: Option<Duration>,
    /// The disk refused what came later: the core knows better.
    pub(super) outdated: bool,
}

#[derive(Serialize)]
struct Writing<'a> {
    format: u32,
    id: Uuid,
    sequence: u64,
    core: Uuid,
    stopped: bool,
    keep_alive: Option<u64>,
    overrides: &'a BTreeMap<String, String>,
    skeleton: &'a Skeleton,
    users: RosterAsMap<'a>,
}

#[derive(Deserialize)]
struct Reading {
    format: u32,
    id: Uuid,
    sequence: u64,
    core: Uuid,
    stopped: bool,
    keep_alive: Option<u64>,
    overrides: BTreeMap<String, String>,
    skeleton: Skeleton,
    users: HashMap<String, HashMap<String, Option<Account>>>,
}

/// One line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    /// The snapshot that the journal belongs to; always the first line.
    Of(Uuid),
    /// A user has this account on this inbound, or (`None`) nobody knows which.
    Put(Arc<str>, String, Option<Account>),
    /// A user is gone from an inbound.
    Take(Arc<str>, String),
    /// The panel stopped the node, or started it again.
    Stopped(bool),
}

struct RosterAsMap<'a>(&'a Applied);
/// The users of one inbound.
struct UsersAsMap<'a>(
    &'a Applied,
    &'a Arc<str>,
    &'a HashMap<Email, Option<Account>>,
);

impl Serialize for RosterAsMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (tag, inbound) in self.0.roster.inbounds() {
            map.serialize_entry(&**tag, &UsersAsMap(self.0, tag, &inbound.users))?;
        }
        map.end()
    }
}

impl Serialize for UsersAsMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(applied, tag, users) = self;
        let mut map = serializer.serialize_map(None)?;
        for (email, account) in *users {
            // What the core was asked for and did not answer is still what is wanted.
            let unanswered = match account {
                Some(_) => None,
                None => applied.unanswered.get(&(Arc::clone(tag), email.clone())),
            };
            match unanswered {
                Some(None) => {}
                Some(wanted) => map.serialize_entry(email.as_str(), wanted)?,
                None => map.serialize_entry(email.as_str(), account)?,
            }
        }
        map.end()
    }
}

impl LastGood {
    /// The files of a node with these folders.
    pub(super) fn new(state_dir: &Path, runtime_dir: &Path) -> Self {
        Self {
            place: Place::below(state_dir),
            spare: Place::below(runtime_dir),
            next: Place {
                snapshot: runtime_dir.join("next-good"),
                journal: runtime_dir.join("next-good.journal"),
            },
            outdated: runtime_dir.join("last-good.outdated"),
            journal: None,
            failed: None,
            stopped: false,
            sequence: 0,
        }
    }

    /// What is there, and best what this core had. What can't be read is moved aside, loudly.
    pub(super) fn load(&mut self, core: Option<Uuid>) -> Option<Restored> {
        let both = [self.read(&self.place), self.read(&self.spare)];
        let latest = both
            .into_iter()
            .flatten()
            .max_by_key(|restored| restored.sequence);
        let is_its = |restored: &Restored| Some(restored.core) == core;
        let restored = match latest {
            Some(latest) if is_its(&latest) => Some(latest),
            // It had been given that, and the daemon died before it could say that it serves.
            latest => core.and_then(|core| self.load_next(core)).or(latest),
        };
        self.sequence = restored.as_ref().map_or(0, |restored| restored.sequence);
        self.stopped = restored.as_ref().is_some_and(|restored| restored.stopped);
        restored
    }

    /// What this core was given, which did not serve yet.
    pub(super) fn load_next(&self, core: Uuid) -> Option<Restored> {
        let next = self.read(&self.next);
        next.filter(|restored| restored.core == core)
    }

    fn read(&self, place: &Place) -> Option<Restored> {
        let path = &place.snapshot;
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the last good configuration can't be read");
                return None;
            }
        };
        let mut text = Vec::new();
        let read = FrameDecoder::new(BufReader::new(file))
            .read_to_end(&mut text)
            .and_then(|_| serde_json::from_slice::<Reading>(&text).map_err(io::Error::from));
        match read {
            Ok(reading) if reading.format == FORMAT => Some(self.restore(place, reading)),
            Ok(reading) => {
                tracing::error!(path = %path.display(), format = reading.format, "the last good configuration has a form that this version does not know");
                disk::move_aside(path);
                None
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the last good configuration is damaged, the node waits for its panel");
                disk::move_aside(path);
                None
            }
        }
    }

    fn restore(&self, place: &Place, reading: Reading) -> Restored {
        let mut roster = Roster::empty(reading.skeleton.inbounds());
        for (tag, users) in reading.users {
            for (email, account) in users {
                roster.put(&tag, &Email::from(&*email), account);
            }
        }
        let mut restored = Restored {
            sequence: reading.sequence,
            core: reading.core,
            applied: Applied {
                skeleton: Arc::new(reading.skeleton),
                roster,
                overrides: reading.overrides,
                unanswered: HashMap::new(),
                doubtful: false,
            },
            stopped: reading.stopped,
            keep_alive: reading.keep_alive.map(Duration::from_secs),
            outdated: self.outdated.exists(),
        };
        if let Err(error) = place.replay(reading.id, &mut restored) {
            tracing::error!(path = %place.journal.display(), %error, "the end of the journal can't be read; what came before it counts");
        }
        restored
    }

    /// Writes down all of it: what `core` has.
    pub(super) fn save(&mut self, core: Uuid, applied: &Applied, keep_alive: Option<Duration>) {
        self.sequence += 1;
        let writing = self.writing(core, applied, keep_alive);
        let id = writing.id;
        match self.place.write(id, &writing) {
            Ok(journal) => {
                if self.failed.take().is_some() {
                    tracing::info!(path = %self.place.snapshot.display(), "the disk takes the configuration again");
                }
                self.journal = Some(journal);
                drop(self.spare.clear());
                drop(std::fs::remove_file(&self.outdated));
            }
            Err(error) => {
                self.fail(&error);
                match self.spare.write(id, &writing) {
                    Ok(journal) => {
                        self.journal = Some(journal);
                        drop(std::fs::remove_file(&self.outdated));
                    }
                    Err(error) => {
                        tracing::error!(path = %self.spare.snapshot.display(), %error, "the next daemon will not know it either");
                        drop(self.spare.clear());
                    }
                }
            }
        }
    }

    /// Writes down what a core was given that does not serve yet, beside what serves.
    pub(super) fn save_next(
        &self,
        core: Uuid,
        applied: &Applied,
        keep_alive: Option<Duration>,
    ) -> io::Result<()> {
        let writing = self.writing(core, applied, keep_alive);
        self.next.write(writing.id, &writing).map(drop)
    }

    /// There is nothing that does not serve yet: it does, or never will.
    pub(super) fn forget_next(&self) {
        drop(self.next.clear());
    }

    fn writing<'a>(
        &self,
        core: Uuid,
        applied: &'a Applied,
        keep_alive: Option<Duration>,
    ) -> Writing<'a> {
        Writing {
            format: FORMAT,
            id: Uuid::new_v4(),
            sequence: self.sequence,
            core,
            stopped: self.stopped,
            keep_alive: keep_alive.map(|span| span.as_secs()),
            overrides: &applied.overrides,
            skeleton: &applied.skeleton,
            users: RosterAsMap(applied),
        }
    }

    /// Writes down what the core is about to be told.
    pub(super) fn intend(&mut self, changes: &UserChanges) {
        let ops = changes.first.iter().chain(&changes.then);
        self.append(ops.map(|op| match op {
            UserOp::Add {
                inbound,
                email,
                account,
            }
            | UserOp::Replace {
                inbound,
                email,
                account,
                ..
            } => put(inbound, email, Some(account)),
            UserOp::Remove { inbound, email } => take(inbound, email),
        }));
    }

    /// Writes down what the core has of these users after all.
    pub(super) fn correct<'a>(
        &mut self,
        roster: &Roster,
        users: impl Iterator<Item = &'a (Arc<str>, Email)>,
    ) {
        self.append(users.map(|(inbound, email)| {
            let known = roster.inbound(inbound);
            match known.and_then(|users| users.users.get(email)) {
                Some(account) => put(inbound, email, account.as_ref()),
                None => take(inbound, email),
            }
        }));
    }

    /// Writes down that the panel stopped the node, or started it again.
    pub(super) fn set_stopped(&mut self, stopped: bool) {
        if self.stopped != stopped {
            self.stopped = stopped;
            self.append(std::iter::once(Entry::Stopped(stopped)));
            if stopped && self.failed.is_some() {
                // It could not be told, and would serve again with the machine.
                drop(self.place.clear());
            }
        }
    }

    fn append(&mut self, entries: impl Iterator<Item = Entry>) {
        let mut entries = entries.peekable();
        if entries.peek().is_none() {
            return;
        }
        let Some(journal) = &mut self.journal else {
            return;
        };
        let mut text = Vec::new();
        let written = entries
            .try_for_each(|entry| {
                serde_json::to_writer(&mut text, &entry)?;
                text.push(b'\n');
                Ok(())
            })
            .and_then(|()| journal.file.write_all(&text));
        match written {
            Ok(()) => {
                journal.bytes += text.len() as u64;
                journal.unsynced = true;
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Takes away what is on disk where it could not be told that nothing is to be served any more.
    pub(super) fn forget_if_it_is_wrong(&mut self) {
        if self.failed.is_some() {
            self.forget();
        }
    }

    /// Takes away what is on disk. That works where nothing can be written.
    pub(super) fn forget(&mut self) {
        self.journal = None;
        match self.place.clear().and(self.spare.clear()) {
            Ok(()) => self.failed = None,
            Err(error) => self.fail(&error),
        }
    }

    /// Whether a new snapshot is due: the journal has grown long, or the disk may take it again.
    pub(super) fn wants_saving(&self, now: Instant) -> bool {
        match (&self.failed, &self.journal) {
            // What was to be written and was not is nowhere by now.
            (Some(at), None) => now.saturating_duration_since(*at) >= SOON,
            (Some(at), Some(_)) => now.saturating_duration_since(*at) >= RETRY,
            (None, Some(journal)) => journal.bytes > journal.snapshot_bytes.max(LONG_JOURNAL),
            (None, None) => false,
        }
    }

    /// Makes what was written last outlive the machine, too.
    pub(super) fn sync(&mut self) {
        if let Some(journal) = self.journal.as_mut().filter(|journal| journal.unsynced) {
            journal.unsynced = false;
            if let Err(error) = journal.file.sync_data() {
                self.fail(&error);
            }
        }
    }

    /// The node serves on; what the next one finds is old until the disk takes it again.
    fn fail(&mut self, error: &io::Error) {
        if self.failed.is_none() {
            tracing::error!(path = %self.place.snapshot.display(), %error, "the disk does not take what the node serves: after a restart of the machine it would serve what it had before. Trying again every 30 s");
        }
        self.failed = Some(Instant::now());
        self.journal = None;
        if let Err(error) = std::fs::write(&self.outdated, "") {
            tracing::error!(path = %self.outdated.display(), %error, "the next daemon can't be told either");
        }
    }
}

fn put(inbound: &Arc<str>, email: &Email, account: Option<&Account>) -> Entry {
    Entry::Put(
        Arc::clone(inbound),
        email.as_str().to_owned(),
        account.cloned(),
    )
}

fn take(inbound: &Arc<str>, email: &Email) -> Entry {
    Entry::Take(Arc::clone(inbound), email.as_str().to_owned())
}

#[cfg(test)]
mod tests;
