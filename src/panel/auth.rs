//! Who may call.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderMap, StatusCode};
use subtle::ConstantTimeEq;
use tonic::Status;
use uuid::Uuid;

use super::rest::Refusal;

/// What opens the node: keys, each with a name for the log.
pub struct Keys {
    keys: ArcSwap<Vec<NamedKey>>,
}

/// A key and what the operator calls it.
#[derive(Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// Its name, which may be shown.
    pub name: String,
    /// The key, which may not.
    pub key: Uuid,
}

impl std::fmt::Debug for NamedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NamedKey").field(&self.name).finish()
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.load().iter()).finish()
    }
}

impl Keys {
    /// What their operator calls them.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let keys = self.keys.load();
        keys.iter().map(|key| key.name.clone()).collect()
    }
}

/// What a caller has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The key of this name.
    Key(String),
    /// The id of the session that is in force.
    Session,
    /// A certificate that is trusted.
    Certificate,
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(name) => write!(f, "key {name}"),
            Self::Session => f.write_str("session id"),
            Self::Certificate => f.write_str("client certificate"),
        }
    }
}

/// Why a caller is turned away. The texts are those that panels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("missing x-api-key header")]
    Missing,
    #[error("invalid api key format: must be a valid UUID")]
    NoUuid,
    #[error("invalid authorization format: must be Bearer and a valid UUID")]
    NoBearer,
    #[error("invalid authorization format: must be Bearer and a valid UUID")]
    BearerNoUuid,
    #[error("api key mismatch")]
    Mismatch,
    #[error("session id mismatch")]
    OtherSession,
    #[error("please connect first")]
    NoSession,
}

impl Denied {
    /// REST clients know an empty key as a missing one.
    pub(super) fn over_rest(self, headers: &HeaderMap) -> Self {
        match headers.get("x-api-key") {
            Some(value) if value.is_empty() && self == Self::NoUuid => Self::Missing,
            _ => self,
        }
    }
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::Missing | Denied::NoSession => Self::unauthenticated(text),
            Denied::NoUuid | Denied::NoBearer | Denied::BearerNoUuid => {
                Self::invalid_argument(text)
            }
            Denied::Mismatch | Denied::OtherSession => Self::permission_denied(text),
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let status = match denied {
            Denied::Missing | Denied::NoBearer => StatusCode::UNAUTHORIZED,
            Denied::NoSession => StatusCode::TOO_EARLY,
            Denied::NoUuid | Denied::BearerNoUuid => StatusCode::UNPROCESSABLE_ENTITY,
            Denied::Mismatch | Denied::OtherSession => StatusCode::FORBIDDEN,
        };
        Self::new(status, denied.to_string())
    }
}

impl Keys {
    /// These keys; any one of them opens.
    #[must_use]
    pub fn new(keys: Vec<NamedKey>) -> Self {
        Self {
            keys: ArcSwap::from_pointee(keys),
        }
    }

    /// From now on these open, and no others. Sessions go on.
    pub fn replace(&self, keys: Vec<NamedKey>) {
        self.keys.store(Arc::new(keys));
    }

    /// The key of this name opens no more.
    pub(super) fn forget(&self, name: &str) {
        let keys = self.keys.load();
        let others = keys.iter().filter(|key| key.name != name).cloned();
        self.keys.store(Arc::new(others.collect()));
    }

    /// Lets a caller in who shows a key (`x-api-key`, or `authorization: Bearer`) or the id of the
    /// session that is in force (`authorization: Bearer`). Any one that is right is enough.
    pub(super) fn admit(
        &self,
        headers: &HeaderMap,
        session: Option<Uuid>,
    ) -> Result<Shown, Denied> {
        let by_key = headers
            .get("x-api-key")
            .map(|value| self.admit_key(value.as_bytes()));
        if let Some(Ok(shown)) = by_key {
            return Ok(shown);
        }
        let by_bearer = headers
            .get("authorization")
            .map(|value| self.admit_bearer(value.as_bytes(), session));
        match (by_key, by_bearer) {
            (_, Some(Ok(shown))) => Ok(shown),
            (Some(denied), _) | (None, Some(denied)) => denied,
            (None, None) => Err(Denied::Missing),
        }
    }

    /// Whether this is one of the keys.
    pub(super) fn holds(&self, value: &[u8]) -> bool {
        self.admit_key(value).is_ok()
    }

    fn admit_key(&self, value: &[u8]) -> Result<Shown, Denied> {
        let shown = Uuid::try_parse_ascii(value).map_err(|_| Denied::NoUuid)?;
        self.find(shown).ok_or(Denied::Mismatch)
    }

    fn admit_bearer(&self, value: &[u8], session: Option<Uuid>) -> Result<Shown, Denied> {
        let text = std::str::from_utf8(value).map_err(|_| Denied::NoBearer)?;
        let mut words = text.split_whitespace();
        let (Some(scheme), Some(token), None) = (words.next(), words.next(), words.next()) else {
            return Err(Denied::NoBearer);
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Denied::NoBearer);
        }
        let shown = Uuid::try_parse(token).map_err(|_| Denied::BearerNoUuid)?;
        // Both are always compared, so that the time taken tells nothing.
        let key = self.find(shown);
        let is_session = session.is_some_and(|session| same(shown, session));
        key.or(is_session.then_some(Shown::Session))
            .ok_or(Denied::OtherSession)
    }

    /// Every key is compared, so that the time taken tells nothing.
    fn find(&self, shown: Uuid) -> Option<Shown> {
        let mut found = None;
        for NamedKey { name, key } in self.keys.load().iter() {
            if same(shown, *key) {
                found = Some(Shown::Key(name.clone()));
            }
        }
        found
    }
}

fn same(a: Uuid, b: Uuid) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Uuid = Uuid::from_u128(0x0b0e_1b9a_2d0d_4a0c_9a4b_6f3c_1f0f_2d11);
    const SESSION: Uuid = Uuid::from_u128(0x7777_1b9a_2d0d_4a0c_9a4b_6f3c_1f0f_2d11);
    const NEW: Uuid = Uuid::from_u128(0x2222_1b9a_2d0d_4a0c_9a4b_6f3c_1f0f_2d11);
    const OTHER: Uuid = Uuid::from_u128(0x1111_1b9a_2d0d_4a0c_9a4b_6f3c_1f0f_2d11);

    fn keys() -> Keys {
        let named = |name: &str, key| NamedKey {
            name: name.to_owned(),
            key,
        };
        Keys::new(vec![named("old", KEY), named("new", NEW)])
    }

    fn admit(headers: &[(&'static str, String)]) -> Result<Shown, Denied> {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        keys().admit(&headers.collect(), Some(SESSION))
    }

    #[test]
    fn the_key_opens_in_every_form_of_a_uuid() {
        for key in [
            KEY.hyphenated().to_string(),
            KEY.simple().to_string(),
            KEY.urn().to_string(),
            KEY.braced().to_string().to_uppercase(),
        ] {
            assert_eq!(
                admit(&[("x-api-key", key)]),
                Ok(Shown::Key("old".to_owned()))
            );
        }
        let new = Ok(Shown::Key("new".to_owned()));
        assert_eq!(admit(&[("x-api-key", NEW.to_string())]), new);
    }

    #[test]
    fn key_and_session_open_as_a_bearer() {
        let key = Ok(Shown::Key("old".to_owned()));
        assert_eq!(admit(&[("authorization", format!("Bearer {KEY}"))]), key);
        assert_eq!(
            admit(&[("authorization", format!("Bearer {SESSION}"))]),
            Ok(Shown::Session)
        );
        let both = [
            ("x-api-key", OTHER.to_string()),
            ("authorization", format!("Bearer {SESSION}")),
        ];
        assert_eq!(admit(&both), Ok(Shown::Session));
    }

    #[test]
    fn everybody_else_is_told_why() {
        assert_eq!(admit(&[]), Err(Denied::Missing));
        assert_eq!(admit(&[("x-api-key", String::new())]), Err(Denied::NoUuid));
        assert_eq!(
            admit(&[("x-api-key", "hunter2".to_owned())]),
            Err(Denied::NoUuid)
        );
        assert_eq!(
            admit(&[("x-api-key", OTHER.to_string())]),
            Err(Denied::Mismatch)
        );
        assert_eq!(
            admit(&[("x-api-key", SESSION.to_string())]),
            Err(Denied::Mismatch)
        );
        assert_eq!(
            admit(&[("x-api-key", Uuid::nil().to_string())]),
            Err(Denied::Mismatch)
        );
        for text in ["", "Bearer", "Basic x", &format!("Bearer {KEY} {KEY}")] {
            assert_eq!(
                admit(&[("authorization", text.to_owned())]),
                Err(Denied::NoBearer),
                "{text}"
            );
        }
        assert_eq!(
            admit(&[("authorization", "Bearer x".to_owned())]),
            Err(Denied::BearerNoUuid)
        );
        assert_eq!(
            admit(&[("authorization", format!("Bearer {OTHER}"))]),
            Err(Denied::OtherSession)
        );
    }

    #[test]
    fn without_a_session_no_session_id_opens() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "authorization",
            format!("Bearer {SESSION}").parse().unwrap(),
        );
        assert_eq!(keys().admit(&headers, None), Err(Denied::OtherSession));
    }
}
