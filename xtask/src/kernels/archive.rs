//! A kernel out of a distribution's archive.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Release;
use crate::apt::Apt;
use crate::toolchain;

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
    let apt = Apt::new(&work, &release.archive, release.suite)?;
    let fetched = unpack_image(&apt, release.package)?;
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

/// Downloads and unpacks the package with the image, which a metapackage such as `linux-image-amd64` leads
/// to: in one step, or in recent Debian in two.
fn unpack_image(apt: &Apt, metapackage: &str) -> Result<PathBuf> {
    let mut package = metapackage.to_string();
    while let Some(next) = image_dependency(apt, &package)? {
        package = next;
    }
    apt.unpack(&package)
}

fn image_dependency(apt: &Apt, package: &str) -> Result<Option<String>> {
    let mut names = apt.dependencies(package)?.into_iter();
    Ok(names.find(|name| IMAGES.iter().any(|start| name.starts_with(start))))
}
