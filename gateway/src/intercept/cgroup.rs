//! Cgroups of version 2: where they are mounted, and entering one.
//!
//! On a hybrid host version 1 owns `/sys/fs/cgroup` and version 2 is mounted below it; both work, because
//! every path here starts at the mount that [`cgroup2_mount`] finds.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::InterceptError;
use crate::config;

/// Where the cgroup v2 hierarchy is mounted: `/sys/fs/cgroup`, or next to the v1 controllers on hybrid hosts.
pub fn cgroup2_mount() -> Result<PathBuf, InterceptError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let text = fs::read(&path).map_err(|error| InterceptError::file(&path, error))?;
    find_mount(&String::from_utf8_lossy(&text)).ok_or(InterceptError::NoCgroup2)
}

/// Moves this process below the gateway's cgroup. Call it before the listeners are made: a socket carries
/// the cgroup of its creator for ever, an accepted one its listener's, and the kernel side of the handshake
/// is attached there. A process that is there already stays where it is: systemd wants a unit's processes
/// in the unit's own cgroup.
pub fn join_gateway_cgroup(kernel: &config::Kernel) -> Result<(), InterceptError> {
    let path = Path::new("/proc/self/cgroup");
    let own = fs::read_to_string(path).map_err(|error| InterceptError::file(path, error))?;
    if is_below(&own, &kernel.gateway_cgroup) {
        return Ok(());
    }
    let cgroup = cgroup2_mount()?
        .join(&kernel.gateway_cgroup)
        .join("gateway");
    create(&cgroup)?;
    enter(&cgroup)
}

/// Whether the version 2 line of a `/proc/PID/cgroup` names a cgroup below `ancestor`.
fn is_below(proc_cgroup: &str, ancestor: &str) -> bool {
    let own = proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::/"));
    let below = own.and_then(|own| own.strip_prefix(ancestor));
    below.is_some_and(|rest| rest.starts_with('/'))
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

/// The cgroups directly below; none when it is gone.
pub fn children(cgroup: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path())
}

/// Stops every process in the cgroup and below, as they are; SIGKILL still ends them.
pub fn freeze(cgroup: &Path) -> Result<(), InterceptError> {
    set_frozen(cgroup, "1")
}

/// Lets them go on.
pub fn thaw(cgroup: &Path) -> Result<(), InterceptError> {
    set_frozen(cgroup, "0")
}

/// Whether the cgroup is frozen or about to be.
pub fn is_frozen(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.freeze")).is_ok_and(|state| state.trim() == "1")
}

fn set_frozen(cgroup: &Path, state: &str) -> Result<(), InterceptError> {
    let freezer = cgroup.join("cgroup.freeze");
    fs::write(&freezer, state).map_err(|error| InterceptError::file(&freezer, error))
}

/// Removes a cgroup and those below it as far as they are empty.
pub fn remove_if_empty(cgroup: &Path) {
    children(cgroup).for_each(|child| remove_if_empty(&child));
    // Fails, as it should, for a cgroup that has processes or children.
    let _ = fs::remove_dir(cgroup);
}

/// Picks the mount of the whole hierarchy; where several show it, the one with the shortest path.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let whole = |root: &str| root == "/";
    mountinfo
        .lines()
        .filter_map(parse_cgroup2)
        .min_by_key(|(root, path)| (!whole(root), path.as_os_str().len()))
        .map(|(_, path)| path)
}

/// Root and mount point of a line of mountinfo (proc_pid_mountinfo(5)) that is a cgroup2.
fn parse_cgroup2(line: &str) -> Option<(&str, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if filesystem.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let root = fields.next()?;
    Some((root, unescape(fields.next()?)))
}

/// Blanks and backslashes in mount points are written as three octal digits.
pub fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_gateways_cgroup() {
        for (text, expected) in [
            ("0::/sluice.slice/sluice.service\n", true),
            ("5:pids:/x\n0::/sluice.slice/gateway\n", true),
            ("0::/sluice.slice\n", false),
            ("0::/sluice.slice2/gateway\n", false),
            ("5:pids:/sluice.slice/gateway\n0::/\n", false),
            ("", false),
        ] {
            assert_eq!(is_below(text, "sluice.slice"), expected, "{text}");
        }
    }

    #[test]
    fn mounts() {
        let v1 = "36 31 0:33 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n";
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let pure = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let part = "50 23 0:26 /a /b rw - cgroup2 cgroup2 rw\n";
        let blank = "50 23 0:26 / /my\\040cgroups\\134x rw master:1 shared:2 - cgroup2 none rw\n";
        for (name, text, expected) in [
            ("pure", pure.to_owned(), Some("/sys/fs/cgroup")),
            (
                "hybrid",
                format!("{v1}{hybrid}"),
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                "both, the shorter path",
                format!("{hybrid}{pure}"),
                Some("/sys/fs/cgroup"),
            ),
            (
                "the whole before a part",
                format!("{part}{hybrid}"),
                Some("/sys/fs/cgroup/unified"),
            ),
            ("only a part", part.to_owned(), Some("/b")),
            ("escapes", blank.to_owned(), Some("/my cgroups\\x")),
            ("v1 only", v1.to_owned(), None),
            (
                "a path that looks like it",
                v1.replace("pids rw", "cgroup2 rw"),
                None,
            ),
            ("empty", String::new(), None),
            ("garbage", "x - cgroup2\n - cgroup2 x\n".to_owned(), None),
        ] {
            assert_eq!(
                find_mount(&text).as_deref(),
                expected.map(Path::new),
                "{name}"
            );
        }
    }
}
