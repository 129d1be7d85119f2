//! Files of this machine.

use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::download::MAX_DIGESTS;
use super::receive::Receiving;
use super::{Digest, Error, digest};

/// How much is read at once.
const BUFFER: usize = 1 << 17;

/// Copies a file of at most `limit` bytes, so that what is looked at is what is used.
///
/// # Errors
/// When it is no file, or too large, or the disk refuses.
pub(super) async fn copy(
    path: &Path,
    limit: u64,
    mut into: Receiving<'_>,
) -> Result<Digest, Error> {
    let mut file = open(path).await?;
    let size = file.metadata().await.map_err(Error::disk(path))?.len();
    into.expect(Some(size));
    let mut buffer = vec![0; BUFFER];
    let mut done = 0;
    loop {
        let read = file.read(&mut buffer).await.map_err(Error::disk(path))?;
        if read == 0 {
            return into.finish().await;
        }
        done += read as u64;
        if done > limit {
            let what = path.display().to_string();
            return Err(Error::TooLarge { what, limit });
        }
        into.take(buffer.get(..read).unwrap_or_default()).await?;
    }
}

/// The digest of `path` by the file of digests beside it, which has the same name and `ending` behind it.
///
/// # Errors
/// When there is none.
pub(super) async fn digest_beside(path: &Path, ending: &str) -> Result<Digest, Error> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(ending);
    let beside = PathBuf::from(beside);
    let fail = |reason: String| Error::NoDigest {
        digests: beside.display().to_string(),
        reason,
    };
    let mut text = Vec::new();
    let read = match open(&beside).await {
        Ok(file) => file.take(MAX_DIGESTS).read_to_end(&mut text).await,
        Err(Error::Disk { source, .. }) => Err(source),
        Err(other) => return Err(other),
    };
    read.map_err(|error| fail(error.to_string()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    digest::find(&String::from_utf8_lossy(&text), &name).map_err(fail)
}

/// Opens what is a file: a device or a pipe may have no end, or no beginning.
async fn open(path: &Path) -> Result<File, Error> {
    let what = tokio::fs::metadata(path).await.map_err(Error::disk(path))?;
    if !what.is_file() {
        let source = std::io::Error::other("this is not a file");
        return Err(Error::disk(path)(source));
    }
    File::open(path).await.map_err(Error::disk(path))
}
