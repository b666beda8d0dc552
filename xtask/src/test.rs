//! `cargo xtask test`: every test there is, the privileged ones for real.
//!
//! Arguments go to the test runner: `cargo xtask test masks` runs the tests whose name contains "masks".

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::{build, build_ebpf, packages, toolchain};

pub fn run(arguments: &[String]) -> Result<()> {
    packages::require_root("test")?;
    packages::for_tests()?;
    build::run(&[])?;
    let mut runner = toolchain::cargo();
    if has_nextest() {
        runner.args(["nextest", "run", "--workspace"]);
    } else {
        runner.args(["test", "--workspace", "--no-fail-fast"]);
    }
    let status = runner
        .args(arguments)
        .current_dir(build_ebpf::workspace())
        .status()?;
    ensure!(status.success(), "not every test passed");
    Ok(())
}

fn has_nextest() -> bool {
    Command::new("cargo-nextest")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
