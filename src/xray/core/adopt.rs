//! A core that outlived its daemon, found again by the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::Files;
use super::{Core, Launcher};
use crate::xray::client::{self, Client};
use crate::xray::config::LogFiles;
use crate::xray::leftover;
use crate::xray::process::Process;
use crate::xray::record::Record;

/// Why a core is not taken over; it is ended then.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    /// There is no such process any more.
    #[error("its process has ended")]
    Ended,
    /// Its daemon died before it was ready.
    #[error("it was never ready")]
    NeverReady,
    /// The process has no mark of this node.
    #[error("the process is not a core of this node")]
    Foreign,
    /// The record's version can't be read.
    #[error("nobody knows its version")]
    NoVersion,
    /// Its output can't be read.
    #[error("its output can't be read: {0}")]
    Output(std::io::Error),
    /// It does not answer.
    #[error("its API does not answer: {0}")]
    Silent(client::Error),
}

/// How long a core that outlived its daemon may be silent. A machine that swaps, or was stopped for a
/// moment, makes it so; panels wait, and connections live.
pub const PATIENCE: Duration = Duration::from_secs(10);

async fn answers(client: &Client, patience: Duration) -> Result<(), client::Error> {
    let deadline = Instant::now() + patience;
    loop {
        match tokio::time::timeout_at(deadline.into(), client.sys_stats()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if Instant::now() >= deadline => return Err(error),
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(_) => return Err(client::Error::NoAnswer("nothing in time".to_owned())),
        }
    }
}

impl Launcher {
    /// Takes over the core of a record, which writes these log files, if it answers within `patience`.
    ///
    /// # Errors
    /// With the reason why not.
    pub async fn adopt(
        &self,
        record: &Record,
        logs: &LogFiles,
        patience: Duration,
    ) -> Result<Core, NotAdopted> {
        let files = Files::of(record, &self.runtime_dir);
        let ready = record.ready_since().ok_or(NotAdopted::NeverReady)?;
        let version = record.version().ok_or(NotAdopted::NoVersion)?;
        let (tail, output) = self.output(logs, &files);
        let process = Process::attach(record.process, &record.fifo, output)
            .map_err(NotAdopted::Output)?
            .ok_or(NotAdopted::Ended)?;
        if !leftover::is_core_of(&self.runtime_dir, record.process) {
            return Err(NotAdopted::Foreign);
        }
        let client = Client::new(files.socket.clone());
        answers(&client, patience)
            .await
            .map_err(NotAdopted::Silent)?;
        tracing::info!(pid = process.pid(), %version, "took over the core that was running");
        Ok(Core::new(
            record.clone(),
            process,
            version,
            ready,
            files,
            (tail, Arc::clone(&self.metrics)),
        ))
    }
}
