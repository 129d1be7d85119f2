//! Which version is wanted, and where releases have it.

use std::fmt;
use std::str::FromStr;

use super::Error;
use crate::xray::version::Version;

/// Where Xray's own releases are.
pub const RELEASES: &str = "https://github.com/XTLS/Xray-core/releases";

/// The longest name of a version that is taken for one.
const MAX_NAME: usize = 40;

/// A version that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever is the latest release.
    Latest,
    /// One of them.
    Version(Name),
}

/// What a release is called, such as 26.3.27 or 26.4.1-rc1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    text: String,
    version: Version,
}

impl Wanted {
    /// Where releases at `base` have the file `archive`.
    pub(super) fn url(&self, base: &str, archive: &str) -> String {
        let base = base.trim_end_matches('/');
        match self {
            Self::Latest => format!("{base}/latest/download/{archive}"),
            Self::Version(name) => format!("{base}/download/v{}/{archive}", name.text),
        }
    }

    /// Whether this is what was asked for.
    ///
    /// # Errors
    /// When it is another version.
    pub(super) fn admit(&self, found: Version) -> Result<(), Error> {
        match self {
            Self::Version(name) if name.version != found => Err(Error::OtherVersion {
                wanted: name.text.clone(),
                found,
            }),
            Self::Latest | Self::Version(_) => Ok(()),
        }
    }
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        let name = text.strip_prefix('v').unwrap_or(text);
        // It becomes a part of a URL.
        let plain = |char: char| char.is_ascii_alphanumeric() || ".-".contains(char);
        match name.parse() {
            Ok(version) if name.len() <= MAX_NAME && name.chars().all(plain) => {
                let text = name.to_owned();
                Ok(Self::Version(Name { text, version }))
            }
            _ => Err(Error::NotAVersion(text.chars().take(MAX_NAME).collect())),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Version(name) => f.write_str(&name.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(wanted: &str) -> String {
        let wanted: Wanted = wanted.parse().unwrap();
        wanted.url("https://mirror.example/xray/", "Xray-linux-64.zip")
    }

    #[test]
    fn releases_have_a_folder_for_each_version_and_one_for_the_latest() {
        let folder = "https://mirror.example/xray/download";
        assert_eq!(
            url("v26.3.27"),
            format!("{folder}/v26.3.27/Xray-linux-64.zip")
        );
        assert_eq!(url("26.3.27"), url("v26.3.27"));
        assert_eq!(
            url("26.4.1-rc1"),
            format!("{folder}/v26.4.1-rc1/Xray-linux-64.zip")
        );
        let latest = "https://mirror.example/xray/latest/download/Xray-linux-64.zip";
        assert_eq!(url("latest"), latest);
    }

    #[test]
    fn what_is_no_version_is_refused() {
        let long = format!("26.3.27{}", "7".repeat(100));
        for text in [
            "",
            "newest",
            "26.3",
            "v26.3.27/../x",
            "26.3.27 ",
            "26.3.27%2f",
            &long,
        ] {
            let refused = text.parse::<Wanted>().unwrap_err();
            assert!(matches!(refused, Error::NotAVersion(_)), "{text}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let wanted: Wanted = "v26.3.27".parse().unwrap();
        assert!(wanted.admit(Version::new(26, 3, 27)).is_ok());
        assert_eq!(
            wanted
                .admit(Version::new(25, 6, 8))
                .unwrap_err()
                .to_string(),
            "the archive holds Xray 25.6.8 and not 26.3.27"
        );
        assert!(Wanted::Latest.admit(Version::new(25, 6, 8)).is_ok());
    }
}
