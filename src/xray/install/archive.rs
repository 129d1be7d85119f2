//! The archive of a release: one file of it is wanted.

use std::fs::{File, Permissions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::architecture::HEADER;
use super::digest::Hasher;
use super::progress::{Progress, Reporter, Step};
use super::{Architecture, Digest, Error};

/// What it is called, in archives and when it is installed.
pub(super) const CORE: &str = "xray";
/// How much is unpacked at once.
const BUFFER: usize = 1 << 17;

/// Takes the core out of an archive and writes it to `to`, where nothing is; it can be run then, and is for
/// this machine. It has at most `limit` bytes. Names in the archive never become paths.
///
/// # Errors
/// When there is none in it, or not such a one.
pub(super) fn unpack(
    archive: &Path,
    to: &Path,
    limit: u64,
    architecture: Architecture,
    report: &Reporter,
) -> Result<Digest, Error> {
    let file = File::open(archive).map_err(Error::disk(archive))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|error| unreadable(&error))?;
    let mut core = match zip.by_name(CORE) {
        Err(ZipError::FileNotFound) => return Err(Error::NoCore),
        found => found.map_err(|error| unreadable(&error))?,
    };
    if !core.is_file() {
        return Err(Error::NotAProgram);
    }
    let mut progress = Progress {
        total: Some(core.size()),
        ..Progress::of(Step::Unpack, CORE)
    };
    let damaged = |error: io::Error| Error::Archive(error.to_string());
    let mut header = Vec::new();
    let read = core.by_ref().take(HEADER).read_to_end(&mut header);
    read.map_err(damaged)?;
    architecture.check(&header)?;

    let mut fresh = File::options()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .open(to)
        .map_err(Error::disk(to))?;
    let mut whole = header.as_slice().chain(core);
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = whole.read(&mut buffer).map_err(damaged)?;
        if read == 0 {
            break;
        }
        progress.done += read as u64;
        if progress.done > limit {
            let what = "the core in the archive".to_owned();
            return Err(Error::TooLarge { what, limit });
        }
        let piece = buffer.get(..read).unwrap_or_default();
        hasher.take(piece);
        fresh.write_all(piece).map_err(Error::disk(to))?;
        report.say(progress);
    }
    let done = fresh
        .set_permissions(Permissions::from_mode(0o755))
        .and_then(|()| fresh.sync_all());
    done.map_err(Error::disk(to))?;
    Ok(hasher.finish())
}

fn unreadable(error: &ZipError) -> Error {
    Error::Archive(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xray::install::testing::{archive, program};

    const LIMIT: u64 = 1 << 20;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// Unpacks that archive one folder down.
        fn unpack(&self, bytes: &[u8]) -> Result<Digest, Error> {
            let archive = self.0.path().join("archive");
            std::fs::write(&archive, bytes).unwrap();
            let inner = self.0.path().join("inner");
            std::fs::create_dir_all(&inner).unwrap();
            let here = Architecture::here().unwrap();
            unpack(
                &archive,
                &inner.join("core"),
                LIMIT,
                here,
                &Reporter::silent(),
            )
        }

        fn files(&self) -> Vec<String> {
            let mut names: Vec<String> = std::fs::read_dir(self.0.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn the_core_is_all_that_is_taken() {
        let place = Place::new();
        let core = program::xray("26.3.27");
        let bytes = archive::of(&[
            ("README.md", b"read"),
            ("xray", &core),
            ("geoip.dat", b"geo"),
        ]);
        let digest = place.unpack(&bytes).unwrap();
        let path = place.0.path().join("inner/core");
        assert_eq!(std::fs::read(&path).unwrap(), core);
        assert_eq!(Digest::of_file(&path).unwrap(), digest);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(place.files(), ["archive", "inner"]);
    }

    #[test]
    fn paths_in_an_archive_lead_nowhere() {
        let place = Place::new();
        let core = program::xray("26.3.27");
        let names = [
            "../xray",
            "/xray",
            "./xray",
            "a/../xray",
            "xray/",
            "XRAY",
            "inner/core",
        ];
        for name in names {
            let refused = place.unpack(&archive::of(&[(name, &core)])).unwrap_err();
            assert!(matches!(refused, Error::NoCore), "{name}: {refused}");
        }
        let all: Vec<_> = names.iter().map(|name| (*name, &*core)).collect();
        assert!(matches!(
            place.unpack(&archive::of(&all)),
            Err(Error::NoCore)
        ));
        assert_eq!(place.files(), ["archive", "inner"]);
        assert!(!place.0.path().join("inner/core").exists());
    }

    #[test]
    fn a_link_is_no_core() {
        let refused = Place::new().unpack(&archive::with_link("xray", "/bin/sh"));
        assert!(matches!(refused, Err(Error::NotAProgram)));
    }

    #[test]
    fn nothing_is_unpacked_that_could_not_run() {
        let place = Place::new();
        let script = archive::of(&[("xray", b"#!/bin/sh\necho Xray 26.3.27")]);
        assert!(matches!(place.unpack(&script), Err(Error::NotAProgram)));

        let place = Place::new();
        let empty = archive::of(&[("xray", b"")]);
        assert!(matches!(place.unpack(&empty), Err(Error::NotAProgram)));

        let place = Place::new();
        let elsewhere = archive::of(&[("xray", &program::header(9999, true, true))]);
        let refused = place.unpack(&elsewhere);
        assert!(matches!(refused, Err(Error::OtherMachine { .. })));
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let core = program::xray("26.3.27");
        let good = archive::of(&[("xray", &core)]);
        for (what, bytes) in [
            ("nothing", Vec::new()),
            ("text", b"Not Found".to_vec()),
            ("cut", good[..good.len() / 2].to_vec()),
        ] {
            let refused = Place::new().unpack(&bytes).unwrap_err();
            assert!(matches!(refused, Error::Archive(_)), "{what}: {refused}");
        }
        // Stored as it is, so that one bit is exchanged and nothing else: the checksum tells.
        let mut stored = archive::stored(&[("xray", &core)]);
        let at = stored
            .windows(core.len())
            .position(|window| window == core)
            .unwrap();
        stored[at + core.len() - 1] ^= 1;
        let refused = Place::new().unpack(&stored).unwrap_err();
        assert!(matches!(refused, Error::Archive(_)), "{refused}");
    }

    #[test]
    fn what_unpacks_without_end_is_stopped() {
        let mut core = program::xray("26.3.27");
        core.resize(usize::try_from(LIMIT).unwrap() + 1, 0);
        let refused = Place::new().unpack(&archive::of(&[("xray", &core)]));
        assert!(matches!(refused, Err(Error::TooLarge { .. })));
    }
}
