//! The limit of memory that this process has beside others in its control group: a container's, or a unit's.

use std::path::{Path, PathBuf};

/// What a control group may have, and has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// Bytes.
    pub(super) limit: u64,
    /// Bytes that can't be had back by dropping caches.
    pub(super) used: u64,
}

impl Memory {
    /// That of this process; `None` without a limit.
    pub(super) fn of_this_process() -> Option<Self> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        folders(&groups)
            .iter()
            .find_map(|folder| Self::read(folder))
    }

    fn read(folder: &Path) -> Option<Self> {
        let number = |name: &str| -> Option<u64> {
            let text = std::fs::read_to_string(folder.join(name)).ok()?;
            text.trim().parse().ok()
        };
        // Version 2, and version 1 of control groups.
        let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
        let current = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(key, _)| *key == name)?.1.parse().ok()
        };
        let cache = field("total_inactive_file").or_else(|| field("inactive_file"));
        Some(Self {
            limit,
            used: current.saturating_sub(cache.unwrap_or_default()),
        })
    }
}

/// Where the limits of these groups are, as `/proc/self/cgroup` names them. In a container the group is
/// often seen as the root.
fn folders(groups: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let roots: &[&str] = match controllers {
            "" => &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"],
            controllers if controllers.split(',').any(|one| one == "memory") => {
                &["/sys/fs/cgroup/memory"]
            }
            _ => continue,
        };
        for root in roots {
            folders.push(Path::new(root).join(path.trim_start_matches('/')));
            folders.push(PathBuf::from(root));
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_not_used_memory() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(Memory::read(folder.path()), None);
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 100\ninactive_file 700\n");
        let memory = Memory {
            limit: 1000,
            used: 200,
        };
        assert_eq!(Memory::read(folder.path()), Some(memory));
        write("memory.max", "max\n");
        assert_eq!(Memory::read(folder.path()), None, "no limit");
        std::fs::remove_file(folder.path().join("memory.max")).unwrap();
        std::fs::remove_file(folder.path().join("memory.current")).unwrap();
        write("memory.limit_in_bytes", "1000\n");
        write("memory.usage_in_bytes", "900\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 700\n");
        assert_eq!(Memory::read(folder.path()), Some(memory));
    }

    #[test]
    fn the_group_is_found_below_its_root_or_as_it() {
        let found = folders("3:cpu,cpuacct:/a\n2:memory:/docker/b\n0::/c\n");
        let wanted = [
            "/sys/fs/cgroup/memory/docker/b",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/c",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/unified/c",
            "/sys/fs/cgroup/unified",
        ];
        assert_eq!(found, wanted.map(PathBuf::from));
    }
}
