//! An Xray that does something else first, when it is told to.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::NodeProcess;
use super::node::xray_binary;

/// Cores of this node do `trick`, a few lines of shell, before they run a configuration; once it is set.
pub fn prepare(node: &mut NodeProcess, trick: &str) {
    let path = node.folder().join("tricky-xray");
    let script = format!(
        "#!/bin/sh\nif [ -e {} ] && [ \"$1 $2\" = 'run -c' ]; then\n{trick}\nfi\nexec {} \"$@\"\n",
        flag(node).display(),
        xray_binary().display()
    );
    write_script(&path, &script);
    node.set("XRAY_EXECUTABLE_PATH", &path.display().to_string());
}

pub fn set(node: &NodeProcess, on: bool) {
    if on {
        std::fs::write(flag(node), "").unwrap();
    } else {
        std::fs::remove_file(flag(node)).unwrap();
    }
}

fn flag(node: &NodeProcess) -> PathBuf {
    node.folder().join("trick")
}

/// A program, also in the place of one that runs.
pub fn write_script(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(fresh, path).unwrap();
}
