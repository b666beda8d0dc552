//! `cargo xtask test`: every test there is, the privileged ones for real.
//!
//! Arguments go to the test runner: `cargo xtask test masks` runs the tests whose name contains "masks".
//! `cargo xtask test bypass` runs the attacks on the interception and prints what became of each;
//! `cargo xtask test clients` runs every client directly and through the gateway, and prints what differs;
//! `cargo xtask test denials` denies statements in every client and order of messages, beside the server's own
//! permission error, and prints what differs;
//! `cargo xtask test pg-suites` runs PostgreSQL's own suites and prints what differs through the gateway;
//! `cargo xtask test big` passes gigabytes and prints what that takes of the gateway's memory.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::{build, build_ebpf, packages, toolchain};

mod big;
mod bypass;
mod clients;
mod deny;
mod pg_suites;

pub fn run(arguments: &[String]) -> Result<()> {
    packages::require_root("test")?;
    packages::for_tests()?;
    build::run(&[])?;
    match arguments {
        [only] if only == "big" => return big::run(),
        [only] if only == "bypass" => return bypass::run(),
        [only] if only == "clients" => return clients::run(),
        [only] if only == "denials" => return deny::run(),
        [only] if only == "pg-suites" => return pg_suites::run(),
        _ => {}
    }
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
