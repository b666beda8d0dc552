//! What tests fetch from the package registries, once, below the target folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::program::run_within;

/// For one download on a busy line.
const DEADLINE: Duration = Duration::from_secs(400);

/// The folder that `create` fills, named for what `pinned` says is in it. Whoever comes first creates it; the
/// others wait.
pub fn folder(kind: &str, pinned: &[u8], create: impl FnOnce(&Path)) -> PathBuf {
    let key = hex::encode(&Sha256::digest(pinned)[..8]);
    let cache = super::cache();
    let folder = cache.join(format!("{kind}-{key}"));
    let lock = File::create(cache.join(format!("{kind}.lock"))).expect("the cache is writable");
    lock.lock().expect("a file can be locked");
    if !folder.exists() {
        let unfinished = cache.join(format!("{kind}-{key}.unfinished"));
        let _ = fs::remove_dir_all(&unfinished);
        create(&unfinished);
        fs::rename(&unfinished, &folder).expect("the folder can be renamed");
    }
    folder
}

/// Runs a registry's client.
#[track_caller]
pub fn succeeds(command: Command) {
    run_within(DEADLINE, command, b"").succeeds();
}
