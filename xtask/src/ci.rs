//! `cargo xtask ci`: what the gate runs; with `--fuzz`, each fuzz target for a minute instead.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build_ebpf, lint, packages, test, toolchain};

/// Long enough to walk through every message kind many times over from the seeds.
const SECONDS: u32 = 60;

pub fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => {
            lint::run(&[])?;
            test::run(&[])
        }
        [flag] if flag == "--fuzz" => fuzz(),
        _ => bail!("ci takes nothing, or --fuzz"),
    }
}

fn fuzz() -> Result<()> {
    packages::for_fuzzing()?;
    install_cargo_fuzz()?;
    for target in targets()? {
        toolchain::progress(&format!("fuzzing {target} for {SECONDS} s"));
        // New finds go below the target folder; the seeds are the repository's and stay as they are.
        let corpus = build_ebpf::target_folder()
            .join("fuzz/corpus")
            .join(&target);
        fs::create_dir_all(&corpus)?;
        let status = cargo_fuzz("run")
            .arg(&target)
            .args([&corpus, &folder().join("seeds").join(&target)])
            .args(["--", &format!("-max_total_time={SECONDS}")])
            .args(["-print_final_stats=1", "-rss_limit_mb=2048", "-timeout=10"])
            .status()?;
        ensure!(
            status.success(),
            "{target} found something: the input is in tests/fuzz/artifacts/{target}"
        );
    }
    Ok(())
}

/// `cargo fuzz TASK`, with the unstable compiler flags it uses permitted on a stable compiler too.
fn cargo_fuzz(task: &str) -> Command {
    let mut command = toolchain::cargo();
    command
        .args(["fuzz", task, "--fuzz-dir"])
        .arg(folder())
        .arg("--target-dir")
        .arg(build_ebpf::target_folder().join("fuzz"))
        .current_dir(folder())
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

fn install_cargo_fuzz() -> Result<()> {
    let installed = Command::new("cargo-fuzz")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if installed {
        return Ok(());
    }
    toolchain::progress("installing cargo-fuzz (once)");
    let status = toolchain::cargo()
        .args(["install", "--quiet", "--locked", "cargo-fuzz"])
        .status()?;
    ensure!(
        status.success(),
        "cargo-fuzz is missing: cargo install --locked cargo-fuzz"
    );
    Ok(())
}

/// One target per decoder: the programs of the fuzz workspace.
fn targets() -> Result<Vec<String>> {
    let programs = folder().join("targets");
    let mut names = Vec::new();
    for entry in
        fs::read_dir(&programs).with_context(|| format!("reading {}", programs.display()))?
    {
        let path = entry?.path();
        if let (Some(stem), Some("rs")) = (
            path.file_stem().and_then(|stem| stem.to_str()),
            path.extension().and_then(|extension| extension.to_str()),
        ) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    ensure!(
        !names.is_empty(),
        "no fuzz targets in {}",
        programs.display()
    );
    Ok(names)
}

fn folder() -> PathBuf {
    build_ebpf::workspace().join("tests/fuzz")
}
