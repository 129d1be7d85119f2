//! Addresses of servers: which of them are good enough, and what of them people see.

use std::net::IpAddr;

use reqwest::Url;

use super::Error;

/// Where plain HTTP is good enough.
///
/// Whoever sits between could exchange a file and its digest. Nobody sits between on this machine; and with
/// a digest that is known beforehand nobody can exchange anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    Nowhere,
    HereOnly,
    Everywhere,
}

impl Plain {
    pub(super) fn for_files_of(base: &Url, digest_is_known: bool) -> Self {
        match (digest_is_known, is_here(base)) {
            (true, _) => Self::Everywhere,
            (false, true) => Self::HereOnly,
            (false, false) => Self::Nowhere,
        }
    }

    /// Whether a file may come from there.
    ///
    /// # Errors
    /// When it may not.
    pub(super) fn check(self, url: &Url) -> Result<(), Error> {
        match (url.scheme(), self) {
            ("https", _) | ("http", Self::Everywhere) => Ok(()),
            ("http", Self::HereOnly) if is_here(url) => Ok(()),
            ("http", _) => Err(Error::Plain(shown(url))),
            (other, _) => Err(Error::Url {
                url: shown(url),
                reason: format!("{other} is neither http nor https"),
            }),
        }
    }
}

/// A URL of a server.
///
/// # Errors
/// When it is none.
pub(super) fn parse(url: &str) -> Result<Url, Error> {
    let fail = |reason: String| Error::Url {
        url: shown_text(url),
        reason,
    };
    let parsed = Url::parse(url).map_err(|error| fail(error.to_string()))?;
    match parsed.host_str() {
        Some(_) => Ok(parsed),
        None => Err(fail("it names no server".to_owned())),
    }
}

/// Whether a URL leads to this machine.
pub(super) fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A URL as people may see it: without a name and password, and without what is signed behind it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Where a URL can't have them, it has none.
    url.set_username("").unwrap_or_default();
    url.set_password(None).unwrap_or_default();
    url.into()
}

/// The same for what may be no URL.
#[must_use]
pub fn shown_text(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) if url.has_host() => shown(&url),
        // Nobody knows where in it a password is.
        _ => url.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_or_a_known_digest() {
        let url = |text: &str| parse(text).unwrap();
        let allowed = |base: &str, known: bool, next: &str| {
            Plain::for_files_of(&url(base), known)
                .check(&url(next))
                .is_ok()
        };
        let (near, far) = ("http://127.0.0.2:80/", "http://mirror.example/");
        let secure = "https://mirror.example/";
        for (base, known, next, expected) in [
            (secure, false, secure, true),
            (secure, false, far, false),
            (secure, false, near, false),
            (far, false, far, false),
            (far, true, far, true),
            (secure, true, far, true),
            (near, false, near, true),
            (near, false, "http://[::1]/", true),
            (near, false, "http://localhost:8080/", true),
            (near, false, far, false),
            (near, false, secure, true),
            (
                "http://127.0.0.1.example/",
                false,
                "http://127.0.0.1.example/",
                false,
            ),
            (
                "http://localhost.example/",
                false,
                "http://localhost.example/",
                false,
            ),
            (secure, true, "file://mirror.example/etc/passwd", false),
        ] {
            assert_eq!(
                allowed(base, known, next),
                expected,
                "{base} {known} {next}"
            );
        }
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        for (url, people_see) in [
            (
                "https://user:secret@mirror.example/a/b.zip?token=secret#secret",
                "https://mirror.example/a/b.zip",
            ),
            ("mirror.example", "mirror.example"),
            ("http://user:secret@", ""),
            ("user:secret@mirror.example", "mirror.example"),
        ] {
            let shown = shown_text(url);
            assert_eq!(shown, people_see);
        }
        for url in [
            "mirror.example",
            "/etc/passwd",
            "",
            "https://",
            "data:text/plain,x",
        ] {
            assert!(matches!(parse(url), Err(Error::Url { .. })), "{url}");
        }
    }
}
