//! SHA-256: what a file must be, whoever it came from.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Error;

/// The SHA-256 of a file.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Not the text of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 has 64 hexadecimal digits")]
pub struct NotADigest;

impl Digest {
    /// That of a file.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn of_file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Ok(hasher.finish());
            }
            hasher.take(buffer.get(..read).unwrap_or_default());
        }
    }

    /// This digest of `file`, if it is the right one.
    ///
    /// # Errors
    /// When it is another.
    pub(super) fn must_be(self, expected: Self, file: &str) -> Result<Self, Error> {
        if self == expected {
            return Ok(self);
        }
        Err(Error::Mismatch {
            file: file.to_owned(),
            expected,
            found: self,
        })
    }
}

/// Makes a digest out of pieces.
#[derive(Debug)]
pub(super) struct Hasher(Sha256);

impl Hasher {
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(super) fn take(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub(super) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let digits: Vec<u8> = text
            .chars()
            .map(|char| char.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or(NotADigest)?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) if rest.is_empty() => Ok(Self(bytes)),
            _ => Err(NotADigest),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The SHA-256 of the file `name` in a file of digests.
///
/// Any of these is understood, in any case: `SHA2-256= hex`, as Xray's releases have it since they are made
/// with OpenSSL 3, `SHA256= hex` as before, `SHA256(name)= hex`, and what `sha256sum` prints. Lines of
/// other digests, and of other files, are passed over.
///
/// # Errors
/// With what is wrong: there is none, there are two, or it is cut.
pub(super) fn find(text: &str, name: &str) -> Result<Digest, String> {
    let mut found = None;
    for line in text.lines() {
        let Some((of, value)) = entry(line.trim()) else {
            continue;
        };
        if of.is_some_and(|of| base_name(of) != name) {
            continue;
        }
        let digest: Digest = value
            .parse()
            .map_err(|error: NotADigest| format!("\"{value}\" is cut or damaged: {error}"))?;
        if found.is_some_and(|other| other != digest) {
            return Err(format!("there are two different SHA-256 of {name}"));
        }
        found = Some(digest);
    }
    found.ok_or_else(|| format!("there is no SHA-256 of {name} in it"))
}

/// The file that a line is about, where it says so, and what it says is its SHA-256.
fn entry(line: &str) -> Option<(Option<&str>, &str)> {
    if let Some((label, value)) = line.split_once('=') {
        let (label, of) = match label.split_once('(') {
            Some((label, of)) => (label, Some(of.trim_end().trim_end_matches(')'))),
            None => (label, None),
        };
        return names_sha256(label).then_some((of, value.trim()));
    }
    let (value, of) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    // With a star in front of the name, the file was read as bytes.
    let of = Some(of.trim_start().trim_start_matches('*')).filter(|of| !of.is_empty());
    value.parse::<Digest>().ok().map(|_| (of, value))
}

fn names_sha256(label: &str) -> bool {
    let letters = label.chars().filter(char::is_ascii_alphanumeric);
    let plain: String = letters.map(|char| char.to_ascii_uppercase()).collect();
    plain == "SHA256" || plain == "SHA2256"
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "23cd9af937744d97776ee35ecad4972cf4b2109d1e0fe6be9930467608f7c8ae";
    const B: &str = "4d30283ae614e3057f730f67cd088a42be6fdf91f8639d82cb69e48cde80413c";

    fn find_in(text: &str) -> Result<Digest, String> {
        find(text, "Xray-linux-64.zip")
    }

    #[test]
    fn a_digest_is_64_hexadecimal_digits() {
        let digest: Digest = A.parse().unwrap();
        assert_eq!(digest.to_string(), A);
        assert_eq!(A.to_uppercase().parse(), Ok(digest));
        let short = A.strip_suffix('e').unwrap();
        for text in ["", short, &format!("{A}0"), &A.replace('2', "g"), "٣"] {
            assert_eq!(text.parse::<Digest>(), Err(NotADigest), "{text}");
        }
    }

    #[test]
    fn the_digest_of_a_file_is_the_one_that_others_compute() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of_file(&path).unwrap().to_string(), known);
    }

    #[test]
    fn all_spellings_are_understood() {
        let short = "d41d8cd98f00b204e9800998ecf8427e";
        let long = format!("{A}{B}");
        for text in [
            format!("MD5= {short}\nSHA1= {short}\nSHA2-256= {A}\nSHA2-512= {long}\n"),
            format!("SHA1= {short}\r\nSHA256= {A}\r\nSHA512= {long}\r\n"),
            format!("SHA2-256(./Xray-linux-64.zip)= {A}"),
            format!("SHA256 (Xray-linux-64.zip) = {}", A.to_uppercase()),
            format!("sha-256={A}"),
            A.to_owned(),
            format!("{A}  release/Xray-linux-64.zip\n"),
            format!("{B}  Xray-linux-32.zip\n{A} *Xray-linux-64.zip\n"),
        ] {
            assert_eq!(find_in(&text), Ok(A.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for (text, reason) in [
            (String::new(), "no SHA-256 of"),
            ("Not Found".to_owned(), "no SHA-256 of"),
            (format!("SHA2-512= {A}{B}"), "no SHA-256 of"),
            (
                format!("SHA2-256= {}", A.trim_end_matches('e')),
                "cut or damaged",
            ),
            (format!("SHA2-256= {A}{B}"), "cut or damaged"),
            (format!("{A}{B}"), "no SHA-256 of"),
            (format!("SHA256= {A}\nSHA2-256= {B}"), "two different"),
            (format!("{A}  Xray-linux-32.zip"), "no SHA-256 of"),
        ] {
            let refused = find_in(&text).unwrap_err();
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }
}
