//! Which cgroup hierarchies are mounted, and where.

use std::io;
use std::path::{Path, PathBuf};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version 1: its controllers, or its name as `name=systemd`. Empty for version 2.
    pub controllers: Vec<String>,
    /// Its mount point; for a container's cgroup, the folder below it.
    pub folder: PathBuf,
}

impl Hierarchy {
    /// Whether it is version 2's.
    pub fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// The path in a line of `/proc/<pid>/cgroup`, if the line is about this hierarchy. Source: cgroups(7).
    pub fn path_in<'a>(&self, line: &'a str) -> Option<&'a str> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let same = controllers.split(',').filter(|name| !name.is_empty()).eq(self.controllers.iter());
        same.then_some(path)
    }
}

/// Where distributions and libcontainer expect them.
const USUAL_PLACE: &str = "/sys/fs/cgroup";

/// All hierarchies that this process sees. Fails when there is none.
pub fn mounted() -> io::Result<Vec<Hierarchy>> {
    let found = parse(&std::fs::read_to_string("/proc/thread-self/mountinfo")?);
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup file system is mounted at /sys/fs/cgroup"));
    }
    Ok(found)
}

/// Source: `proc_pid_mountinfo(5)`.
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(folder) = left.split(' ').nth(4).map(Path::new) else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
        let controllers: Vec<String> = match kind {
            "cgroup2" => Vec::new(),
            "cgroup" => {
                let plain = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"];
                let names =
                    options.split(',').filter(|name| !plain.contains(name) && !name.starts_with("release_agent="));
                names.map(str::to_owned).collect()
            }
            _ => continue,
        };
        let usual = folder.starts_with(USUAL_PLACE);
        // Bind mounts show the same hierarchy elsewhere; a mount over another hides it.
        if usual && (kind == "cgroup2" || !controllers.is_empty()) {
            found.retain(|known| {
                known.folder != folder && !known.folder.starts_with(folder) && known.controllers != controllers
            });
            found.push(Hierarchy { controllers, folder: folder.to_owned() });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_kinds_of_system_are_understood() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n\
                      50 31 0:29 / /mnt/elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct\n";
        let found = parse(hybrid);
        let kinds: Vec<_> = found.iter().map(|hierarchy| hierarchy.controllers.join("+")).collect();
        assert_eq!(kinds, ["cpu+cpuacct", "name=systemd", ""]);
        assert!(found[2].is_v2());
        assert_eq!(found[0].folder, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found[0].path_in("3:cpu,cpuacct:/a:b"), Some("/a:b"));
        assert_eq!(found[1].path_in("2:name=systemd:/"), Some("/"));
        assert_eq!((found[2].path_in("0::/x"), found[0].path_in("0::/x")), (Some("/x"), None));

        let unified = "24 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,favordynmods\n";
        assert_eq!(parse(unified), [Hierarchy { controllers: vec![], folder: USUAL_PLACE.into() }]);

        // A private mount namespace in which only version 2 is left, mounted over the rest.
        let covered = format!("{hybrid}{unified}");
        assert_eq!(parse(&covered), parse(unified));
        assert!(parse("1 1 0:1 / / rw - ext4 /dev/vda rw\n").is_empty());
    }
}
