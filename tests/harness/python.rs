//! Python clients: Debian's Python, with what they import in a virtual environment below the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fetched;
use super::gateway::Gateway;
use super::program::run;

/// Debian's own: one from the user's home cannot be run by an agent.
const PYTHON: &str = "/usr/bin/python3";

/// What a virtual environment has in it, pinned with the packages' hashes, so that a release never turns the tests
/// red by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// The database drivers.
    Drivers,
    /// Drivers, SQLAlchemy, pytest, and PostgreSQL 18's programs; and beside them pg8000's sources.
    Suites,
}

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
        let folder = gateway.public_folder("clients");
        script.words[0] = Environment::Drivers.copy_into(&folder);
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

impl Environment {
    /// The environment below a folder that everybody can reach: the agent's user may be unable to walk to the
    /// target folder. Answers its Python.
    pub fn copy_into(self, folder: &Path) -> PathBuf {
        let copy = folder.join("venv");
        if !copy.exists() {
            let mut cp = Command::new("cp");
            cp.args(["-a", "--reflink=auto"])
                .arg(self.folder())
                .arg(&copy);
            run(cp).succeeds();
        }
        copy.join("bin/python3")
    }

    /// Made by the first test that needs it.
    fn folder(self) -> PathBuf {
        let requirements = self.requirements();
        fetched::folder("python", requirements.as_bytes(), |folder| {
            self.create(folder, requirements);
        })
    }

    fn requirements(self) -> &'static str {
        match self {
            Self::Drivers => include_str!("../clients/requirements/drivers.txt"),
            Self::Suites => include_str!("../clients/requirements/suites.txt"),
        }
    }

    fn create(self, folder: &Path, requirements: &str) {
        let mut venv = Command::new(PYTHON);
        venv.args(["-m", "venv"]).arg(folder);
        run(venv).succeeds();
        let list = folder.join("requirements.txt");
        fs::write(&list, requirements).expect("the folder is ours");
        let mut install = pip(folder, "install");
        install.arg("--only-binary=:all:").arg("-r").arg(&list);
        fetched::succeeds(install);
        if self == Self::Suites {
            // Its tests are in the sources only.
            fs::write(&list, block_of("pg8000", requirements)).expect("the folder is ours");
            let mut download = pip(folder, "download");
            download.args(["--no-deps", "--no-binary=:all:", "--no-build-isolation"]);
            download.arg("-r").arg(&list);
            download.arg("-d").arg(folder.join("sources"));
            // The build's own programs are found by name.
            let path = format!("{}:/usr/bin:/bin", folder.join("bin").display());
            download.env("PATH", path);
            fetched::succeeds(download);
        }
    }
}

fn pip(folder: &Path, task: &str) -> Command {
    let mut pip = Command::new(folder.join("bin/python3"));
    pip.args(["-m", "pip", task, "--quiet", "--require-hashes"])
        .args(["--disable-pip-version-check", "--no-input"]);
    pip
}

/// The lines of one package: its version, and a hash on each line after that.
fn block_of(package: &str, requirements: &str) -> String {
    let start = format!("{package}==");
    let mut lines = requirements
        .lines()
        .skip_while(|line| !line.starts_with(&start));
    let mut block: Vec<&str> = lines.next().into_iter().collect();
    block.extend(lines.take_while(|line| line.starts_with(' ')));
    block.join("\n")
}
