//! A node at a moment, in the words of its API.

use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use super::Facts;
use crate::node::{Absent, LastChange, Node, Session, UnderWay};
use crate::proto::raynode::v1::{
    ChangeUnderWay, GetStatusResponse, LastChange as NamedChange, PanelSession, Phase,
};
use crate::usage::counter::Kind;

pub(super) async fn of(node: &Node, facts: &Facts) -> GetStatusResponse {
    let overview = node.overview().await;
    let usage = node.usage_figures();
    let now = Instant::now();
    let until = |then: Instant| then.saturating_duration_since(now).as_secs();
    let (phase, reason, next_seconds) = match &overview.standing.core {
        Ok(_) => match overview.standing.lingers_until {
            Some(end) => (Phase::Lingering, String::new(), until(end)),
            None => (Phase::Serving, String::new(), 0),
        },
        Err(Absent::Unwanted(_)) => (Phase::Idle, String::new(), 0),
        Err(Absent::Comes(_, retry)) => (Phase::Down, String::new(), retry.map_or(0, until)),
        Err(Absent::GaveUp(why)) => (Phase::GaveUp, why.to_string(), 0),
    };
    GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id().cast_signed(),
        started: unix_seconds(facts.started),
        phase: phase.into(),
        reason,
        next_seconds,
        session: overview.session.map(|session| panel(&session, now)),
        users: overview.users as u64,
        online: overview.online.map(|count| count as u64),
        oldest_pending_seconds: usage
            .pending_for(Kind::User)
            .map_or(0, |span| span.as_secs()),
        instance: facts.instance.to_string(),
        pending_bytes: usage.pending.of(Kind::User).total(),
        deliveries: usage.deliveries as u64,
        binary: shown(overview.binary),
        silent_seconds: overview.silent.map_or(0, |span| span.as_secs()),
        metrics: facts
            .metrics
            .get()
            .map(ToString::to_string)
            .unwrap_or_default(),
        under_way: overview.under_way.map(|change| under_way(&change)),
        last_change: overview.last_change.map(|change| last_change(&change)),
        changes: overview.changes,
        address: facts.identity.address.to_string(),
        certificate_ends: facts.identity.certificate.ends().unwrap_or_default(),
    }
}

fn shown(path: Option<PathBuf>) -> String {
    path.map(|path| path.display().to_string())
        .unwrap_or_default()
}

fn panel(session: &Session, now: Instant) -> PanelSession {
    let since = |then: Instant| now.saturating_duration_since(then).as_secs();
    PanelSession {
        seconds: since(session.started()),
        silent_seconds: since(session.last_call()),
        keep_alive_seconds: session.keep_alive().map_or(0, |span| span.as_secs()),
    }
}

fn under_way(change: &UnderWay) -> ChangeUnderWay {
    ChangeUnderWay {
        what: change.what.to_owned(),
        seconds: change.since.elapsed().as_secs(),
    }
}

fn last_change(change: &LastChange) -> NamedChange {
    NamedChange {
        what: change.what.to_owned(),
        how: change.how.clone(),
        refused: change.refused.clone().unwrap_or_default(),
        seconds_ago: change.at.elapsed().as_secs(),
    }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}
