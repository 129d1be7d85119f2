//! The node as its operator runs it, with a real Xray behind it, real TLS in front of it, and real
//! clients. One binary, a module per subject.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::needless_pass_by_value,
    reason = "a test fails loudly"
)]

#[path = "../support/mod.rs"]
mod support;

mod capabilities;
mod counted;
mod delivered;
mod doctor;
mod door;
mod every_client;
mod found;
mod go_client;
mod going_back;
mod handover;
mod held;
mod hostile;
mod installing;
mod journal;
mod lingering;
mod living_on;
mod metrics;
mod mutated;
mod notified;
mod one_order;
mod operator;
mod process;
mod python_client;
mod refusals;
mod replacing;
mod rest;
mod routing;
mod scenarios;
mod session;
mod signals;
mod sync;
mod traffic;
mod transports;
mod watching;

/// The daemon that the tests start.
const NODE: &str = env!("CARGO_BIN_EXE_raynode");
