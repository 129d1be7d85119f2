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

/// The descriptors of `proto/service.proto`, encoded: what reflection shows and JSON is mapped by.
pub const SERVICE_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/service.descriptors"));

tonic::include_proto!("xray");
