//! Who runs the node: its operator, over a unix socket in `RUNTIME_DIR` that nobody else can open.
//!
//! `raynode` the command is the client ([`crate::cli`]). Over the same calls of the
//! [`Node`](crate::node::Node) as panels; but no call here needs a session or makes one.

mod config;
mod identity;
mod installing;
mod logs;
mod service;
pub mod socket;
mod status;
mod users;

pub use self::identity::Identity;
pub use self::installing::Installing;
pub use self::service::{Facts, Operator};
