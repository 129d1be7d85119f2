//! `raynode` runs on a server beside Xray. A panel tells it who may connect; it keeps Xray running
//! with exactly those users, counts what they use, and says who is online.
//!
//! The house, and the way of a call through it:
//!
//! ```text
//! cli ──▶ app ──▶ settings, identity, telemetry
//!          │
//!          ▼
//!        panel ─────────▶ node ───────────────▶ xray
//!        listener, tls    driver: one change    config: pure rewriting
//!        gate: who calls    at a time           core: a process, start to end
//!        grpc: messages   plan, roster: pure    client: its API, typed
//!        status: codes    reads: never wait     logs: every line to every viewer
//!                         boot: what was left   record: found by the next daemon
//!                         last_good: on disk    handover: from one core to the next
//!                           │
//!                           ▼
//!                         usage: counters ──▶ ledger ──▶ panel
//! ```
//!
//! Calls go one way, to the right. `node` knows no type of a transport, `xray` knows no session. Beside the
//! panel, `operator` answers whoever runs the node, `scrape` shows Prometheus what the node is and what
//! `telemetry` has counted, and `systemd` tells whoever started the daemon what `node` does.

pub mod app;
pub mod cli;
pub mod doctor;
pub mod host;
pub mod identity;
pub mod installer;
pub mod node;
pub mod operator;
pub mod panel;
pub mod proto;
pub mod scrape;
pub mod settings;
pub mod shutdown;
pub mod systemd;
pub mod telemetry;
pub mod usage;
pub mod xray;

mod disk;
mod lock;
mod replace;
