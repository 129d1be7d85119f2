//! What went wrong, in the codes and texts that panels match on: the one table.

use http::StatusCode;
use tonic::{Code, Status};

use crate::node::Error;
use crate::usage::ledger;
use crate::xray::client;
use crate::xray::config::RuleError;

/// The status of a failed call.
///
/// `UNKNOWN` looks vague and is the contract: panels show its text to the operator and do not take
/// it for a broken connection.
#[must_use]
pub fn of(error: &Error) -> Status {
    let code = match error {
        Error::NotInitialized
        | Error::CoreNotStarted
        | Error::GaveUp(_)
        | Error::Busy
        | Error::Occupied(_)
        | Error::ShuttingDown
        | Error::SysStats(_)
        | Error::Usage(
            ledger::Error::Disk { .. } | ledger::Error::TooMany(_) | ledger::Error::Closed,
        )
        | Error::Read(client::Error::NoAnswer(_))
        | Error::Routing(client::Error::NoAnswer(_)) => Code::Unavailable,
        Error::Config(_)
        | Error::Core(_)
        | Error::FailedBefore(_)
        | Error::Refused(_)
        | Error::Failed(_)
        | Error::NameRequired(_)
        | Error::NoObservatory
        | Error::NoLatencies
        | Error::Read(client::Error::Refused(_) | client::Error::WrongProtocol(_)) => Code::Unknown,
        Error::UserNotFound(_)
        | Error::NoRule { .. }
        | Error::NoBalancer(_)
        | Error::NoOutbound(_)
        | Error::Read(client::Error::NotFound(_))
        | Error::Routing(client::Error::NotFound(_)) => Code::NotFound,
        Error::TooOld { .. }
        | Error::Read(client::Error::Unsupported(_))
        | Error::Routing(client::Error::Unsupported(_)) => Code::Unimplemented,
        Error::Rule(RuleError::Duplicate(_)) => Code::AlreadyExists,
        Error::Rule(_)
        | Error::Usage(ledger::Error::NotABatch(_))
        | Error::Routing(client::Error::Refused(_) | client::Error::WrongProtocol(_)) => {
            Code::InvalidArgument
        }
        Error::ScriptRoutes => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

/// The HTTP status that stands for a code, as the contract's REST clients know it.
#[must_use]
pub fn http(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // What nginx calls "client closed request".
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The status of a failed change of one user.
#[must_use]
pub fn of_user_update(error: &Error) -> Status {
    match error {
        Error::Refused(refused) if refused.is_only_a_missing_email() => of(error),
        _ => refused_by_the_core("failed to update user", error),
    }
}

/// The status of a failed change of several users. Panels that see it look for the bad one.
#[must_use]
pub fn of_users_update(error: &Error) -> Status {
    refused_by_the_core("failed to update users", error)
}

fn refused_by_the_core(prefix: &str, error: &Error) -> Status {
    match error {
        Error::Refused(_) | Error::Failed(_) => Status::internal(format!("{prefix}: {error}")),
        _ => of(error),
    }
}
