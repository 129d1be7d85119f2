//! A core makes way for another one: the steps as they are really made, and what becomes of the one that
//! made way. Their order is [`crate::xray::handover::procedure`].

mod between;
mod cut;
mod drain;
mod ports;
mod shared;

pub(super) use self::between::{Between, Means, Successor, open_again};
pub(super) use self::drain::{Drain, Event, GivenBack, What};
pub(super) use self::ports::{groups_of, is_inbound};
pub(super) use self::shared::SharedPorts;
