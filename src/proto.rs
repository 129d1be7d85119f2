//! The generated protobuf code: the panel's service and the slice of Xray's API that we call.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated from proto/, where the documentation is"
)]

/// `proto/service.proto`: what panels call.
pub mod service {
    tonic::include_proto!("service");
}

tonic::include_proto!("xray");
