//! A core is asked for its version before it is one of ours.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::Error;
use crate::xray::tool::Tool;
use crate::xray::version::Version;

/// How often a file that somebody still writes to is tried.
const TRIES: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(20);

/// What `binary` says that it is, within `patience`.
///
/// # Errors
/// When it does not run, does not end, or is not Xray.
pub(super) async fn version(binary: &Path, patience: Duration) -> Result<Version, Error> {
    let output = tokio::time::timeout(patience, run(binary)).await;
    let output = output
        .map_err(|_| {
            let limit = patience.as_secs_f32();
            Error::Tried(format!("`xray version` did not end within {limit} s"))
        })?
        .map_err(|error| Error::Tried(reason(&error)))?;
    Version::from_banner(&String::from_utf8_lossy(&output.stdout))
        .filter(|_| output.status.success())
        .ok_or_else(|| {
            let status = output.status;
            Error::Tried(format!(
                "`xray version` does not print what Xray prints ({status})"
            ))
        })
}

/// A process that was started a moment ago holds all our files until it is another program, also the
/// one that was just written; until then the kernel does not run it.
async fn run(binary: &Path) -> io::Result<std::process::Output> {
    for _ in 1..TRIES {
        match Tool::new(binary).arg("version").run(&[]).await {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(BETWEEN).await;
            }
            done => return done,
        }
    }
    Tool::new(binary).arg("version").run(&[]).await
}

fn reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return format!("{error}; is the folder on a file system from which nothing may be run?");
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;
    use crate::xray::install::testing::program;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Binary {
        folder: tempfile::TempDir,
        file: Option<File>,
    }

    impl Binary {
        fn new(bytes: &[u8]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("xray");
            let mut options = File::options();
            let mut file = options
                .create(true)
                .write(true)
                .mode(0o755)
                .open(path)
                .unwrap();
            file.write_all(bytes).unwrap();
            let file = Some(file);
            Self { folder, file }
        }

        async fn version(&mut self, patience: Duration) -> Result<Version, Error> {
            drop(self.file.take());
            version(&self.folder.path().join("xray"), patience).await
        }
    }

    async fn refused(bytes: &[u8]) -> String {
        let asked = Binary::new(bytes).version(PATIENCE).await;
        asked.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn a_core_says_its_version() {
        let mut core = Binary::new(&program::xray("26.3.27"));
        let version = core.version(PATIENCE).await.unwrap();
        assert_eq!(version, Version::new(26, 3, 27));
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_waited_for() {
        let mut core = Binary::new(&program::xray("26.3.27"));
        let held = core.file.take();
        let path = core.folder.path().join("xray");
        let asked = version(&path, PATIENCE);
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(held);
        };
        let (version, ()) = tokio::join!(asked, let_go);
        assert_eq!(version.unwrap(), Version::new(26, 3, 27));
    }

    #[tokio::test]
    async fn what_is_not_xray_is_refused() {
        let other = refused(&program::printing("V2Ray 5.1.0 (V2Fly)\n", 0)).await;
        assert!(other.contains("does not print what Xray prints"), "{other}");
        let failing = refused(&program::printing("Xray 26.3.27 (Xray)\n", 1)).await;
        assert!(failing.contains("exit status: 1"), "{failing}");
        let cut = refused(&program::xray("26.3.27")[..70]).await;
        assert!(cut.contains("does not work"), "{cut}");
    }

    #[tokio::test]
    async fn what_does_not_end_is_ended() {
        let mut core = Binary::new(&program::hanging());
        let patience = Duration::from_millis(200);
        let hung = core.version(patience).await.unwrap_err().to_string();
        assert!(hung.contains("did not end within 0.2 s"), "{hung}");
    }
}
