//! What only the driver can tell: it is asked between two changes.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::plan::Desired;
use crate::xray::config::Skeleton;

/// How many may wait to be told.
pub(super) const LOOKS: usize = 16;

/// Something that somebody wants to be told.
#[derive(Debug)]
pub(super) enum Look {
    /// Who may connect, and through which inbounds.
    Users(oneshot::Sender<Vec<Listed>>),
    /// What is served, or is to be.
    Applied(oneshot::Sender<Option<Desired>>),
    /// What a Start with this configuration and the users of now would do.
    Compare(Arc<Skeleton>, oneshot::Sender<Comparison>),
}

/// Somebody who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Who.
    pub email: Arc<str>,
    /// Tags of the inbounds that he may use, sorted.
    pub inbounds: Vec<Arc<str>>,
}

/// What a Start would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The rung of the ladder.
    pub step: Step,
    /// The parts of the configuration that differ.
    pub differences: Vec<String>,
    /// Who of the users of now would not be served any more, sorted.
    pub dropped: Vec<String>,
}

/// A rung of the ladder from what runs to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It runs already.
    Nothing,
    /// Users are changed over the core's API.
    Users,
    /// Rules are changed over the core's API.
    Rules,
    /// Another core takes over.
    HandOver,
    /// The core is stopped and started anew, and why no other one can be started beside it.
    Restart(String),
    /// A core is started where none was.
    Fresh,
}
