//! gRPC reflection, both versions: for grpcurl and its like. Like every other call it wants a key.

use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;
use tonic_reflection::server::{Builder, Error};

use crate::proto::SERVICE_DESCRIPTORS;

/// What is served where panels call; the operator's calls are not.
pub(super) const SERVED: [&str; 4] = [
    "service.NodeService",
    "raynode.v1.UsageService",
    "raynode.v1.CoreService",
    "grpc.health.v1.Health",
];

fn described(reflection: &'static str) -> Builder<'static> {
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(SERVICE_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let named = SERVED.into_iter().chain([reflection]);
    named.fold(builder, Builder::with_service_name)
}

/// Version 1.
///
/// # Errors
/// Never with the descriptors that the build wrote.
pub fn v1() -> Result<ServerReflectionServer<impl ServerReflection>, Error> {
    described("grpc.reflection.v1.ServerReflection").build_v1()
}

/// Version 1alpha, which older tools speak.
///
/// # Errors
/// Never with the descriptors that the build wrote.
pub fn v1alpha() -> Result<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>, Error> {
    described("grpc.reflection.v1alpha.ServerReflection").build_v1alpha()
}
