//! What a configuration would change.

use tonic::{Code, Status};

use crate::node::{Comparison, Error, Step};
use crate::panel::status;
use crate::proto::raynode::v1::{CompareConfigResponse, Step as Named};

/// How many of those who would be dropped are named.
const NAMED: usize = 100;

pub(super) fn status_of(error: &Error) -> Status {
    match error {
        Error::Config(_) => Status::new(Code::InvalidArgument, error.to_string()),
        _ => status::of(error),
    }
}

pub(super) fn response(compared: Comparison) -> CompareConfigResponse {
    let (step, ends_connections) = match compared.step {
        Step::Nothing => (Named::Nothing, String::new()),
        Step::Users => (Named::Users, String::new()),
        Step::Rules => (Named::Rules, String::new()),
        Step::HandOver => (Named::HandOver, String::new()),
        Step::Restart(why) => (Named::Restart, why),
        Step::Fresh => (Named::Start, String::new()),
    };
    CompareConfigResponse {
        step: step.into(),
        differences: compared.differences,
        dropped_count: compared.dropped.len() as u64,
        dropped_users: compared.dropped.into_iter().take(NAMED).collect(),
        ends_connections,
    }
}
