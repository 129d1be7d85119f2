//! What is in force, and where that comes from. No secret is in it.

use std::collections::HashMap;

use arc_swap::ArcSwap;
use std::sync::Arc;

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
    /// Where that comes from: `environment`, a file, or `default`.
    pub from: String,
    /// Whether `raynode reload` takes a change over; otherwise a restart does.
    pub live: bool,
}

impl Effective {
    /// Every setting as it is there.
    #[must_use]
    pub fn all(sources: &Sources) -> Vec<Self> {
        reference::all().map(|one| Self::of(one, sources)).collect()
    }

    fn of(setting: &Setting, sources: &Sources) -> Self {
        let (value, from) = match sources.find_value(setting.name) {
            Some((_, from)) if setting.secret => (HIDDEN.to_owned(), from),
            Some((value, from)) => (shown(value), from),
            None => (setting.default.replace('`', ""), "default".to_owned()),
        };
        Self {
            name: setting.name,
            value,
            from,
            live: setting.live,
        }
    }
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
pub struct InForce(ArcSwap<Vec<Effective>>);

impl InForce {
    /// Those of this daemon, at its start.
    #[must_use]
    pub fn at_the_start() -> Self {
        let (sources, _) = Sources::of_the_daemon();
        Self(ArcSwap::from_pointee(Effective::all(&sources)))
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Arc<Vec<Effective>> {
        self.0.load_full()
    }

    /// What can change while a daemon runs was read anew.
    pub fn take_over_live_ones(&self) {
        let (sources, _) = Sources::of_the_daemon();
        let fresh = Effective::all(&sources).into_iter();
        let fresh = fresh.filter(|one| one.live).map(|one| (one.name, one));
        let mut fresh: HashMap<_, _> = fresh.collect();
        let all = self.all();
        let now = all.iter();
        let now = now.map(|one| fresh.remove(one.name).unwrap_or_else(|| one.clone()));
        self.0.store(Arc::new(now.collect()));
    }
}
