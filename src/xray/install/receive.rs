//! A file that comes in pieces: counted, hashed and written as it comes.

use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufWriter};

use super::digest::Hasher;
use super::progress::{Progress, Reporter};
use super::{Digest, Error};

/// How much is written at once.
const BUFFER: usize = 1 << 18;

/// A file that is not whole yet.
#[derive(Debug)]
pub(super) struct Receiving<'a> {
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Hasher,
    progress: Progress,
    report: &'a Reporter,
}

impl<'a> Receiving<'a> {
    /// Begins it where there is none. `progress` says what is done, and to what.
    ///
    /// # Errors
    /// When it can't be made.
    pub(super) async fn create(
        path: &Path,
        progress: Progress,
        report: &'a Reporter,
    ) -> Result<Self, Error> {
        report.say(progress);
        let file = File::create_new(path).await.map_err(Error::disk(path))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(BUFFER, file),
            hasher: Hasher::new(),
            progress,
            report,
        })
    }

    /// Says how many bytes will come.
    pub(super) fn expect(&mut self, total: Option<u64>) {
        self.progress.total = total;
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) async fn take(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.hasher.take(piece);
        let written = self.file.write_all(piece).await;
        written.map_err(Error::disk(&self.path))?;
        self.progress.done += piece.len() as u64;
        self.report.say(self.progress);
        Ok(())
    }

    /// It is whole, and on the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) async fn finish(mut self) -> Result<Digest, Error> {
        let written = async {
            self.file.flush().await?;
            self.file.get_ref().sync_all().await
        };
        written.await.map_err(Error::disk(&self.path))?;
        Ok(self.hasher.finish())
    }
}
