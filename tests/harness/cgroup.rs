//! The control groups of one test: found, and removed with whatever still runs in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where cgroup v2 is mounted: the whole tree, or a sub-path on hosts that still carry v1.
pub fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .expect("cgroup v2 is mounted")
}

/// Ends every process in the group and below it, then removes the groups, the deepest first.
pub fn remove(group: &Path) {
    if !group.exists() {
        return;
    }
    let _ = fs::write(group.join("cgroup.kill"), "1");
    for _ in 0..100 {
        if remove_empty(group).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("could not remove the control group {}", group.display());
}

fn remove_empty(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
