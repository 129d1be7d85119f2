//! Where values come from.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use super::{FILE_VARIABLE, HERE, Mistake, SERVICE, reference};

/// Gives the value of a variable, if it is set.
pub trait Source {
    /// The value as it stands there.
    fn get(&self, name: &str) -> Option<String>;
}

impl<F: Fn(&str) -> Option<String>> Source for F {
    fn get(&self, name: &str) -> Option<String> {
        self(name)
    }
}

/// The environment over a file.
///
/// OpenSSL has given `SSL_CERT_FILE` another meaning, the authorities to trust, and many machines
/// set it. So that one counts only beside an `SSL_KEY_FILE` in the same place.
pub(super) fn layered(environment: &impl Source, file: &impl Source) -> impl Source {
    move |name: &str| {
        let is_openssls = name == "SSL_CERT_FILE" && environment.get("SSL_KEY_FILE").is_none();
        environment
            .get(name)
            .filter(|_| !is_openssls)
            .or_else(|| file.get(name))
    }
}

/// The environment over a file of settings.
#[derive(Debug)]
pub struct Sources {
    file: PathBuf,
    values: HashMap<String, String>,
}

impl Sources {
    /// The environment over this file, and what is wrong with the file.
    pub(super) fn read(file: &Path) -> (Self, Vec<Mistake>) {
        let mut mistakes = Vec::new();
        let values = env_file(file, &mut mistakes);
        let file = file.to_owned();
        (Self { file, values }, mistakes)
    }

    /// The file that `RAYNODE_SETTINGS` names has to be there; the `usual` one may.
    fn named_or(usual: &Path) -> (Self, Vec<Mistake>) {
        let Some(named) = named() else {
            return Self::read(usual);
        };
        let (sources, mut mistakes) = Self::read(&named);
        if !named.exists() && mistakes.is_empty() {
            mistakes.push(Mistake {
                variable: FILE_VARIABLE.to_owned(),
                value: named.display().to_string(),
                allowed: "it names a file that is there, or is not set".to_owned(),
            });
        }
        (sources, mistakes)
    }

    /// What a daemon reads: the file that `RAYNODE_SETTINGS` names, or `.env` in the working directory.
    pub(super) fn of_the_daemon() -> (Self, Vec<Mistake>) {
        Self::named_or(Path::new(HERE))
    }

    /// The same for a command that somebody gives anywhere: that of the service comes before what lies about in
    /// the working directory.
    pub(super) fn of_a_command() -> (Self, Vec<Mistake>) {
        let service = Path::new(SERVICE);
        let usual = if service.exists() {
            service
        } else {
            Path::new(HERE)
        };
        Self::named_or(usual)
    }

    /// Where the file is, from wherever one looks.
    #[must_use]
    pub fn absolute_file(&self) -> PathBuf {
        std::path::absolute(&self.file).unwrap_or_else(|_| self.file.clone())
    }

    /// Names in the file that nobody reads, sorted.
    #[must_use]
    pub fn unknown(&self) -> Vec<&str> {
        let known: HashSet<&str> = reference::all().map(|setting| setting.name).collect();
        let names = self.values.keys().map(String::as_str);
        let mut unknown: Vec<&str> = names.filter(|name| !known.contains(name)).collect();
        unknown.sort_unstable();
        unknown
    }

    /// What a command finds, right or wrong.
    #[must_use]
    pub fn found() -> Self {
        Self::of_a_command().0
    }

    /// A value and where it stands.
    #[must_use]
    pub fn find_value(&self, name: &str) -> Option<(String, String)> {
        let value = self.get(name).filter(|value| !value.trim().is_empty())?;
        let is_in_file = self.values.get(name) == Some(&value) && in_environment(name).is_none();
        let from = if is_in_file {
            self.file.display().to_string()
        } else {
            "environment".to_owned()
        };
        Some((value.trim().to_owned(), from))
    }
}

impl Source for Sources {
    fn get(&self, name: &str) -> Option<String> {
        layered(&in_environment, &|name: &str| {
            self.values.get(name).cloned()
        })
        .get(name)
    }
}

fn named() -> Option<PathBuf> {
    let path = std::env::var_os(FILE_VARIABLE)?;
    (!path.is_empty()).then(|| path.into())
}

fn in_environment(name: &str) -> Option<String> {
    Some(std::env::var_os(name)?.to_string_lossy().into_owned())
}

/// Reads a file of `NAME=value` lines. One that is not there is an empty one; of a line that can't
/// be read only the place is shown, because it may hold a key.
pub(super) fn env_file(path: &Path, mistakes: &mut Vec<Mistake>) -> HashMap<String, String> {
    let mut mistake = |value: String, allowed: &str| {
        mistakes.push(Mistake {
            variable: path.display().to_string(),
            value,
            allowed: allowed.to_owned(),
        });
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return HashMap::new(),
        Err(error) => {
            let allowed = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "do this as who may read it, such as root (sudo)"
                }
                _ => "it has to be a text file of NAME=value lines",
            };
            mistake(format!("unreadable ({error})"), allowed);
            return HashMap::new();
        }
    };
    let mut values = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        for entry in dotenvy::from_read_iter(line.trim().as_bytes()) {
            match entry {
                Ok((name, value)) => drop(values.insert(name, value)),
                Err(_) => mistake(
                    format!("not readable in line {}", number + 1),
                    "NAME=value; a value with blanks, quotes or # stands in quotes",
                ),
            }
        }
    }
    values
}
