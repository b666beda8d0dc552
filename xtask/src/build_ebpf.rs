//! `cargo xtask build-ebpf`: the kernel programs, from source, into `target/bpf/sluice-ebpf.o`.
//!
//! The object is never committed; `gateway/build.rs` embeds it in the `sluice` binary.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};

use crate::toolchain::{self, Toolchain};

/// What the object is made of, relative to the workspace.
const SOURCES: &[&str] = &["gateway-ebpf", "Cargo.lock", "xtask/src/build_ebpf.rs"];

/// The profile is given here and not in Cargo.toml: its flags make sense for no other target.
const PROFILE: &[&str] = &[
    "profile.bpf.inherits=\"release\"",
    "profile.bpf.panic=\"abort\"",
    "profile.bpf.opt-level=3",
    "profile.bpf.codegen-units=1",
    "profile.bpf.lto=true",
    // BTF is made from debug information, and socket storage maps cannot be created without BTF.
    "profile.bpf.debug=2",
];

pub fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => println!("{}", build()?.display()),
        [flag] if flag == "--clippy" => clippy()?,
        _ => bail!("build-ebpf takes nothing, or --clippy to check instead of building"),
    }
    Ok(())
}

/// Builds the object when a source is newer than it; returns where it is.
pub fn build() -> Result<PathBuf> {
    let object = target_folder().join("bpf/sluice-ebpf.o");
    if is_fresh(&object)? {
        return Ok(object);
    }
    let toolchain = toolchain::find_or_install()?;
    toolchain::progress(&format!(
        "building the kernel programs with {}",
        toolchain.name
    ));
    let status = command(&toolchain, "build").status()?;
    ensure!(status.success(), "the kernel programs do not build");
    let built = target_folder().join("bpf/build/bpfel-unknown-none/bpf/sluice-ebpf");
    // Copied beside and renamed, so that nobody reads half an object.
    let partial = object.with_extension("partial");
    fs::copy(&built, &partial).with_context(|| format!("copying {}", built.display()))?;
    fs::rename(&partial, &object)?;
    Ok(object)
}

/// Clippy over the kernel programs, warnings denied.
pub fn clippy() -> Result<()> {
    let toolchain = toolchain::find_or_install()?;
    let Some(driver) = &toolchain.clippy_driver else {
        bail!(
            "{} has no clippy: rustup component add clippy --toolchain nightly",
            toolchain.name
        );
    };
    let mut command = command(&toolchain, "check");
    let status = command
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__")
        .status()?;
    ensure!(
        status.success(),
        "clippy has something to say about the kernel programs"
    );
    Ok(())
}

/// Cargo for the kernel target. The caller's own flags and compiler stay out of it.
fn command(toolchain: &Toolchain, task: &str) -> Command {
    let mut command = toolchain::cargo();
    for name in [
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    command.args([
        task,
        "--quiet",
        "--package",
        "gateway-ebpf",
        "--bin",
        "sluice-ebpf",
    ]);
    command.args([
        "--target",
        "bpfel-unknown-none",
        "--profile",
        "bpf",
        "--target-dir",
    ]);
    command.arg(target_folder().join("bpf/build"));
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    command.args(toolchain.cargo_arguments);
    command.envs(
        toolchain
            .environment
            .iter()
            .map(|(name, value)| (name, value)),
    );
    command
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain))
        .current_dir(workspace());
    command
}

fn flags(toolchain: &Toolchain) -> OsString {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker);
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    let flags = [
        architecture.into(),
        linker,
        "-Clink-arg=--btf".into(),
        "-Cpanic=abort".into(),
    ];
    flags.join(&OsString::from("\u{1f}"))
}

/// Whether no source is newer than the object.
fn is_fresh(object: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(object).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    for source in SOURCES {
        if newest(&workspace().join(source))? > built {
            return Ok(false);
        }
    }
    Ok(true)
}

fn newest(path: &Path) -> Result<SystemTime> {
    let metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    let mut newest = metadata.modified()?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(self::newest(&entry?.path())?);
        }
    }
    Ok(newest)
}

/// The checkout the task was started in. Asked at run time: two checkouts may share one target folder,
/// and with it this program.
pub fn workspace() -> &'static Path {
    static WORKSPACE: LazyLock<PathBuf> = LazyLock::new(|| {
        let xtask = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
    });
    &WORKSPACE
}

/// Cargo's target folder, as `CARGO_TARGET_DIR` or the default has it.
pub fn target_folder() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}
