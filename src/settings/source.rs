//! Where values come from.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::Mistake;

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
            mistake(
                format!("unreadable ({error})"),
                "a text file of NAME=value lines",
            );
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
