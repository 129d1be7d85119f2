//! The Xray binary as a tool: asked something, it answers and ends.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Output, Stdio};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// How much of what it says is kept, of each stream.
const MAX_OUTPUT: u64 = 1 << 20;

/// One call of the binary. It ends when nobody waits for it any more.
pub(super) struct Tool(Command);

impl Tool {
    pub(super) fn new(binary: &Path) -> Self {
        let mut command = Command::new(binary);
        for variable in hidden_variables() {
            command.env_remove(variable);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Self(command)
    }

    pub(super) fn arg(self, argument: impl AsRef<OsStr>) -> Self {
        self.args([argument])
    }

    pub(super) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(arguments);
        self
    }

    /// As somebody else, with nothing of root's, and nowhere in particular.
    pub(super) fn run_by(mut self, uid: u32, gid: u32) -> Self {
        self.0.env_clear().uid(uid).gid(gid).current_dir("/");
        self
    }

    pub(super) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Hands it `input` and waits for its end and what it says: the first MiB of it.
    ///
    /// # Errors
    /// When the binary can't be run.
    pub(super) async fn run(mut self, input: &[u8]) -> io::Result<Output> {
        let mut child = self.0.spawn()?;
        let mut stdin = child.stdin.take();
        let feed = async {
            if let Some(stdin) = &mut stdin {
                // What it did not read it says itself.
                drop(stdin.write_all(input).await);
            }
            drop(stdin);
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ((), stdout, stderr, status) =
            tokio::join!(feed, beginning(stdout), beginning(stderr), child.wait());
        Ok(Output {
            status: status?,
            stdout: stdout?,
            stderr: stderr?,
        })
    }
}

/// Reads to the end, so that nobody who writes waits for ever, and keeps the beginning.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream)
            .take(MAX_OUTPUT)
            .read_to_end(&mut kept)
            .await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

/// What is meant for the node alone. Beside our `SSL_KEY_FILE`, `SSL_CERT_FILE` is our certificate;
/// Go programs like Xray would take it for the authorities that they trust.
pub(super) fn hidden_variables() -> &'static [&'static str] {
    if std::env::var_os("SSL_KEY_FILE").is_some() {
        &[
            "API_KEY",
            "LISTEN_FDS",
            "LISTEN_PID",
            "NOTIFY_SOCKET",
            "WATCHDOG_PID",
            "WATCHDOG_USEC",
            "SSL_KEY_FILE",
            "SSL_CERT_FILE",
        ]
    } else {
        &[
            "API_KEY",
            "LISTEN_FDS",
            "LISTEN_PID",
            "NOTIFY_SOCKET",
            "WATCHDOG_PID",
            "WATCHDOG_USEC",
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_what_is_said_the_beginning_is_kept() {
        let shell = Tool::new(Path::new("/bin/sh"));
        let endless = "head -c 3000000 /dev/zero; echo heard >&2; cat >&2; exit 3";
        let output = shell.args(["-c", endless]).run(b"input").await.unwrap();
        assert_eq!(output.stdout.len(), 1 << 20);
        assert_eq!(output.stderr, b"heard\ninput");
        assert_eq!(output.status.code(), Some(3));
    }
}
