//! The file systems of an isolated agent: the host's, without the places where it talks to its services and
//! its kernel.
//!
//! What stays is the host's files, with their permissions: programs, libraries, `/etc`, homes. What goes:
//!
//! * `/run`, `/var/run`, `/tmp`, `/var/tmp`: empty. The sockets of containers' daemons, D-Bus, systemd,
//!   ssh-agent, tmux, X11 and of the databases themselves are there.
//! * `/dev`: standard devices, a terminal multiplexer of its own, shared memory of its own.
//! * `/proc`: the agent's own processes. `/sys`: the agent's own network devices, read-only, without control
//!   groups and pinned kernel programs.
//!
//! What was mounted in those places is taken off before the new comes, and where that was no mount of its own,
//! it lies below the new one. Without capabilities nothing can be taken off again, and no descriptor or
//! working folder leads below.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{major, minor};

use crate::config::{Device, DeviceKind};
use crate::intercept::cgroup;

/// Empty for the agent, with these permissions.
const HIDDEN: [(&str, &str); 4] = [
    ("/run", "mode=0755"),
    ("/var/run", "mode=0755"),
    ("/tmp", "mode=1777"),
    ("/var/tmp", "mode=1777"),
];

/// File systems that show the kernel or other processes: they go, wherever else the host has them.
const WINDOWS: [&str; 14] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "bpf",
    "devtmpfs",
    "devpts",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "pstore",
    "efivarfs",
    "rpc_pipefs",
];

/// Mounted anew, so what the host has below them needs no attention.
const RENEWED: [&str; 3] = ["/proc", "/sys", "/dev"];

const STANDARD_DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Parts of `/proc` that are the host's even so.
const PROC_READ_ONLY: [&str; 5] = [
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/irq",
    "/proc/bus",
    "/proc/fs",
];
const PROC_HIDDEN: [&str; 3] = ["/proc/kcore", "/proc/keys", "/proc/timer_list"];

/// Programs read it to find the resolver; it is often a link to `/run`.
const RESOLVER: &str = "/etc/resolv.conf";

const NONE: Option<&str> = None;

/// Changes the mount namespace this process is in, which must be new.
///
/// `kept`: files, readable by everybody, that are there afterwards as they are now, whatever goes.
pub fn set_up(devices: &[Device], kept: &[PathBuf]) -> Result<()> {
    // Neither side sees the other's changes.
    remount("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let hidden = hidden_folders();
    let resolver = fs::canonicalize(RESOLVER).ok();
    let kept: Vec<Kept> = kept
        .iter()
        .cloned()
        .chain(resolver)
        .filter_map(Kept::of_host)
        .collect();
    close_windows()?;
    for (folder, mode) in &hidden {
        take_away(folder)?;
        mount_new(
            "tmpfs",
            folder,
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            mode,
        )?;
    }
    for file in kept {
        file.put_back()?;
    }
    renew_dev(devices)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let (sys, proc) = (Path::new("/sys"), Path::new("/proc"));
    take_away(sys)?;
    mount_new("sysfs", sys, quiet | MsFlags::MS_RDONLY, "")?;
    take_away(proc)?;
    mount_new("proc", proc, quiet, "")?;
    close_proc(quiet)
}

/// Where the names lead: `/var/run` is a link to `/run` on most hosts.
fn hidden_folders() -> Vec<(PathBuf, &'static str)> {
    let mut folders: Vec<(PathBuf, &str)> = Vec::new();
    for (name, mode) in HIDDEN {
        if let Ok(folder) = fs::canonicalize(name)
            && folder.is_dir()
            && folders.iter().all(|(known, _)| !folder.starts_with(known))
        {
            folders.push((folder, mode));
        }
    }
    folders
}

fn close_windows() -> Result<()> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    let windows: Vec<PathBuf> = mountinfo.lines().filter_map(window).collect();
    // What was mounted last lies on top. /proc is still needed and comes last of all.
    for path in windows.iter().rev() {
        if !RENEWED.iter().any(|renewed| path.starts_with(renewed)) {
            take_away(path)?;
        }
    }
    Ok(())
}

/// Takes off one mount, and those below it.
fn take_away(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // None, or under another one, where nobody can see it either.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("taking {} away", path.display())),
    }
}

/// The mount point of a line of mountinfo (proc_pid_mountinfo(5)) whose file system is one of [`WINDOWS`].
fn window(line: &str) -> Option<PathBuf> {
    let (place, filesystem) = line.split_once(" - ")?;
    let kind = filesystem.split(' ').next()?;
    let point = place.split(' ').nth(4)?;
    WINDOWS.contains(&kind).then(|| cgroup::unescape(point))
}

/// A file that hiding folders may take away.
#[derive(Debug)]
struct Kept {
    place: PathBuf,
    text: Vec<u8>,
}

impl Kept {
    fn of_host(place: PathBuf) -> Option<Self> {
        let text = fs::read(&place).ok()?;
        Some(Self { place, text })
    }

    fn put_back(self) -> Result<()> {
        if self.place.exists() {
            return Ok(());
        }
        let folder = self.place.parent().unwrap_or(Path::new("/"));
        let put = || {
            make_folders(folder)?;
            fs::write(&self.place, &self.text)?;
            // Whatever the caller's umask is, the agent's user reads it.
            fs::set_permissions(&self.place, fs::Permissions::from_mode(0o644))
        };
        put().with_context(|| format!("putting {} back", self.place.display()))
    }
}

/// Like `create_dir_all`, for everybody to walk through.
fn make_folders(folder: &Path) -> std::io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folders(parent)?;
    }
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

fn renew_dev(devices: &[Device]) -> Result<()> {
    // Built aside, as it is filled from the one it replaces. /run is the agent's own already.
    let aside = Path::new("/run/.dev");
    fs::create_dir(aside).context("making a folder for devices")?;
    mount_new("tmpfs", aside, MsFlags::MS_NOSUID, "mode=0755")?;
    let old = Path::new("/dev");
    for name in STANDARD_DEVICES {
        lend(&old.join(name), &aside.join(name))?;
    }
    for node in configured(old, devices, 0) {
        if let Ok(name) = node.strip_prefix(old) {
            lend(&node, &aside.join(name))?;
        }
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, aside.join(name)).with_context(|| format!("making /dev/{name}"))?;
    }
    let folder = |name: &str| {
        let folder = aside.join(name);
        fs::create_dir(&folder).map(|()| folder)
    };
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount_new("devpts", &folder("pts")?, quiet, options)?;
    let shared = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_new("tmpfs", &folder("shm")?, shared, "mode=1777")?;
    take_away(old)?;
    mount(Some(aside), old, NONE, MsFlags::MS_MOVE, NONE).context("replacing /dev")?;
    fs::remove_dir(aside).context("removing the folder for devices")
}

/// The nodes below `folder` that the configuration lists.
fn configured(folder: &Path, devices: &[Device], depth: usize) -> Vec<PathBuf> {
    const DEEPEST: usize = 3;
    let mut found = Vec::new();
    if devices.is_empty() || depth > DEEPEST {
        return found;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let path = entry.path();
        if metadata.is_dir() {
            found.extend(configured(&path, devices, depth + 1));
        } else if devices.iter().any(|device| is_node(&metadata, device)) {
            found.push(path);
        }
    }
    found
}

fn is_node(metadata: &fs::Metadata, device: &Device) -> bool {
    let kind = match device.kind {
        DeviceKind::Character => metadata.file_type().is_char_device(),
        DeviceKind::Block => metadata.file_type().is_block_device(),
    };
    let number = metadata.rdev();
    kind && major(number) == u64::from(device.major)
        && device
            .minor
            .is_none_or(|wanted| minor(number) == u64::from(wanted))
}

/// Makes one of the host's nodes appear elsewhere too. One that is there twice is lent once.
fn lend(node: &Path, place: &Path) -> Result<()> {
    let made = place
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| File::create(place));
    made.with_context(|| format!("making {}", place.display()))?;
    mount(Some(node), place, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("lending {}", node.display()))
}

fn close_proc(quiet: MsFlags) -> Result<()> {
    for path in PROC_READ_ONLY
        .iter()
        .filter(|path| Path::new(path).exists())
    {
        mount(Some(*path), *path, NONE, MsFlags::MS_BIND, NONE)
            .with_context(|| format!("lending {path}"))?;
        let change = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        remount(path, change | MsFlags::MS_RDONLY | quiet)?;
    }
    for path in PROC_HIDDEN.iter().filter(|path| Path::new(path).exists()) {
        mount(Some("/dev/null"), *path, NONE, MsFlags::MS_BIND, NONE)
            .with_context(|| format!("hiding {path}"))?;
    }
    Ok(())
}

fn remount(path: &str, flags: MsFlags) -> Result<()> {
    mount(NONE, path, NONE, flags, NONE).with_context(|| format!("remounting {path}"))
}

fn mount_new(kind: &str, path: &Path, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(kind), path, Some(kind), flags, Some(options))
        .with_context(|| format!("mounting {kind} on {}", path.display()))
}
