//! What the node says about itself: its log, and what it counts.
//!
//! [`Metrics`] is handed to whoever has something to count; nobody needs more of it than the name of what
//! has happened. What can be looked up is counted by nobody: [`scrape`](crate::scrape) reads it when
//! somebody asks, and knows how it is told.

mod log;
pub mod metrics;
pub mod names;

pub use self::log::{init, set_level};
pub use self::metrics::Metrics;
