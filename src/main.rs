//! The `raynode` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    raynode::cli::main()
}
