//! Archives as releases have them.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// One with these files, packed.
pub(crate) fn of(files: &[(&str, &[u8])]) -> Vec<u8> {
    with(files, CompressionMethod::Deflated)
}

/// One with these files as they are.
pub(crate) fn stored(files: &[(&str, &[u8])]) -> Vec<u8> {
    with(files, CompressionMethod::Stored)
}

/// One with a link in it.
pub(crate) fn with_link(name: &str, target: &str) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default();
    writer.add_symlink(name, target, options).unwrap();
    writer.finish().unwrap().into_inner()
}

fn with(files: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, content) in files {
        writer.start_file(*name, options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}
