//! What systemd is told of this daemon, and what it tells: nothing where systemd has not started it.
//!
//! ```text
//! notify    ──▶ systemd    ready, stopping, in need of more time
//! status    ──▶ systemd    one line, as systemctl status shows it
//! watchdog  ──▶ systemd    as long as the driver goes on
//! job       ◀── systemd    whether we are stopped or started again
//! ```

mod job;
mod notify;
mod status;
mod watchdog;

pub use self::job::{is_restarting_us, is_stopping_us};
pub use self::notify::Manager;
pub use self::status::report;
pub use self::watchdog::watch;
