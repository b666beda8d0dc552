//! Names and folders that belong to one test process, and what killed ones left behind.
//!
//! Every name begins with the process's id: a test that was killed could not clear away after itself, so the
//! next process does it for all whose process is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::cgroup;

const PREFIX: &str = "sluice-test-";
const PINS: &str = "/sys/fs/bpf";

/// Unique among all tests of all test processes on this machine.
pub fn name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    sweep_once();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", id())
}

/// A new temporary folder, removed on drop.
pub fn folder(kind: &str) -> tempfile::TempDir {
    sweep_once();
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-{kind}-", id()))
        .tempdir()
        .expect("the temporary folder is writable")
}

fn sweep_once() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        abandoned(&cgroup::mount()).for_each(|group| cgroup::remove(&group));
        for folder in abandoned(Path::new(PINS)).chain(abandoned(&std::env::temp_dir())) {
            // A test of a full disk mounts its own.
            let storage = folder.join("var/lib/sluice");
            if storage.exists() {
                let _ = Command::new("umount").arg("-q").arg(storage).status();
            }
            let _ = fs::remove_dir_all(folder);
        }
    });
}

/// What lies in `folder` and carries the id of a process that is gone.
fn abandoned(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| is_abandoned(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
}

fn is_abandoned(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split(['-', '.']).next())
        .and_then(|pid| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}
