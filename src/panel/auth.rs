//! Who may call.

use http::HeaderMap;
use subtle::ConstantTimeEq;
use tonic::Status;
use uuid::Uuid;

/// What opens the node.
pub struct Keys {
    api_key: Uuid,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(hidden)")
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
    #[error("api key mismatch")]
    Mismatch,
    #[error("session id mismatch")]
    OtherSession,
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::Missing => Self::unauthenticated(text),
            Denied::NoUuid | Denied::NoBearer => Self::invalid_argument(text),
            Denied::Mismatch | Denied::OtherSession => Self::permission_denied(text),
        }
    }
}

impl Keys {
    /// One key.
    #[must_use]
    pub fn new(api_key: Uuid) -> Self {
        Self { api_key }
    }

    /// Lets a caller in who shows the API key (`x-api-key`, or `authorization: Bearer`) or the id
    /// of the session that is in force (`authorization: Bearer`). Any one that is right is enough.
    pub(super) fn admit(&self, headers: &HeaderMap, session: Option<Uuid>) -> Result<(), Denied> {
        let by_key = headers
            .get("x-api-key")
            .map(|value| self.admit_key(value.as_bytes()));
        if by_key == Some(Ok(())) {
            return Ok(());
        }
        let by_bearer = headers
            .get("authorization")
            .map(|value| self.admit_bearer(value.as_bytes(), session));
        if by_bearer == Some(Ok(())) {
            return Ok(());
        }
        by_key.or(by_bearer).unwrap_or(Err(Denied::Missing))
    }

    fn admit_key(&self, value: &[u8]) -> Result<(), Denied> {
        let shown = Uuid::try_parse_ascii(value).map_err(|_| Denied::NoUuid)?;
        if same(shown, self.api_key) {
            Ok(())
        } else {
            Err(Denied::Mismatch)
        }
    }

    fn admit_bearer(&self, value: &[u8], session: Option<Uuid>) -> Result<(), Denied> {
        let text = std::str::from_utf8(value).map_err(|_| Denied::NoBearer)?;
        let mut words = text.split_whitespace();
        let (Some(scheme), Some(token), None) = (words.next(), words.next(), words.next()) else {
            return Err(Denied::NoBearer);
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Denied::NoBearer);
        }
        let shown = Uuid::try_parse(token).map_err(|_| Denied::NoBearer)?;
        // Both are always compared, so that the time taken tells nothing.
        let is_key = same(shown, self.api_key);
        let is_session = session.is_some_and(|session| same(shown, session));
        if is_key | is_session {
            Ok(())
        } else {
            Err(Denied::OtherSession)
        }
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
    const OTHER: Uuid = Uuid::from_u128(0x1111_1b9a_2d0d_4a0c_9a4b_6f3c_1f0f_2d11);

    fn admit(headers: &[(&'static str, String)]) -> Result<(), Denied> {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        Keys::new(KEY).admit(&headers.collect(), Some(SESSION))
    }

    #[test]
    fn the_key_opens_in_every_form_of_a_uuid() {
        for key in [
            KEY.hyphenated().to_string(),
            KEY.simple().to_string(),
            KEY.urn().to_string(),
            KEY.braced().to_string().to_uppercase(),
        ] {
            assert_eq!(admit(&[("x-api-key", key)]), Ok(()));
        }
    }

    #[test]
    fn key_and_session_open_as_a_bearer() {
        assert_eq!(admit(&[("authorization", format!("Bearer {KEY}"))]), Ok(()));
        assert_eq!(
            admit(&[("authorization", format!("Bearer {SESSION}"))]),
            Ok(())
        );
        let both = [
            ("x-api-key", OTHER.to_string()),
            ("authorization", format!("Bearer {SESSION}")),
        ];
        assert_eq!(admit(&both), Ok(()));
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
        for text in [
            "",
            "Bearer",
            "Basic x",
            "Bearer x",
            &format!("Bearer {KEY} {KEY}"),
        ] {
            assert_eq!(
                admit(&[("authorization", text.to_owned())]),
                Err(Denied::NoBearer),
                "{text}"
            );
        }
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
        assert_eq!(
            Keys::new(KEY).admit(&headers, None),
            Err(Denied::OtherSession)
        );
    }
}
