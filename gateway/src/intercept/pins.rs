//! What is pinned where: `<pins>/maps-2/NAME` and `<pins>/links/NAME`, below a BPF file system.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::InterceptError;

pub const SK_ORIG: &str = "SK_ORIG";
pub const SK_ACC: &str = "SK_ACC";
pub const SK_OWNER: &str = "SK_OWNER";
pub const CONNS: &str = "CONNS";
pub const DATAGRAMS: &str = "DATAGRAMS";
pub const SETTINGS: &str = "SETTINGS";
pub const LISTENERS: &str = "LISTENERS";
pub const HEARTBEAT: &str = "HEARTBEAT";
pub const TARGETS: &str = "TARGETS";
pub const DEVICES: &str = "DEVICES";
pub const COUNTERS: &str = "COUNTERS";
pub const REPORTED: &str = "REPORTED";
pub const EVENTS: &str = "EVENTS";
pub const SOCKETS: &str = "SOCKETS";

/// Every map of the object; all are pinned, so that newly loaded programs go on with the ones a running
/// gateway holds.
pub const MAPS: &[&str] = &[
    SK_ORIG, SK_ACC, SK_OWNER, CONNS, DATAGRAMS, SETTINGS, LISTENERS, HEARTBEAT, TARGETS, DEVICES,
    COUNTERS, REPORTED, EVENTS, SOCKETS,
];

/// The number is the layout of the types in `gateway_ebpf::flow`: maps of another layout are not reused.
const MAPS_FOLDER: &str = "maps-2";
const LINKS_FOLDER: &str = "links";

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);
const STANDARD_MOUNT: &str = "/sys/fs/bpf";

pub fn map(pins: &Path, name: &str) -> PathBuf {
    pins.join(MAPS_FOLDER).join(name)
}

pub fn link(pins: &Path, program: &str) -> PathBuf {
    pins.join(LINKS_FOLDER).join(program)
}

/// Where a link is pinned before it takes another's name. bpffs allows no dots.
pub fn new_link(pins: &Path, program: &str) -> PathBuf {
    pins.join(LINKS_FOLDER).join(format!("new-{program}"))
}

/// Makes the folders, for root only; mounts the BPF file system where it belongs if nobody has.
pub fn prepare(pins: &Path) -> Result<(), InterceptError> {
    if pins.starts_with(STANDARD_MOUNT) && !is_bpffs(Path::new(STANDARD_MOUNT)) {
        mount_bpffs()?;
    }
    let existing = pins.ancestors().find(|path| path.exists()).unwrap_or(pins);
    if !is_bpffs(existing) {
        return Err(InterceptError::NotBpffs(pins.to_path_buf()));
    }
    for folder in [pins.join(MAPS_FOLDER), pins.join(LINKS_FOLDER)] {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder);
        made.map_err(|error| InterceptError::file(&folder, error))?;
    }
    Ok(())
}

/// Removes every pin, links first, and the folders. A link's last reference detaches it.
pub fn remove(pins: &Path) -> Result<(), InterceptError> {
    if !pins.exists() {
        return Ok(());
    }
    for folder in [LINKS_FOLDER, MAPS_FOLDER] {
        let folder = pins.join(folder);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| InterceptError::file(&folder, error))?;
        }
    }
    // Other installations may have their pins below.
    let _ = fs::remove_dir(pins);
    Ok(())
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS)
}

fn mount_bpffs() -> Result<(), InterceptError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("bpf"),
        STANDARD_MOUNT,
        Some("bpf"),
        flags,
        Some("mode=700"),
    )
    .map_err(|error| InterceptError::file(Path::new(STANDARD_MOUNT), error.into()))
}
