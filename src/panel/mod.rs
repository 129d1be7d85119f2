//! Who calls us: panels.
//!
//! A call's way: [`listener`] accepts it over TLS, the [`gate`] checks who calls and counts it,
//! [`grpc`] turns its message into a call of the [`Node`](crate::node::Node) and the answer back into
//! a message, [`status`] turns what went wrong into the code and text that panels match on.

mod auth;
mod chunks;
pub mod gate;
pub mod grpc;
pub mod listener;
pub mod status;
pub mod tls;
pub mod wire;

pub use self::auth::Keys;

/// The largest message that is taken or sent, in bytes.
pub const MAX_MESSAGE: usize = 64 << 20;
