//! Why nothing was installed or switched.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Digest;
use crate::xray::version::Version;

/// Why something was not installed, not switched or not removed. Except where it says otherwise, all is as
/// it was before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else installs something.
    #[error("another installation is under way in {}{}: try again when it has ended", .folder.display(), .by.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Busy {
        /// Where.
        folder: PathBuf,
        /// The process that does it, where that is known.
        by: Option<i32>,
    },
    /// The folder is another user's.
    #[error("{} belongs to the user {owner}: do this as that user, as in `sudo -u {owner} raynode core list`", .folder.display(), owner = user_name(*.uid))]
    NotOurs {
        /// Which folder.
        folder: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// A file or folder can't be used.
    #[error("{}: {source}", .path.display())]
    Disk {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Xray has no release for this machine.
    #[error("Xray is not released for {0}: build it and set XRAY_EXECUTABLE_PATH")]
    Architecture(&'static str),
    /// Not the name of a version.
    #[error("\"{0}\" is neither a version such as 26.3.27 nor latest")]
    NotAVersion(String),
    /// Not the name of a region.
    #[error("\"{0}\" is not iran, russia or china")]
    NotARegion(String),
    /// Not a URL.
    #[error("\"{url}\" is no URL of a server: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Not protected on its way.
    #[error(
        "{0} would come over plain HTTP, where anybody on the way can exchange a file and its digest: use https, or for a core give the SHA-256 that the archive must have"
    )]
    Plain(String),
    /// Nobody could be believed.
    #[error("no certificates of authorities were found on this machine: install ca-certificates")]
    NoAuthorities,
    /// A connection can't be made or does not last.
    #[error(
        "{url}: {reason}; check the address, the network and the proxy (HTTPS_PROXY), or use a mirror"
    )]
    Unreachable {
        /// Of which file.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The server does not have it.
    #[error(
        "{url}: the server answers {status}; is the address right, and is there such a version for this machine?"
    )]
    Status {
        /// Of which file.
        url: String,
        /// What it says.
        status: u16,
    },
    /// Led on and on.
    #[error("{0}: the server leads from one address to the next without end; use a mirror")]
    Redirects(String),
    /// More than anything that is wanted could be.
    #[error("{what} has more than {limit} bytes, which nothing has that belongs here")]
    TooLarge {
        /// What.
        what: String,
        /// What would be taken.
        limit: u64,
    },
    /// It ended too early.
    #[error("{url}: the file was cut after {got} bytes{}: {reason}; try again", .of.map(|of| format!(" of {of}")).unwrap_or_default())]
    Cut {
        /// Of which file.
        url: String,
        /// So many bytes came.
        got: u64,
        /// Of so many, where that was said.
        of: Option<u64>,
        /// What happened.
        reason: String,
    },
    /// The server went silent.
    #[error("{url}: nothing came for {} s; try again, or use a mirror", .after.as_secs_f32())]
    Stalled {
        /// Of which file.
        url: String,
        /// How long was waited.
        after: Duration,
    },
    /// The server is too slow.
    #[error("{url}: it was not there after {} s; try again, or use a mirror", .after.as_secs_f32())]
    Late {
        /// Of which file.
        url: String,
        /// How long was waited.
        after: Duration,
    },
    /// Nobody says what the file must be.
    #[error(
        "{digests}: {reason}; without a SHA-256 nothing is installed: use a release that has one, give it, or say that a file of this machine is trusted"
    )]
    NoDigest {
        /// Where it was looked for.
        digests: String,
        /// What is wrong there.
        reason: String,
    },
    /// It is another file.
    #[error(
        "{file} has the SHA-256 {found} and must have {expected}: it was damaged or exchanged, or a release came out meanwhile; nothing was changed, try again or use another mirror"
    )]
    Mismatch {
        /// Which file.
        file: String,
        /// What it must be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// The archive can't be read.
    #[error("the archive can't be unpacked: {0}")]
    Archive(String),
    /// There is no core in it.
    #[error("the archive holds no file named xray: is it a release of Xray for Linux?")]
    NoCore,
    /// What is in it can't be run at all.
    #[error("what the archive holds as xray is not a program for Linux")]
    NotAProgram,
    /// It runs elsewhere.
    #[error("the core is the one of {found}, and this machine needs that of {wanted}")]
    OtherMachine {
        /// The archive that has such cores.
        found: &'static str,
        /// The archive for this machine.
        wanted: &'static str,
    },
    /// It does not do what Xray does.
    #[error("the core was tried and does not work: {0}")]
    Tried(String),
    /// It is another version.
    #[error("the archive holds Xray {found} and not {wanted}")]
    OtherVersion {
        /// What was asked for.
        wanted: String,
        /// What it says that it is.
        found: Version,
    },
    /// It is no list of networks or names.
    #[error("{file} is not a file of geo entries: {reason}")]
    NotGeo {
        /// Which file.
        file: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing has that name.
    #[error("nothing whole is installed as \"{name}\" in {}", .folder.display())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where.
        folder: PathBuf,
    },
    /// It is the one that is used.
    #[error("\"{0}\" is in use: switch to another one first")]
    InUse(String),
    /// There is no other one to go back to.
    #[error("there is nothing to go back to: no other one was in use before, or it is gone")]
    NoPrevious,
    /// Somebody else has switched since.
    #[error("\"{0}\" is not in use any more: somebody has switched since")]
    Overtaken(String),
}

impl Error {
    /// For `map_err` at a path.
    pub(super) fn disk(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { path, source }
    }
}

/// As the system calls that user, or the number.
fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    let name = user.ok().flatten().map(|user| user.name);
    name.unwrap_or_else(|| format!("#{uid}"))
}
