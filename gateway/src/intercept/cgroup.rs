//! Cgroups of version 2: where they are mounted, and entering one.
//!
//! On a hybrid host version 1 owns `/sys/fs/cgroup` and version 2 is mounted below it; both work, because
//! every path here starts at the mount that [`cgroup2_mount`] finds.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::InterceptError;
use crate::config;

/// Where cgroup v2 is mounted.
pub fn cgroup2_mount() -> Result<PathBuf, InterceptError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(|error| InterceptError::file(path, error))?;
    find_cgroup2(&text).ok_or(InterceptError::NoCgroup2)
}

/// Moves this process below the gateway's cgroup. Call it before the listeners are made: a socket carries
/// the cgroup of its creator for ever, an accepted one its listener's, and the kernel side of the handshake
/// is attached there.
pub fn join_gateway_cgroup(kernel: &config::Kernel) -> Result<(), InterceptError> {
    let cgroup = cgroup2_mount()?
        .join(&kernel.gateway_cgroup)
        .join("gateway");
    create(&cgroup)?;
    enter(&cgroup)
}

/// Creates a cgroup and its parents, if they are not there.
pub fn create(cgroup: &Path) -> Result<(), InterceptError> {
    fs::create_dir_all(cgroup).map_err(|error| InterceptError::file(cgroup, error))
}

/// Moves the calling process, all its threads, into a cgroup.
pub fn enter(cgroup: &Path) -> Result<(), InterceptError> {
    let procs = cgroup.join("cgroup.procs");
    // 0 means the writer, whatever pid namespace it is in.
    fs::write(&procs, "0").map_err(|error| InterceptError::file(&procs, error))
}

/// The id the kernel programs see: the inode of the cgroup's directory.
pub fn id(cgroup: &Path) -> io::Result<u64> {
    Ok(fs::metadata(cgroup)?.ino())
}

/// Whether a process lives in the cgroup or below it.
pub fn is_populated(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Removes a cgroup and those below it as far as they are empty.
pub fn remove_if_empty(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_if_empty(&entry.path());
        }
    }
    // Fails, as it should, for a cgroup that has processes or children.
    let _ = fs::remove_dir(cgroup);
}

/// The mount whose root is the hierarchy's (or, in a container, the one that is there).
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mounts: Vec<(&str, PathBuf)> = mountinfo.lines().filter_map(parse_cgroup2).collect();
    let whole = mounts.iter().find(|(root, _)| *root == "/");
    whole.or(mounts.first()).map(|(_, mount)| mount.clone())
}

/// `36 35 0:29 ROOT MOUNT_POINT OPTIONS … - FSTYPE SOURCE SUPER_OPTIONS`, see proc_pid_mountinfo(5).
fn parse_cgroup2(line: &str) -> Option<(&str, PathBuf)> {
    let (mount, file_system) = line.split_once(" - ")?;
    if file_system.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    Some((fields.next()?, PathBuf::from(unescape(fields.next()?))))
}

/// Blanks in paths are octal: `\040`.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        match after
            .get(..3)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok())
        {
            Some(byte) => {
                text.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_version_2_mount() {
        const V1: &str =
            "30 25 0:26 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu";
        const PURE: &str = "29 22 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        const HYBRID: &str = "41 25 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        const BIND: &str = "90 25 0:26 /agents.slice /mnt/agents rw - cgroup2 cgroup2 rw";
        const SPACED: &str = r"91 25 0:26 / /mnt/control\040groups rw - cgroup2 cgroup2 rw";
        let rows = [
            ("pure", vec![PURE], Some("/sys/fs/cgroup")),
            ("hybrid", vec![V1, HYBRID], Some("/sys/fs/cgroup/unified")),
            (
                "a bind mount of a part comes first",
                vec![BIND, PURE],
                Some("/sys/fs/cgroup"),
            ),
            (
                "only a part, as in a container",
                vec![V1, BIND],
                Some("/mnt/agents"),
            ),
            (
                "a blank in the path",
                vec![SPACED],
                Some("/mnt/control groups"),
            ),
            ("version 1 alone", vec![V1], None),
            ("nothing", vec![], None),
        ];
        for (name, lines, expected) in rows {
            assert_eq!(
                find_cgroup2(&lines.join("\n")),
                expected.map(PathBuf::from),
                "{name}"
            );
        }
    }
}
