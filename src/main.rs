//! The `raynode` binary.

use std::process::ExitCode;

/// Gives memory back to the system soon after a large message is done with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    raynode::cli::main()
}
