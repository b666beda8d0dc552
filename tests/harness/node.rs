//! Node.js clients: Debian's Node.js, with what npm fetches for it below the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fetched;
use super::program::run;

/// Debian's own: one from the user's home cannot be run by an agent.
const NODE: &str = "/usr/bin/node";

/// What is below `node_modules`, pinned with the packages' hashes, so that a release never turns the tests red by
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modules {
    /// The database drivers.
    Drivers,
    /// A PostgreSQL 18 that was built with TLS.
    Postgres18,
}

/// A script in `tests/clients` that requires a database driver, ready to be run by anybody.
pub struct NodeScript {
    script: PathBuf,
}

impl NodeScript {
    /// The script and the drivers in a folder that everybody can reach.
    pub fn new(folder: &Path, name: &str, text: &str) -> NodeScript {
        Modules::Drivers.copy_into(folder);
        let script = folder.join(name);
        fs::write(&script, text).expect("the folder is ours");
        NodeScript { script }
    }

    /// The command line, to be run directly or as an agent.
    pub fn words<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        [NODE.to_owned(), self.script.display().to_string()]
            .into_iter()
            .chain(arguments.into_iter().map(str::to_owned))
            .collect()
    }
}

impl Modules {
    /// `node_modules` below a folder that everybody can reach: the agent's user may be unable to walk to the target
    /// folder.
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

    /// Made by the first test that needs it.
    fn folder(self) -> PathBuf {
        let (manifest, lock) = self.pinned();
        fetched::folder("npm", lock.as_bytes(), |folder| {
            fs::create_dir_all(folder).expect("the cache is writable");
            fs::write(folder.join("package.json"), manifest).expect("the folder is ours");
            fs::write(folder.join("package-lock.json"), lock).expect("the folder is ours");
            let mut npm = Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund", "--no-update-notifier"]);
            if self == Self::Drivers {
                // PostgreSQL's package makes its libraries' links in a script; the drivers need none.
                npm.arg("--ignore-scripts");
            }
            npm.current_dir(folder);
            fetched::succeeds(npm);
        })
    }

    /// The manifest and its lock file.
    fn pinned(self) -> (&'static str, &'static str) {
        match self {
            Self::Drivers => (
                include_str!("../clients/npm/drivers/package.json"),
                include_str!("../clients/npm/drivers/package-lock.json"),
            ),
            Self::Postgres18 => (
                include_str!("../clients/npm/postgres18/package.json"),
                include_str!("../clients/npm/postgres18/package-lock.json"),
            ),
        }
    }
}
