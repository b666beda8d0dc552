//! What npm fetches: Node's drivers, and a PostgreSQL 18 that was built with TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fetched;
use super::program::run;

/// One list of packages in `tests/clients`, whose lock file has their hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modules {
    Drivers,
    Postgres18,
}

impl Modules {
    /// Puts `node_modules` into a folder that everybody can reach.
    pub fn copy_into(self, folder: &Path) -> PathBuf {
        let copy = folder.join("node_modules");
        if !copy.exists() {
            let mut cp = Command::new("cp");
            cp.args(["-a", "--reflink=auto"])
                .arg(self.folder().join("node_modules"))
                .arg(&copy);
            run(cp).succeeds();
        }
        copy
    }

    fn folder(self) -> PathBuf {
        let (manifest, lock) = match self {
            Self::Drivers => (
                include_str!("../clients/npm/drivers/package.json"),
                include_str!("../clients/npm/drivers/package-lock.json"),
            ),
            Self::Postgres18 => (
                include_str!("../clients/npm/postgres18/package.json"),
                include_str!("../clients/npm/postgres18/package-lock.json"),
            ),
        };
        fetched::folder("npm", lock.as_bytes(), |folder| {
            fs::create_dir_all(folder).expect("the cache is writable");
            fs::write(folder.join("package.json"), manifest).expect("the folder is ours");
            fs::write(folder.join("package-lock.json"), lock).expect("the folder is ours");
            let mut npm = Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund", "--no-update-notifier"]);
            npm.current_dir(folder);
            fetched::succeeds(npm);
        })
    }
}
