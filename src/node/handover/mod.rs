//! A core makes way for another one: the steps as they are really made, and what becomes of the one that
//! made way. Their order is [`crate::xray::handover::procedure`].

mod between;
mod cut;
mod drain;

pub(super) use self::between::{
    Between, Means, Successor, groups_of, is_inbound, open_again, takers,
};
pub(super) use self::drain::{Drain, Event, GivenBack, What};
