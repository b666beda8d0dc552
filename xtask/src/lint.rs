//! `cargo xtask lint`: formatting and clippy, warnings denied, for the host's code and the kernel's; and whether
//! the fuzz targets, a workspace of their own, still compile.

use anyhow::{Result, ensure};

use crate::{build, build_ebpf, packages, toolchain};

pub fn run(_arguments: &[String]) -> Result<()> {
    // The gateway does not compile, so clippy cannot read it, without the kernel programs it embeds.
    build::run(&[])?;
    cargo(
        &["fmt", "--all", "--check"],
        "the code is not formatted: run `cargo fmt --all`",
    )?;
    toolchain::progress("clippy over the host's code");
    cargo(
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        "clippy has something to say",
    )?;
    toolchain::progress("checking the fuzz targets");
    packages::for_fuzzing()?;
    cargo(
        &[
            "check",
            "--quiet",
            "--manifest-path",
            "tests/fuzz/Cargo.toml",
            "--target-dir",
            &build_ebpf::target_folder().join("fuzz").to_string_lossy(),
        ],
        "the fuzz targets do not compile",
    )?;
    toolchain::progress("clippy over the kernel programs");
    build_ebpf::clippy()
}

fn cargo(arguments: &[&str], complaint: &str) -> Result<()> {
    let status = toolchain::cargo()
        .args(arguments)
        .current_dir(build_ebpf::workspace())
        .status()?;
    ensure!(status.success(), "{complaint}");
    Ok(())
}
