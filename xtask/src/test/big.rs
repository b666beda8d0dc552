//! `cargo xtask test big`: gigabytes through the gateway, and how much its memory grows by them.
//!
//! The tests of `tests/streaming.rs`, those that take minutes included, write a line for each measurement into a
//! file; here they are printed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::has_nextest;
use crate::{build_ebpf, toolchain};

/// The variable by which the tests know where their rows go.
const COLLECTED: &str = "SLUICE_BIG_ROWS";

struct Row {
    what: String,
    seconds: u64,
    /// The gateway's memory before, how much its peak was above that, and what would be too much, in kB.
    before: u64,
    growth: u64,
    limit: u64,
}

pub fn run() -> Result<()> {
    let file = build_ebpf::target_folder().join("big-rows.tsv");
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    toolchain::progress("passing gigabytes: some minutes, and 3 GB of disk for a while");
    let status = tests()
        .env(COLLECTED, &file)
        .current_dir(build_ebpf::workspace())
        .status()?;
    let rows = read(&file)?;
    ensure!(!rows.is_empty(), "nothing was measured");
    print(&rows);
    ensure!(status.success(), "not every test passed");
    Ok(())
}

/// One after another: a recording takes as much disk as what it records.
fn tests() -> Command {
    let mut runner = toolchain::cargo();
    if has_nextest() {
        runner.args(["nextest", "run", "--package", "gateway"]);
        runner.args(["--test", "integration", "--run-ignored", "all"]);
        runner.args(["--test-threads", "1", "streaming::"]);
    } else {
        runner.args(["test", "--package", "gateway", "--test", "integration"]);
        runner.args(["streaming::", "--", "--include-ignored"]);
        runner.args(["--test-threads", "1"]);
    }
    runner
}

fn read(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(row).collect()
}

/// One line: the fields in the order of [`Row`], with tabs between them.
fn row(line: &str) -> Result<Row> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [what, seconds, before, growth, limit] = fields[..] else {
        bail!("not a row: {line:?}");
    };
    Ok(Row {
        what: what.to_owned(),
        seconds: seconds.parse()?,
        before: before.parse()?,
        growth: growth.parse()?,
        limit: limit.parse()?,
    })
}

fn print(rows: &[Row]) {
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    println!("\nThe gateway's memory (MB)");
    println!(
        "           {:<width$}  {:>6}  {:>7}  {:>7}  {:>7}",
        "while this passes, directly and through it", "before", "growth", "allowed", "seconds"
    );
    for row in rows {
        let mark = if row.growth < row.limit {
            "ok"
        } else {
            "TOO MUCH"
        };
        let mb = |kilobytes: u64| kilobytes as f64 / 1024.0;
        println!(
            "{mark:<9}  {:<width$}  {:>6.1}  {:>7.1}  {:>7.0}  {:>7}",
            row.what,
            mb(row.before),
            mb(row.growth),
            mb(row.limit),
            row.seconds,
        );
    }
}
