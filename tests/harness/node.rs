//! Node.js clients: Debian's Node.js, with node-postgres below the target folder, as the lock file has it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::gateway::Gateway;
use super::program::{run, run_within};

/// Pinned, with every package below it, so that a release never turns the tests red by itself.
const PACKAGES: &str = include_str!("../clients/node/package.json");
const LOCK: &str = include_str!("../clients/node/package-lock.json");

/// Debian's own: one from the user's home cannot be run by an agent.
const NODE: &str = "/usr/bin/node";

/// npm asks the registry; that may take its time.
const INSTALLING: Duration = Duration::from_secs(180);

/// A script in `tests/clients` that requires node-postgres, ready to be run by anybody.
pub struct NodeScript {
    script: PathBuf,
}

impl NodeScript {
    pub fn new(gateway: &Gateway, name: &str, text: &str) -> NodeScript {
        let folder = gateway.public_folder("node");
        // The agent's user may be unable to walk to the target folder: it gets a copy.
        let modules = folder.join("node_modules");
        if !modules.exists() {
            let mut cp = Command::new("cp");
            cp.args(["-a", "--reflink=auto"])
                .arg(environment().join("node_modules"))
                .arg(&modules);
            run(cp).succeeds();
        }
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

/// The installed packages, made by the first test that needs them.
fn environment() -> PathBuf {
    let key = hex::encode(&Sha256::digest([PACKAGES, LOCK].concat())[..8]);
    let cache = super::cache();
    let environment = cache.join(format!("node-{key}"));
    let lock = File::create(cache.join("node.lock")).expect("the target folder is writable");
    lock.lock().expect("a file can be locked");
    if !environment.exists() {
        let unfinished = cache.join(format!("node-{key}.unfinished"));
        let _ = fs::remove_dir_all(&unfinished);
        create(&unfinished);
        fs::rename(&unfinished, &environment).expect("the environment can be renamed");
    }
    environment
}

fn create(folder: &Path) {
    fs::create_dir_all(folder).expect("the target folder is writable");
    for (name, text) in [("package.json", PACKAGES), ("package-lock.json", LOCK)] {
        fs::write(folder.join(name), text).expect("the folder is ours");
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(folder);
    run_within(INSTALLING, npm, b"").succeeds();
}
