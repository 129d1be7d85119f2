//! Whether a file could be one of geo entries: a list, in protobuf, of entries that begin with their code.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use super::Error;

/// A field with the number 1 that has a length: an entry of the list, and in it the entry's code.
const FIRST_FIELD: u64 = 1 << 3 | 2;
/// The longest code of an entry, such as CN or GEOLOCATION-!CN.
const MAX_CODE: u64 = 255;

/// Goes from entry to entry to the very end. What is in them is left to the core.
///
/// # Errors
/// When the file can't be read, or is something else; `name` is what people call it.
pub(super) fn check(path: &Path, name: &str) -> Result<(), Error> {
    let file = File::open(path).map_err(Error::disk(path))?;
    let reason = match walk(&mut BufReader::with_capacity(1 << 17, file)) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(reason)) => reason,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => "it is cut",
        Err(error) => return Err(Error::disk(path)(error)),
    };
    Err(Error::NotGeo {
        file: name.to_owned(),
        reason,
    })
}

fn walk(file: &mut impl BufRead) -> io::Result<Result<(), &'static str>> {
    let mut empty = true;
    while !file.fill_buf()?.is_empty() {
        if varint(file)? != Some(FIRST_FIELD) {
            return Ok(Err("there is something else than entries in it"));
        }
        let Some(length) = varint(file)? else {
            return Ok(Err("the length of an entry is no number"));
        };
        let mut entry = file.take(length);
        if !begins_with_code(&mut entry)? {
            return Ok(Err("an entry does not begin with its code"));
        }
        let rest = entry.limit();
        if io::copy(&mut entry, &mut io::sink())? < rest {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        empty = false;
    }
    Ok(if empty { Err("it is empty") } else { Ok(()) })
}

fn begins_with_code(entry: &mut impl Read) -> io::Result<bool> {
    if varint(entry)? != Some(FIRST_FIELD) {
        return Ok(false);
    }
    let Some(length @ 1..=MAX_CODE) = varint(entry)? else {
        return Ok(false);
    };
    let mut code = Vec::new();
    let read = entry.take(length).read_to_end(&mut code)?;
    Ok(read as u64 == length && code.iter().all(u8::is_ascii_graphic))
}

/// A number of protobuf; `None` where it has too many bytes.
fn varint(from: &mut impl Read) -> io::Result<Option<u64>> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        let [byte] = byte;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xray::install::testing::geo;

    fn refused(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let refused = check(&path, "geoip.dat").map_err(|error| error.to_string());
        refused.err().unwrap_or_default()
    }

    #[test]
    fn lists_of_entries_pass() {
        assert_eq!(refused(&geo::ip(&["IR", "PRIVATE"])), "");
        assert_eq!(
            refused(&geo::site(&["category-ads-all", "geolocation-!cn"])),
            ""
        );
    }

    #[test]
    fn other_files_do_not() {
        let good = geo::ip(&["IR", "PRIVATE"]);
        let mut longer = good.clone();
        longer.push(0);
        for (bytes, reason) in [
            (&b""[..], "it is empty"),
            (
                b"<!DOCTYPE html><html>Not Found</html>",
                "something else than entries",
            ),
            (&good[..good.len() - 1], "it is cut"),
            (&good[..1], "it is cut"),
            (&longer, "something else than entries"),
            (&[0x0a, 0x00], "it is cut"),
            (&[0x0a, 0x02, 0x12, 0x00], "begin with its code"),
            (&[0x0a, 0x04, 0x0a, 0x02, 0x01, 0x02], "begin with its code"),
            (&[0x0a, 0x03, 0x0a, 0x7f, b'I'], "begin with its code"),
            (
                &[
                    0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
                ],
                "no number",
            ),
            (b"\x0a\xff\xff\xff\xff\x7f\x0a\x02IR", "it is cut"),
        ] {
            let refused = refused(bytes);
            assert!(refused.contains(reason), "{bytes:x?}: {refused}");
        }
    }
}
