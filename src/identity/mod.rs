//! Who this node is to a panel: its API key and its certificate.

mod api_key;
mod certificate;
mod keys_file;
mod shown;

pub use self::api_key::{api_key, replace_api_key};
pub use self::certificate::{
    Certificate, certificate, fingerprint, import_certificate, load_certificate, renew_certificate,
};
pub use self::keys_file::{add_key, any_keys, keys_file, revoke_key};
pub use self::shown::Shown;

use std::io;
use std::path::PathBuf;

/// Why the node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file that `API_KEYS_FILE` names can't be looked at.
    #[error("API_KEYS_FILE={}: {source}", .path.display())]
    KeysFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of ours has been changed by somebody else, or comes from a newer version.
    #[error("{}: {reason}; mend it, or remove it to have a new one made (the panel then needs the new one too)", .path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Of certificate and key only one is there.
    #[error("{} is there and {} is not: put the missing one in its place, or remove both to have a pair made", .there.display(), .missing.display())]
    HalfAPair {
        /// The one that is there.
        there: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// A certificate and a key that can't be used together.
    #[error("not a certificate and its key: {0}; nothing changed")]
    NoPair(String),
    /// No certificate could be made.
    #[error("a certificate can't be made: {0}")]
    Generate(#[from] rcgen::Error),
}
