//! `cargo xtask ci`: what the gate runs; with `--fuzz`, each fuzz target for a minute instead, or for as many
//! seconds as `--fuzz=SECONDS` says. Names behind it choose among the targets.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{bench, build_ebpf, lint, packages, test, toolchain};

/// Long enough to walk through every message kind many times over from the seeds.
const SECONDS: u32 = 60;

/// More memory than this is growth, and a find. A target needs a fraction of it.
const MEMORY_MB: u32 = 2048;

/// An input that takes longer than this, in seconds, is a hang, and a find.
const HANGS: u32 = 10;

pub fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => {
            lint::run(&[])?;
            test::run(&[])?;
            bench::run(&["gate".to_owned()])
        }
        [flag, targets @ ..] if flag == "--fuzz" => fuzz(SECONDS, targets),
        [flag, targets @ ..] if flag.starts_with("--fuzz=") => {
            let seconds = flag.trim_start_matches("--fuzz=");
            let seconds = seconds
                .parse()
                .with_context(|| format!("--fuzz takes seconds, not {seconds:?}"))?;
            fuzz(seconds, targets)
        }
        _ => bail!("ci takes nothing, or --fuzz[=SECONDS] [TARGET…]"),
    }
}

/// What libFuzzer said of one target.
#[derive(Debug, Default)]
struct Campaign {
    executions: u64,
    per_second: u64,
    peak_mb: u64,
    new_inputs: u64,
    clean: bool,
}

fn fuzz(seconds: u32, wanted: &[String]) -> Result<()> {
    packages::for_fuzzing()?;
    install_cargo_fuzz()?;
    let known = targets()?;
    for name in wanted {
        ensure!(known.contains(name), "no fuzz target {name}: {known:?}");
    }
    let mut campaigns = Vec::new();
    for target in known {
        if !wanted.is_empty() && !wanted.contains(&target) {
            continue;
        }
        toolchain::progress(&format!("fuzzing {target} for {seconds} s"));
        campaigns.push((target.clone(), campaign(&target, seconds)?));
    }
    print(seconds, &campaigns);
    let found: Vec<&str> = campaigns
        .iter()
        .filter(|(_, campaign)| !campaign.clean)
        .map(|(target, _)| target.as_str())
        .collect();
    ensure!(
        found.is_empty(),
        "something was found in {}: the inputs are in tests/fuzz/artifacts",
        found.join(", ")
    );
    Ok(())
}

fn campaign(target: &str, seconds: u32) -> Result<Campaign> {
    // New finds go below the target folder; the seeds are the repository's and stay as they are.
    let corpus = build_ebpf::target_folder().join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus)?;
    let mut child = cargo_fuzz("run")
        .arg(target)
        .args([&corpus, &folder().join("seeds").join(target)])
        .args(["--", &format!("-max_total_time={seconds}")])
        .arg("-print_final_stats=1")
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(format!("-timeout={HANGS}"))
        .stderr(Stdio::piped())
        .spawn()?;
    let mut campaign = Campaign::default();
    let said = child.stderr.take().context("stderr is piped")?;
    for line in BufReader::new(said).lines() {
        let line = line?;
        match statistic(&line) {
            Some(("number_of_executed_units", count)) => campaign.executions = count,
            Some(("average_exec_per_sec", count)) => campaign.per_second = count,
            Some(("peak_rss_mb", count)) => campaign.peak_mb = count,
            Some(("new_units_added", count)) => campaign.new_inputs = count,
            Some(_) => {}
            None => eprintln!("{line}"),
        }
    }
    campaign.clean = child.wait()?.success();
    Ok(campaign)
}

/// A line of libFuzzer's statistics: `stat::peak_rss_mb:  60`.
fn statistic(line: &str) -> Option<(&str, u64)> {
    let (name, count) = line.strip_prefix("stat::")?.split_once(':')?;
    Some((name, count.trim().parse().ok()?))
}

fn print(seconds: u32, campaigns: &[(String, Campaign)]) {
    println!(
        "\n{:<20}  {:>7}  {:>12}  {:>9}  {:>8}  {:>10}  result",
        "target", "seconds", "executions", "per s", "peak MB", "new inputs"
    );
    for (target, it) in campaigns {
        let result = if it.clean { "nothing found" } else { "FOUND" };
        println!(
            "{target:<20}  {seconds:>7}  {:>12}  {:>9}  {:>8}  {:>10}  {result}",
            it.executions, it.per_second, it.peak_mb, it.new_inputs
        );
    }
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

/// Those of raw bytes and those of whole sequences: the programs of the fuzz workspace.
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
