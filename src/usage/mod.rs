//! How much was used: from the core's counters to the panel, and nothing lost between them.
//!
//! The [`harvest`] reads a core's counters and never resets them; the [`book`] takes the differences and
//! knows what is pending, what is on its way and what has arrived; the `store` keeps the book on disk;
//! the [`ledger`] is the one thread that owns both, and the door for everybody else.

pub mod book;
pub mod counter;
pub mod harvest;
pub mod ledger;
mod online;
mod store;

use std::time::Duration;

pub use self::online::{Address, OnlineUser};

/// What the operator decides about usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How often the counters of those who are online are read.
    pub harvest_interval: Duration,
    /// How long usage is kept for a panel that does not collect it.
    pub retention: Duration,
    /// How many bytes a reply may have.
    pub reply: usize,
    /// What becomes of a report of which nobody can know whether it arrived.
    pub unsure: Unsure,
}

/// Which way a report falls of which nobody can know whether it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsure {
    /// It counts as arrived: nothing is ever billed twice.
    Settle,
    /// It comes again: nothing is ever given away.
    Return,
}
