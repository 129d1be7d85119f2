//! Who looks from outside: Prometheus.
//!
//! Over plain HTTP on a port of its own, because whoever scrapes has neither the node's key nor its
//! certificate. What happened was counted where it happened ([`telemetry`](crate::telemetry)); what can be
//! looked up is looked up when somebody asks: in what the driver has published, in what the ledger's thread
//! has, and in `/proc`. Nothing here waits for either of them, nor for a core.

mod collector;
mod listener;
mod page;
mod text;

pub use self::listener::serve;
pub use self::page::Page;
