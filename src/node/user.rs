//! A user as a panel describes him, before any inbound is looked at.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::xray::account::Credentials;

/// A user's name everywhere: in the core, in its counters, in the panel. Xray takes two spellings
/// that differ in case for the same user, but counts for the spelling that it was given.
#[derive(Clone, Eq)]
pub struct Email(Arc<str>);

impl Email {
    /// The e-mail as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Email {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl PartialEq for Email {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || folded(&self.0).eq(folded(&other.0))
    }
}

impl Hash for Email {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.0.is_ascii() {
            self.0
                .bytes()
                .for_each(|byte| state.write_u8(byte.to_ascii_lowercase()));
        } else {
            let mut utf8 = [0; 4];
            for char in folded(&self.0) {
                char.encode_utf8(&mut utf8)
                    .bytes()
                    .for_each(|byte| state.write_u8(byte));
            }
        }
    }
}

fn folded(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

impl fmt::Display for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A user as a panel sends him.
#[derive(Clone, Debug)]
pub struct User {
    /// His name.
    pub email: Email,
    /// What he proves himself with.
    pub credentials: Credentials,
    /// Tags of the inbounds that he may use; tags that the core does not have are passed over.
    pub inbounds: Vec<Box<str>>,
}

/// The users of one call, one after the other. A list of them is many times larger decoded than on
/// the wire, so it is never held whole.
pub type Users = Box<dyn Iterator<Item = Result<User, Malformed>> + Send>;

/// A user that could not be read at all.
#[derive(Debug, thiserror::Error)]
#[error("a user could not be decoded: {0}")]
pub struct Malformed(pub String);
