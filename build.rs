//! Turns the protobuf files into Rust. `protox` parses them, so no `protoc` has to be installed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

/// What is served: the panel's contract and the node's own API.
const SERVICES: [&str; 5] = [
    "proto/service.proto",
    "proto/raynode/v1/core.proto",
    "proto/raynode/v1/install.proto",
    "proto/raynode/v1/operator.proto",
    "proto/raynode/v1/usage.proto",
];

/// Messages whose user lists stay encoded until each user is looked at: a full list is many times
/// larger decoded than on the wire, and it is needed one user at a time.
const LAZY_MESSAGES: [(&str, &str); 3] = [
    ("Backend", "Backend"),
    ("Users", "UserList"),
    ("UsersChunk", "UsersChunk"),
];

/// The slice of Xray's API that the node calls.
const XRAY: [&str; 11] = [
    "proto/xray/app/observatory/command.proto",
    "proto/xray/app/proxyman/command.proto",
    "proto/xray/app/router/command.proto",
    "proto/xray/app/stats/command.proto",
    "proto/xray/proxy/hysteria/account.proto",
    "proto/xray/proxy/shadowsocks.proto",
    "proto/xray/proxy/shadowsocks_2022.proto",
    "proto/xray/proxy/trojan.proto",
    "proto/xray/proxy/vless.proto",
    "proto/xray/proxy/vmess.proto",
    "proto/xray/common/protocol.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");

    let mut service = tonic_prost_build::configure();
    for (message, ours) in LAZY_MESSAGES {
        service = service.extern_path(
            format!(".service.{message}"),
            format!("crate::panel::wire::{ours}"),
        );
    }
    let descriptors = protox::compile(SERVICES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("services.descriptors"),
        descriptors.encode_to_vec(),
    )?;
    service.compile_fds(descriptors)?;

    tonic_prost_build::configure()
        .build_server(false)
        .include_file(PathBuf::from("xray.rs"))
        .compile_fds(protox::compile(XRAY, ["proto"])?)?;
    Ok(())
}
