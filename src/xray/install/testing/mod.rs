//! For the tests: a server, programs that the kernel runs, archives and geo files.

pub(super) mod archive;
pub(super) mod geo;
pub(super) mod program;
pub(super) mod server;
