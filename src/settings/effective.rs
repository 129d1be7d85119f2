//! What is in force, and where that comes from. No secret is in it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::reference::{self, Setting};
use super::source::Sources;
use crate::xray::install::shown_url;

const HIDDEN: &str = "(hidden)";

/// A setting as it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Which setting.
    pub name: &'static str,
    /// Its value; `(hidden)` for a secret, and a URL without its password.
    pub value: String,
    /// By what it is known to be the same, also where it is not shown: tells nothing of the value to who does not
    /// know it.
    pub digest: String,
    /// Where that comes from: `environment`, a file, or `default`.
    pub from: String,
    /// Whether `raynode reload` takes a change over; otherwise a restart does.
    pub live: bool,
}

impl Effective {
    /// Every setting as it is there. Digests are the same for who uses the same `salt` only.
    #[must_use]
    pub fn all(sources: &Sources, salt: Uuid) -> Vec<Self> {
        let of = |setting| Self::of(setting, sources, salt);
        reference::all().map(of).collect()
    }

    fn of(setting: &Setting, sources: &Sources, salt: Uuid) -> Self {
        let found = sources.find_value(setting.name);
        let is_set = found.is_some();
        let (value, from) =
            found.unwrap_or_else(|| (setting.default.replace('`', ""), "default".to_owned()));
        Self {
            name: setting.name,
            digest: digest(salt, setting.name, &value),
            value: if is_set && setting.secret {
                HIDDEN.to_owned()
            } else {
                shown(value)
            },
            from,
            live: setting.live,
        }
    }
}

fn digest(salt: Uuid, name: &str, value: &str) -> String {
    let digest = Sha256::new()
        .chain_update(salt)
        .chain_update(name)
        .chain_update([0])
        .chain_update(value)
        .finalize();
    digest.iter().take(8).fold(String::new(), |mut text, byte| {
        // A text takes all that is written to it.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

fn shown(value: String) -> String {
    let is_url = value.contains("://");
    let hides = value.contains('@') || value.contains('?');
    if is_url && hides {
        shown_url(&value)
    } else {
        value
    }
}

/// The settings of a daemon that runs.
#[derive(Debug)]
pub struct InForce {
    file: PathBuf,
    salt: Uuid,
    all: ArcSwap<Vec<Effective>>,
}

impl InForce {
    /// Those of this daemon, at its start.
    #[must_use]
    pub fn at_the_start() -> Self {
        let (sources, _) = Sources::of_the_daemon();
        let salt = Uuid::new_v4();
        Self {
            file: sources.absolute_file(),
            all: ArcSwap::from_pointee(Effective::all(&sources, salt)),
            salt,
        }
    }

    /// The file that they are read from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// With what the digests are made.
    #[must_use]
    pub fn salt(&self) -> Uuid {
        self.salt
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Arc<Vec<Effective>> {
        self.all.load_full()
    }

    /// What is written now.
    #[must_use]
    pub fn written(&self) -> Vec<Effective> {
        let (sources, _) = Sources::of_the_daemon();
        Effective::all(&sources, self.salt)
    }

    /// What can change while a daemon runs was taken over, but for those that were `refused`.
    pub fn take_over_live_ones(&self, written: Vec<Effective>, refused: &[&str]) {
        let fresh = written.into_iter();
        let fresh = fresh.filter(|one| one.live && !refused.contains(&one.name));
        let mut fresh: HashMap<_, _> = fresh.map(|one| (one.name, one)).collect();
        let all = self.all();
        let now = all.iter();
        let now = now.map(|one| fresh.remove(one.name).unwrap_or_else(|| one.clone()));
        self.all.store(Arc::new(now.collect()));
    }
}
