//! Kernels out of Debian's and Ubuntu's archives, by apt in folders of its own: nothing is installed, and the
//! host's package lists stay as they are. Everything is signed by the distribution's key.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::Release;
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

const IMAGES: &[&str] = &["linux-image-", "linux-binary-"];

/// The kernel image of a release; downloaded when it is not in the cache. Delete its folder to get the
/// archive's newest.
pub fn kernel(release: &Release) -> Result<PathBuf> {
    let folder = toolchain::private_folder()?
        .join("kernels")
        .join(release.name);
    let work = folder.join("apt");
    // What an interrupted download left is not to be taken for the image.
    let _ = fs::remove_dir_all(&work);
    if let Some(image) = image_in(&folder) {
        return Ok(image);
    }
    toolchain::progress(&format!(
        "downloading a {} kernel from {}",
        release.name, release.suite
    ));
    let fetched = Apt::new(&work, &release.archive, release.suite)?.kernel(release.package)?;
    // Only the image stays; it boots without modules.
    let image = image_in(&fetched)
        .with_context(|| format!("the package has no vmlinuz: {}", fetched.display()))?;
    let name = image.file_name().context("an image has a name")?;
    let place = folder.join(name);
    fs::rename(&image, &place)?;
    fs::remove_dir_all(&work)?;
    Ok(place)
}

/// `/boot/vmlinuz-VERSION`, or in recent Debian `/usr/lib/modules/VERSION/vmlinuz`.
fn image_in(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.find_map(|path| {
        if path.is_dir() {
            return image_in(&path);
        }
        let name = path.file_name()?.to_string_lossy();
        name.starts_with("vmlinuz").then(|| path.clone())
    })
}

/// apt with lists, state and cache in one folder, and one suite of one archive as its only source.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(place: &Path, archive: &Archive, suite: &str) -> Result<Self> {
        let keyring = keyring(place, archive)?;
        let folder = place.join(suite);
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("archives/partial"))?;
        fs::write(folder.join("status"), "")?;
        let source = format!(
            "deb [arch=amd64 signed-by={}] {} {suite} main\n",
            keyring.display(),
            archive.url
        );
        fs::write(folder.join("sources.list"), source)?;
        let apt = Self { folder };
        toolchain::run_quietly(apt.command("apt-get").arg("update"))
            .with_context(|| format!("reading the package list of {suite}"))?;
        Ok(apt)
    }

    /// Downloads and unpacks the package with the image, which a metapackage such as `linux-image-amd64` leads
    /// to: in one step, or in recent Debian in two.
    fn kernel(&self, metapackage: &str) -> Result<PathBuf> {
        let mut package = metapackage.to_string();
        while let Some(next) = self.image_dependency(&package)? {
            package = next;
        }
        self.unpack(&package)
    }

    fn image_dependency(&self, package: &str) -> Result<Option<String>> {
        let depends = toolchain::output(self.command("apt-cache").args(["depends", package]))
            .with_context(|| format!("the archive has no {package}"))?;
        let mut names = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        let image = names.find(|name| IMAGES.iter().any(|start| name.starts_with(start)));
        Ok(image.map(str::to_string))
    }

    fn unpack(&self, package: &str) -> Result<PathBuf> {
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
