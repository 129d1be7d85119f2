//! How long a call took and how it ended, counted.

use std::sync::Arc;
use std::time::Instant;

use http::{Response, StatusCode};
use tonic::{Code, Status};

use super::status;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Call;

/// A call that is being answered. Dropped before that, it was cancelled, or has panicked.
#[derive(Debug)]
pub(super) struct Observed {
    metrics: Arc<Metrics>,
    call: Call,
    began: Instant,
    code: &'static str,
}

impl Observed {
    /// From now on.
    pub(super) fn begin(metrics: &Arc<Metrics>, call: Call) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            code: code(call, Code::Cancelled),
            call,
            began: Instant::now(),
        }
    }

    /// The answer is there; how fast its client reads it says nothing about the node.
    pub(super) fn answered<B>(mut self, response: &Response<B>) {
        self.code = match self.call.transport {
            "grpc" => {
                let status = Status::from_header_map(response.headers());
                name(status.map_or(Code::Ok, |status| status.code()))
            }
            _ => number(response.status()),
        };
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.code = code(self.call, Code::Internal);
        }
        self.metrics
            .called(self.call, self.code, self.began.elapsed());
    }
}

fn code(call: Call, code: Code) -> &'static str {
    match call.transport {
        "grpc" => name(code),
        _ => number(status::http(code)),
    }
}

/// As the gRPC specification spells it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Those that the node answers with.
fn number(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        409 => "409",
        412 => "412",
        413 => "413",
        429 => "429",
        499 => "499",
        500 => "500",
        501 => "501",
        502 => "502",
        503 => "503",
        504 => "504",
        _ => "other",
    }
}
