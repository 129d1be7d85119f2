//! Who calls us: panels.
//!
//! A call's way: [`listener`] accepts it over TLS, the [`gate`] checks who calls and counts it,
//! [`front`] sees which transport it speaks, [`grpc`] turns its message into a call of the
//! [`Node`](crate::node::Node) and the answer back into a message, [`rest`] does the same by path over
//! the same calls, [`status`] turns what went wrong into the code and text that panels match on. Below
//! HTTP, `delivery` finds out whether a report of usage arrived.

mod auth;
mod chunks;
pub mod client_cert;
pub mod cores;
mod crowd;
mod delivery;
pub mod doorman;
mod frames;
pub mod front;
pub mod gate;
pub mod grpc;
pub mod health;
mod json;
pub mod key_ring;
pub mod listener;
pub mod maintenance;
mod methods;
mod observed;
mod openapi;
pub mod ports;
pub mod receipts;
pub mod reflection;
pub mod reload;
pub mod rest;
mod routes;
mod routing;
pub mod status;
mod throttle;
pub mod tls;
mod usage;
pub mod wire;

pub use self::auth::{Keys, NamedKey};
