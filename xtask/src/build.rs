//! `cargo xtask build`: the kernel programs, then the `sluice` binary with them inside.

use anyhow::{Result, ensure};

use crate::{build_ebpf, toolchain};

/// What compiling the gateway needs beside Rust: the SQL grammar is C, and its bindings are made with libclang.
const PACKAGES: &[&str] = &["gcc", "libc6-dev", "make", "libclang-dev"];

pub fn run(arguments: &[String]) -> Result<()> {
    toolchain::apt_install(PACKAGES)?;
    build_ebpf::build()?;
    toolchain::progress("building sluice");
    let mut command = toolchain::cargo();
    command
        .args(["build", "--package", "gateway", "--bin", "sluice"])
        .args(arguments);
    let status = command.current_dir(build_ebpf::workspace()).status()?;
    ensure!(status.success(), "sluice does not build");
    Ok(())
}
