//! Xray as a child process and as an API. Knows no session and no panel.

pub mod account;
pub mod client;
pub mod config;
pub mod core;
pub mod handover;
pub mod install;
pub mod leftover;
pub mod logs;
pub mod parts;
pub mod process;
pub mod record;
pub mod version;

mod appender;
mod lines;
mod tool;
