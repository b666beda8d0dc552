//! Where the demo plays, and that nothing of it stays: a temporary folder, control groups, pins, processes.
//!
//! A demo that was interrupted cannot clear away after itself: the next one does it for it.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::build_ebpf;

const PREFIX: &str = "sluice-demo-";

/// One demo's place. Its name holds the demo's pid: what has a dead one is a leftover, or was kept.
pub struct Stage {
    name: String,
    pub keep: bool,
    processes: RefCell<Vec<Child>>,
}

impl Stage {
    /// Clears away what interrupted demos left, and makes a new place.
    pub fn set(keep: bool) -> Result<Self> {
        for name in leftovers() {
            // What somebody keeps on purpose stays until `--end`.
            if !folder(&name).join("kept").exists() {
                clear(&name);
            }
        }
        let stage = Self {
            name: format!("{PREFIX}{}", std::process::id()),
            keep,
            processes: RefCell::default(),
        };
        fs::create_dir(stage.folder())?;
        // Agents must be able to walk through; what they must not read is protected by itself.
        fs::set_permissions(stage.folder(), fs::Permissions::from_mode(0o755))?;
        Ok(stage)
    }

    /// The control group that has all of its own below it: the guard is attached there, not to the host's root.
    pub fn group(&self) -> String {
        group(&self.name)
    }

    /// Where processes are an agent's.
    pub fn agent_cgroup(&self, agent: &str) -> Result<PathBuf> {
        let group = cgroup2_mount()?.join(self.group());
        Ok(group.join("agents.slice").join(agent))
    }

    pub fn folder(&self) -> PathBuf {
        folder(&self.name)
    }

    /// Sluice's installation.
    pub fn root(&self) -> PathBuf {
        self.folder().join("root")
    }

    pub fn pins(&self) -> PathBuf {
        pins(&self.name)
    }

    /// Keeps a process until the end, and its pid on disk for a later `--end`.
    pub fn adopt(&self, process: Child) -> Result<()> {
        let pids = self.folder().join("pids");
        let mut known = fs::read_to_string(&pids).unwrap_or_default();
        known.push_str(&format!("{}\n", process.id()));
        self.processes.borrow_mut().push(process);
        Ok(fs::write(pids, known)?)
    }

    /// A note left in the folder by another step.
    pub fn read(&self, note: &str) -> Option<String> {
        fs::read_to_string(self.folder().join(note)).ok()
    }

    pub fn leave_running(&self) {
        let _ = fs::write(self.folder().join("kept"), "");
    }

    pub fn clear_away(&self) -> Result<()> {
        for process in self.processes.borrow_mut().iter_mut().rev() {
            end(process.id());
            // Reaped here, or its /proc entry would stay as a zombie's.
            let _ = process.wait();
        }
        clear(&self.name);
        ensure!(
            !self.folder().exists() && !self.pins().exists(),
            "something of the demo is left in {} or {}",
            self.folder().display(),
            self.pins().display()
        );
        Ok(())
    }
}

/// `cargo xtask demo --end`: what `--keep` left running is ended and removed.
pub fn end_all() -> Result<()> {
    crate::packages::require_root("demo --end")?;
    let names = leftovers();
    ensure!(!names.is_empty(), "no demo is running");
    for name in names {
        println!("ending {name}");
        clear(&name);
    }
    Ok(())
}

/// Names of demos whose own process is gone.
fn leftovers() -> Vec<String> {
    let entries = fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.strip_prefix(PREFIX).is_some_and(|pid| {
                pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()
            })
        })
        .collect()
}

fn clear(name: &str) {
    let pids = fs::read_to_string(folder(name).join("pids")).unwrap_or_default();
    for pid in pids.lines().rev().filter_map(|line| line.parse().ok()) {
        if belongs_to(pid, name) {
            end(pid);
        }
    }
    for profile in ["debug", "release"] {
        let mut unload = Command::new(build_ebpf::target_folder().join(profile).join("sluice"));
        unload.arg("--root").arg(folder(name).join("root"));
        if unload.args(["guard", "unload"]).output().is_ok() {
            break;
        }
    }
    if let Ok(mount) = cgroup2_mount() {
        remove_group(&mount.join(group(name)));
    }
    let _ = fs::remove_dir_all(pins(name));
    let _ = fs::remove_dir_all(folder(name));
}

/// Whether this pid is still the demo's: numbers are used again.
fn belongs_to(pid: u32, name: &str) -> bool {
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command_line).contains(name)
}

/// SIGINT: PostgreSQL's fast shutdown and the gateway's clean end; SIGKILL for what does not listen.
/// The shell's own kill: the program of that name is not on every host.
fn end(pid: u32) {
    for (signal, patience) in [("INT", 500), ("KILL", 100)] {
        let _ = Command::new("sh")
            .args(["-c", &format!("kill -s {signal} {pid}")])
            .output();
        for _ in 0..patience {
            if !is_running(pid) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A zombie has ended: only its parent has not looked yet.
fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

fn remove_group(group: &Path) {
    let _ = fs::write(group.join("cgroup.kill"), "1");
    for _ in 0..100 {
        if !group.exists() || remove_empty_group(group).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn remove_empty_group(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_empty_group(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Pure cgroup v2, or the sub-path where hosts that still carry v1 mount it.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"));
    let mount = mount.and_then(|fields| fields.get(1).copied());
    mount.map(PathBuf::from).context("cgroup v2 is not mounted")
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

fn group(name: &str) -> String {
    format!("{name}.demo")
}

fn pins(name: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(name)
}
