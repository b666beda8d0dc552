//! Packages and sources out of Debian's and Ubuntu's archives, by apt in folders of its own: nothing is installed,
//! and the host's package lists stay as they are. Everything is signed by the distribution's key.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::toolchain;

/// Where a distribution keeps its packages, and who signs them.
#[derive(Debug)]
pub struct Archive {
    url: &'static str,
    keyring: &'static str,
    /// Brings the keyring on a host of the other distribution.
    keyring_package: &'static str,
}

pub const DEBIAN: Archive = Archive {
    url: "http://deb.debian.org/debian",
    keyring: "/usr/share/keyrings/debian-archive-keyring.gpg",
    keyring_package: "debian-archive-keyring",
};

pub const UBUNTU: Archive = Archive {
    url: "http://archive.ubuntu.com/ubuntu",
    keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    keyring_package: "ubuntu-keyring",
};

/// Where Debian has Ubuntu's key.
const KEYRINGS: &str = "bookworm-backports";

/// apt with lists, state and cache in one folder, and one suite of one archive as its only source.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    pub fn new(place: &Path, archive: &Archive, suite: &str) -> Result<Self> {
        Self::reading(&["deb"], place, archive, suite)
    }

    /// With the suite's source packages too, whose list is as long again.
    pub fn with_sources(place: &Path, archive: &Archive, suite: &str) -> Result<Self> {
        Self::reading(&["deb", "deb-src"], place, archive, suite)
    }

    fn reading(kinds: &[&str], place: &Path, archive: &Archive, suite: &str) -> Result<Self> {
        let keyring = keyring(place, archive)?;
        let folder = place.join(suite);
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("archives/partial"))?;
        fs::write(folder.join("status"), "")?;
        let (keyring, url) = (keyring.display(), archive.url);
        let sources = kinds
            .iter()
            .map(|kind| format!("{kind} [arch=amd64 signed-by={keyring}] {url} {suite} main\n"));
        fs::write(folder.join("sources.list"), sources.collect::<String>())?;
        let apt = Self { folder };
        toolchain::run_quietly(apt.command("apt-get").arg("update"))
            .with_context(|| format!("reading the package list of {suite}"))?;
        Ok(apt)
    }

    /// Downloads a source package and answers its upstream archive, `NAME_VERSION.orig.tar.…`.
    pub fn original(&self, package: &str) -> Result<PathBuf> {
        let archives = self.folder.join("archives");
        let mut download = self.command("apt-get");
        download
            .args(["source", "--download-only", package])
            .current_dir(&archives);
        toolchain::run_quietly(&mut download)?;
        let mut entries = fs::read_dir(&archives)?.flatten();
        let original =
            entries.find(|entry| entry.file_name().to_string_lossy().contains(".orig.tar."));
        let original = original.with_context(|| format!("{package} has no upstream archive"))?;
        Ok(original.path())
    }

    /// What a package depends on, by name.
    pub fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let depends = toolchain::output(self.command("apt-cache").args(["depends", package]))
            .with_context(|| format!("the archive has no {package}"))?;
        let names = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_string).collect())
    }

    /// Downloads a package and unpacks it beside those unpacked before.
    pub fn unpack(&self, package: &str) -> Result<PathBuf> {
        let mut download = self.command("apt-get");
        download
            .args(["download", package])
            .current_dir(self.folder.join("archives"));
        toolchain::run_quietly(&mut download)?;
        let unpacked = self.folder.join("unpacked");
        for entry in fs::read_dir(self.folder.join("archives"))? {
            let archive = entry?.path();
            if archive
                .extension()
                .is_some_and(|extension| extension == "deb")
            {
                toolchain::run_quietly(
                    Command::new("dpkg-deb")
                        .arg("-x")
                        .arg(&archive)
                        .arg(&unpacked),
                )?;
                fs::remove_file(&archive)?;
            }
        }
        Ok(unpacked)
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        for setting in [
            format!("Dir::State={folder}"),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}"),
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            "APT::Architecture=amd64".into(),
            "APT::Architectures=amd64".into(),
            "APT::Sandbox::User=root".into(),
            // Without these, descriptions and icons are several times the list itself.
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }
}

/// The archive's key: the host's own, or the one that Debian packages.
fn keyring(place: &Path, archive: &Archive) -> Result<PathBuf> {
    let own = PathBuf::from(archive.keyring);
    if own.exists() {
        return Ok(own);
    }
    ensure!(
        archive.url != DEBIAN.url,
        "{} is missing: apt-get install {}",
        archive.keyring,
        archive.keyring_package
    );
    let unpacked = Apt::new(place, &DEBIAN, KEYRINGS)?.unpack(archive.keyring_package)?;
    let keyring = unpacked.join(archive.keyring.trim_start_matches('/'));
    ensure!(
        keyring.exists(),
        "Debian's {} has no {}",
        archive.keyring_package,
        archive.keyring
    );
    Ok(keyring)
}
