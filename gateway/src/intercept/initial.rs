//! The kernel programs speak of processes by their numbers in the host's own namespaces, and of cgroups by
//! their depth in the whole hierarchy. Who sees other numbers would look at the wrong process, or tell the
//! programs a wrong depth, so nothing of this module's runs there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::InterceptError;

/// Name below `/proc/self/ns`, and the inode of the host's (`PROC_*_INIT_INO` in linux/proc_ns.h).
const INITIAL: [(&str, u64); 2] = [("cgroup", 0xefff_fffb), ("pid", 0xefff_fffc)];

/// Fails in a container, whose cgroups and process numbers are not the host's.
pub fn require_host_namespaces() -> Result<(), InterceptError> {
    for (name, host) in INITIAL {
        let path = PathBuf::from("/proc/self/ns").join(name);
        let own = fs::metadata(&path).map_err(|error| InterceptError::file(&path, error))?;
        if own.ino() != host {
            return Err(InterceptError::Namespace(name));
        }
    }
    Ok(())
}
