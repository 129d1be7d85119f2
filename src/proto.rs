//! The generated protobuf code: what is served, and the slice of Xray's API that we call.

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

/// The node's own API.
pub mod raynode {
    /// `proto/raynode/v1/`
    pub mod v1 {
        tonic::include_proto!("raynode.v1");
    }
}

/// The descriptors of everything that is served, encoded: what reflection shows and JSON is mapped by.
pub const SERVICE_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/services.descriptors"));

tonic::include_proto!("xray");
