//! Files of servers: over HTTP, to the end or not at all.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::LOCATION;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use rustls::RootCertStore;
use tokio::time::timeout;

use super::address::{Plain, is_here, parse, shown, shown_text};
use super::receive::Receiving;
use super::{Digest, Error, Patience, digest, roots};

/// How often a server may lead to another address. GitHub does twice.
const MAX_REDIRECTS: usize = 10;
/// The largest file of digests.
pub(super) const MAX_DIGESTS: u64 = 64 << 10;

/// Gets files from one server, and from where it leads to.
#[derive(Debug)]
pub(super) struct Fetcher {
    client: Client,
    plain: Plain,
    patience: Patience,
}

impl Fetcher {
    /// For files of `base`; over plain HTTP from this machine alone, or where it is known beforehand
    /// which digest they have.
    ///
    /// # Errors
    /// When nobody is there who could vouch for the server.
    pub(super) async fn new(
        base: &str,
        digest_is_known: bool,
        patience: Patience,
    ) -> Result<Self, Error> {
        let base = parse(base)?;
        // They are read from files, up to some hundreds.
        let roots = tokio::task::spawn_blocking(roots::authorities).await;
        Self::with_roots(
            &base,
            digest_is_known,
            patience,
            roots.unwrap_or_else(|_| RootCertStore::empty()),
        )
    }

    pub(super) fn with_roots(
        base: &Url,
        digest_is_known: bool,
        patience: Patience,
        roots: RootCertStore,
    ) -> Result<Self, Error> {
        if base.scheme() == "https" && roots.is_empty() {
            return Err(Error::NoAuthorities);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unusable = |reason: String| Error::Unreachable {
            url: shown(base),
            reason,
        };
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("raynode/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(patience.connect)
            .redirect(Policy::none());
        if is_here(base) {
            // A proxy is somebody in between.
            client = client.no_proxy();
        }
        Ok(Self {
            client: client.build().map_err(|error| unusable(cause(error)))?,
            plain: Plain::for_files_of(base, digest_is_known),
            patience,
        })
    }

    /// The digest of the file at `url`, by the file of digests beside it.
    ///
    /// # Errors
    /// When there is none, or it can't be had.
    pub(super) async fn digest_beside(&self, url: &str, ending: &str) -> Result<Digest, Error> {
        let digests = format!("{url}{ending}");
        let name = url.rsplit('/').next().unwrap_or(url);
        let text = async {
            let mut body = self.open(&digests, MAX_DIGESTS).await?;
            let mut text = Vec::new();
            while let Some(piece) = body.next().await? {
                text.extend_from_slice(&piece);
            }
            Ok(text)
        };
        let fail = |reason: String| Error::NoDigest {
            digests: shown_text(&digests),
            reason,
        };
        let text = match self.in_time(&digests, text).await {
            Err(Error::Status { status, .. }) => {
                return Err(fail(format!("the server answers {status}")));
            }
            text => text?,
        };
        digest::find(&String::from_utf8_lossy(&text), name).map_err(fail)
    }

    /// Gets the file at `url`, of at most `limit` bytes.
    ///
    /// # Errors
    /// When it can't be had, or not as a whole.
    pub(super) async fn file(
        &self,
        url: &str,
        limit: u64,
        mut into: Receiving<'_>,
    ) -> Result<Digest, Error> {
        let whole = async {
            let mut body = self.open(url, limit).await?;
            into.expect(body.expected);
            while let Some(piece) = body.next().await? {
                into.take(&piece).await?;
            }
            into.finish().await
        };
        self.in_time(url, whole).await
    }

    async fn in_time<T>(
        &self,
        url: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let after = self.patience.whole;
        let late = |_| Error::Late {
            url: shown_text(url),
            after,
        };
        timeout(after, work).await.map_err(late)?
    }

    /// Asks for a file, and goes where the server leads.
    async fn open(&self, url: &str, limit: u64) -> Result<Body, Error> {
        let asked = parse(url)?;
        let shown = shown(&asked);
        let mut next = asked;
        for _ in 0..=MAX_REDIRECTS {
            self.plain.check(&next)?;
            let response = self.ask(&next, &shown).await?;
            match redirect(&response) {
                Some(to) => next = to,
                None => return Body::new(response, shown, limit, self.patience.stall),
            }
        }
        Err(Error::Redirects(shown))
    }

    async fn ask(&self, url: &Url, shown: &str) -> Result<Response, Error> {
        let answer = self.client.get(url.clone()).send();
        // To connect has its own limit.
        let after = self.patience.connect + self.patience.stall;
        let answer = timeout(after, answer).await;
        answer
            .map_err(|_| Error::Stalled {
                url: shown.to_owned(),
                after,
            })?
            .map_err(|error| Error::Unreachable {
                url: shown.to_owned(),
                reason: cause(error),
            })
    }
}

/// What a server sends.
struct Body {
    response: Response,
    shown: String,
    expected: Option<u64>,
    got: u64,
    limit: u64,
    stall: Duration,
}

impl Body {
    fn new(response: Response, shown: String, limit: u64, stall: Duration) -> Result<Self, Error> {
        let status = response.status();
        if status != reqwest::StatusCode::OK {
            return Err(Error::Status {
                url: shown,
                status: status.as_u16(),
            });
        }
        let body = Self {
            expected: response.content_length(),
            response,
            shown,
            got: 0,
            limit,
            stall,
        };
        body.within_limit(body.expected.unwrap_or_default())?;
        Ok(body)
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let piece = timeout(self.stall, self.response.chunk()).await;
        let piece = piece.map_err(|_| Error::Stalled {
            url: self.shown.clone(),
            after: self.stall,
        })?;
        match piece {
            Err(error) => Err(self.cut(cause(error))),
            Ok(None) if self.expected.is_some_and(|expected| expected != self.got) => {
                Err(self.cut("the server has said another length".to_owned()))
            }
            Ok(None) => Ok(None),
            Ok(Some(piece)) => {
                self.got += piece.len() as u64;
                self.within_limit(self.got)?;
                Ok(Some(piece))
            }
        }
    }

    fn within_limit(&self, bytes: u64) -> Result<(), Error> {
        if bytes > self.limit {
            return Err(Error::TooLarge {
                what: self.shown.clone(),
                limit: self.limit,
            });
        }
        Ok(())
    }

    fn cut(&self, reason: String) -> Error {
        Error::Cut {
            url: self.shown.clone(),
            got: self.got,
            of: self.expected,
            reason,
        }
    }
}

fn redirect(response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let to = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(to).ok()
}

/// The innermost reason: what is around it says only that a request failed.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        reason = inner.to_string();
        source = inner.source();
    }
    reason
}

#[cfg(test)]
mod tests;
