//! Several API keys, so that one can be replaced without a gap: the new one is added here, the
//! panel is told, the old one is removed.

use std::io;
use std::path::Path;

use uuid::Uuid;

use super::Error;
use crate::disk;

/// The keys of a file with a line each: name, blank, key. `#` begins a comment.
///
/// # Errors
/// When the file can't be read, or a line is something else; no part of a line is shown, because it
/// may be a key.
pub fn keys_file(path: &Path) -> Result<Vec<(String, Uuid)>, Error> {
    // Its own words, where it can't be looked at or is not there.
    std::fs::metadata(path).map_err(|source| Error::KeysFile {
        path: path.to_owned(),
        source,
    })?;
    let keys = any_keys(path)?;
    if keys.is_empty() {
        return Err(Error::Unusable {
            path: path.to_owned(),
            reason: "holds no key".to_owned(),
        });
    }
    Ok(keys)
}

/// The same for a file that may be missing, or hold none.
///
/// # Errors
/// As for one that has to hold some.
pub fn any_keys(path: &Path) -> Result<Vec<(String, Uuid)>, Error> {
    let unusable = |reason: String| Error::Unusable {
        path: path.to_owned(),
        reason,
    };
    let text = read(path)?;
    let mut keys: Vec<(String, Uuid)> = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(name), Some(key), None) = (words.next(), words.next(), words.next()) else {
            return Err(unusable(format!(
                "line {number} is not a name, a blank and a key"
            )));
        };
        let key = Uuid::try_parse(key).ok().filter(|key| !key.is_nil());
        let key = key.ok_or_else(|| unusable(format!("the key in line {number} is not a UUID")))?;
        if keys.iter().any(|(other, _)| other == name) {
            return Err(unusable(format!(
                "line {number} has a name that was there before"
            )));
        }
        keys.push((name.to_owned(), key));
    }
    Ok(keys)
}

/// Puts a key behind the others; the file is made where there is none.
///
/// # Errors
/// When the file can't be read or written.
pub fn add_key(path: &Path, name: &str, key: Uuid) -> Result<(), Error> {
    edit(path, |text| {
        let mut text = text.to_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text + &format!("{name} {key}\n")
    })
}

/// Takes the line of a key out; everything else stays. A file of which nothing stays is removed.
///
/// # Errors
/// As for adding.
pub fn revoke_key(path: &Path, name: &str) -> Result<(), Error> {
    edit(path, |text| {
        let others = text.lines().filter(|line| {
            let line = line.split('#').next().unwrap_or_default();
            line.split_whitespace().next() != Some(name)
        });
        others.flat_map(|line| [line, "\n"]).collect()
    })
}

fn edit(path: &Path, change: impl FnOnce(&str) -> String) -> Result<(), Error> {
    let fail = |source: io::Error| Error::Io {
        path: path.to_owned(),
        source,
    };
    let text = change(&read(path)?);
    let done = if text.trim().is_empty() {
        match std::fs::remove_file(path) {
            // Somebody was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    } else {
        disk::write_private(path, text.as_bytes())
    };
    done.map_err(fail)
}

/// What is there; nothing where there is no file.
fn read(path: &Path) -> Result<String, Error> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, Uuid)>, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        keys_file(file.path())
    }

    #[test]
    fn a_line_each_with_comments() {
        let keys = read(
            "# panels\nhome  0b0e1b9a-2d0d-4a0c-9a4b-6f3c1f0f2d11 # since May\n\nnew\t{1B0E1B9A-2D0D-4A0C-9A4B-6F3C1F0F2D11}\n",
        )
        .unwrap();
        let names: Vec<&str> = keys.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["home", "new"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_named_by_its_setting_and_holds_no_key_to_revoke() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let error = keys_file(&path).unwrap_err().to_string();
        let said = format!(
            "API_KEYS_FILE={}: No such file or directory (os error 2)",
            path.display()
        );
        assert_eq!(error, said);
        revoke_key(&path, "home").unwrap();
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line_and_not_shown() {
        let key = "0b0e1b9a-2d0d-4a0c-9a4b-6f3c1f0f2d11";
        for text in [
            "",
            "# nothing",
            "home secretword",
            "home",
            &format!("home {key} more"),
            &format!("home {key}\nhome {key}"),
            "home 00000000-0000-0000-0000-000000000000",
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                !error.contains("secretword") && !error.contains(key),
                "{error}"
            );
        }
    }
}
