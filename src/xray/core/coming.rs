//! A core that comes up: started, and not ready yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::Files;
use super::output::Tail;
use super::{Core, Error};
use crate::telemetry::Metrics;
use crate::xray::client::Client;
use crate::xray::process::Process;
use crate::xray::record::Record;
use crate::xray::version::Version;

/// How often it is asked whether it is ready.
const READY_INTERVAL: Duration = Duration::from_millis(3);

/// A core that is not ready yet: whatever keeps it from becoming so, it does not stay.
#[derive(Debug)]
pub struct Coming {
    /// Taken out when the core is ready.
    process: Option<Process>,
    record: Record,
    version: Version,
    client: Client,
    files: Files,
    tail: Tail,
    metrics: Arc<Metrics>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.killer().kill();
            self.files.clear_up();
        }
    }
}

impl Coming {
    pub(super) fn new(
        process: Process,
        record: Record,
        version: Version,
        files: Files,
        (tail, metrics): (Tail, Arc<Metrics>),
    ) -> Self {
        Self {
            process: Some(process),
            client: Client::new(files.socket.clone()),
            record,
            version,
            files,
            tail,
            metrics,
        }
    }

    /// How the next daemon finds it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Waits until its API has answered.
    ///
    /// Looks every few milliseconds, and at the process at the same time: a core that ends early says
    /// why, and nobody has to wait for a deadline.
    ///
    /// # Errors
    /// When it ends before, or does not answer within `patience`.
    pub async fn ready(&self, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        loop {
            let answers = self
                .unless_it_ends(async {
                    tokio::select! {
                        answer = self.client.sys_stats() => answer.is_ok(),
                        () = tokio::time::sleep_until(deadline.into()) => false,
                    }
                })
                .await?;
            if answers {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.not_ready(patience).await);
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    /// What `task` brings, unless the process ends before.
    ///
    /// # Errors
    /// When it ends, with its own reason.
    pub async fn unless_it_ends<T>(&self, task: impl Future<Output = T>) -> Result<T, Error> {
        let process = self.process.as_ref().ok_or_else(gone)?;
        tokio::select! {
            biased;
            how = process.ended() => Err(ended(&how.to_string(), &self.tail)),
            result = task => Ok(result),
        }
    }

    /// Kills it, for it took too long.
    async fn not_ready(&self, patience: Duration) -> Error {
        self.kill().await;
        Error::NotReady {
            patience,
            tail: self.tail.text(),
        }
    }

    /// Kills it, for it does not listen where it should.
    pub async fn does_not_listen(&self, inbounds: &str) -> Error {
        self.kill().await;
        Error::DoesNotListen {
            inbounds: inbounds.to_owned(),
            tail: self.tail.text(),
        }
    }

    async fn kill(&self) {
        if let Some(process) = &self.process {
            process.kill().await;
        }
    }

    /// The core that it has become.
    ///
    /// # Errors
    /// When it is gone.
    pub fn into_core(mut self) -> Result<Core, Error> {
        let process = self.process.take().ok_or_else(gone)?;
        tracing::info!(pid = process.pid(), version = %self.version, "core started");
        Ok(Core::new(
            self.record.clone().now_ready(),
            process,
            self.version,
            Instant::now(),
            self.files.clone(),
            (self.tail.clone(), Arc::clone(&self.metrics)),
        ))
    }
}

fn gone() -> Error {
    Error::Ended {
        status: "gone".to_owned(),
        tail: String::new(),
    }
}

/// Why a process that has ended did so, in its own words where it has any.
pub(super) fn ended(status: &str, tail: &Tail) -> Error {
    match tail.failure() {
        Some(reason) => Error::Refused(reason),
        None => Error::Ended {
            status: status.to_owned(),
            tail: tail.text(),
        },
    }
}
