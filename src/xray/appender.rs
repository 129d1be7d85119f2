//! The operator's log files.

use std::path::PathBuf;

/// The operator's log files, written by us because Xray's lines come to us first.
#[derive(Clone, Debug, Default)]
pub(super) struct Appender {
    path: Option<PathBuf>,
    failed: bool,
}

impl Appender {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            failed: false,
        }
    }

    /// Appends lines. The file is opened each time, so it may be moved away at any moment.
    pub(super) fn append<'a>(&mut self, lines: impl Iterator<Item = &'a String>) {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;

        let Some(path) = &self.path else { return };
        let text: String = lines.flat_map(|line| [line.as_str(), "\n"]).collect();
        if text.is_empty() {
            return;
        }
        let written = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            // A FIFO without a reader must not stop the node.
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => self.failed = false,
            Err(error) => {
                // Once is enough: the next line would fail the same way.
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(path = %path.display(), %error, "the log file that the config names can't be written");
                }
            }
        }
    }
}
