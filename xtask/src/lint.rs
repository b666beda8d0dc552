//! `cargo xtask lint`: formatting and clippy, warnings denied, for the host's code and the kernel's.

use anyhow::{Result, ensure};

use crate::{build, build_ebpf, toolchain};

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
