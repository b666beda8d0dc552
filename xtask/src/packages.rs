//! Which of Debian's packages a task needs, beside what building needs (see `build`).

use anyhow::{Result, ensure};

use crate::toolchain;

/// A server to stand in front of, with psql and pgbench; and openssl, which signs the demo's token.
const DEMO: &[&str] = &["postgresql", "openssl"];

/// The same server; python3-venv brings Debian's Python, which the drivers are installed for; iproute2 makes
/// the network namespaces and links that attacks are tried on.
const TESTS: &[&str] = &["postgresql", "python3-venv", "openssl", "iproute2"];

/// node-postgres, one of the clients that are tried, and what installs it.
const NODE: &[&str] = &["nodejs", "npm"];

/// libFuzzer is C++.
const FUZZING: &[&str] = &["g++"];

/// PostgreSQL's own suites: an extension and a client in C, out of a source archive.
const PG_SUITES: &[&str] = &["gcc", "libc6-dev", "bzip2"];

/// The same server; `ss`, which tells what the kernel counted on sockets.
const BENCH: &[&str] = &["postgresql", "openssl", "iproute2"];

/// Other proxies, to compare with.
const PEERS: &[&str] = &["pgbouncer", "haproxy"];

/// What shows where a process spends its time.
const PROFILING: &[&str] = &["linux-perf"];

pub fn for_profiling() -> Result<()> {
    toolchain::apt_install(PROFILING)
}

pub fn for_bench() -> Result<()> {
    toolchain::apt_install(BENCH)
}

pub fn for_peers() -> Result<()> {
    toolchain::apt_install(PEERS)
}

pub fn for_demo() -> Result<()> {
    toolchain::apt_install(DEMO)
}

pub fn for_tests() -> Result<()> {
    toolchain::apt_install(TESTS)?;
    // Node.js's own packages bring npm along, and Debian's npm would put another Node.js in their place.
    match toolchain::on_path("node").is_some() && toolchain::on_path("npm").is_some() {
        true => Ok(()),
        false => toolchain::apt_install(NODE),
    }
}

pub fn for_pg_suites() -> Result<()> {
    toolchain::apt_install(PG_SUITES)
}

pub fn for_fuzzing() -> Result<()> {
    toolchain::apt_install(FUZZING)
}

/// Kernel programs and control groups are root's; one line says so before anything else happens.
pub fn require_root(task: &str) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata("/proc/self")?.uid();
    // With PATH: Debian's sudo has one of its own, without rustup's cargo.
    ensure!(
        owner == 0,
        "run as root: sudo -E env \"PATH=$PATH\" cargo xtask {task}"
    );
    Ok(())
}
