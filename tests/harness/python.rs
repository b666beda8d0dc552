//! Python clients: Debian's Python, with the database drivers in a virtual environment below the target folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::gateway::Gateway;
use super::program::run;

/// Pinned, so that a driver's release never turns the tests red by itself.
const DRIVERS: [&str; 3] = ["psycopg==3.3.9", "psycopg-binary==3.3.9", "asyncpg==0.32.0"];

/// Debian's own: one from the user's home cannot be run by an agent.
const PYTHON: &str = "/usr/bin/python3";

/// A script in `tests/clients`, ready to be run by anybody.
pub struct Script {
    words: Vec<PathBuf>,
}

impl Script {
    /// A script that needs nothing but Python itself.
    pub fn plain(gateway: &Gateway, name: &str, text: &str) -> Script {
        let script = gateway.public_folder("clients").join(name);
        fs::write(&script, text).expect("the folder is ours");
        Script {
            words: vec![PYTHON.into(), script],
        }
    }

    /// A script that imports a database driver.
    pub fn with_drivers(gateway: &Gateway, name: &str, text: &str) -> Script {
        let mut script = Self::plain(gateway, name, text);
        // The agent's user may be unable to walk to the target folder: it gets a copy.
        let copy = gateway.public_folder("clients").join("venv");
        if !copy.exists() {
            let mut cp = Command::new("cp");
            cp.args(["-a", "--reflink=auto"])
                .arg(environment())
                .arg(&copy);
            run(cp).succeeds();
        }
        script.words[0] = copy.join("bin/python3");
        script
    }

    /// The command line, to be run directly or as an agent.
    pub fn words<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        self.words
            .iter()
            .map(|word| word.display().to_string())
            .chain(arguments.into_iter().map(str::to_owned))
            .collect()
    }
}

/// The virtual environment, made by the first test that needs it.
fn environment() -> PathBuf {
    let key = hex::encode(&Sha256::digest(DRIVERS.join(" ").as_bytes())[..8]);
    let cache = super::cache();
    let environment = cache.join(format!("python-{key}"));
    let lock = File::create(cache.join("python.lock")).expect("the target folder is writable");
    lock.lock().expect("a file can be locked");
    if !environment.exists() {
        let unfinished = cache.join(format!("python-{key}.unfinished"));
        let _ = fs::remove_dir_all(&unfinished);
        create(&unfinished);
        fs::rename(&unfinished, &environment).expect("the environment can be renamed");
    }
    environment
}

fn create(folder: &Path) {
    let mut venv = Command::new(PYTHON);
    venv.args(["-m", "venv"]).arg(folder);
    run(venv).succeeds();
    let mut pip = Command::new(folder.join("bin/python3"));
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--no-input"])
        .args(DRIVERS);
    run(pip).succeeds();
}
