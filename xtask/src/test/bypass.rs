//! `cargo xtask test bypass`: every way out that was tried, what stops it, and what happened.
//!
//! The tests of `tests/bypass` write a line for each row into a file; here they are put in order and printed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::has_nextest;
use crate::{build_ebpf, toolchain};

/// The variable by which the tests know where their rows go.
const COLLECTED: &str = "SLUICE_BYPASS_ROWS";

struct Row {
    /// What the row is about; the rows of one test have the same.
    chapter: String,
    /// Its place there, from 1.
    row: usize,
    attack: String,
    stopped_by: String,
    passed: bool,
    result: String,
}

pub fn run() -> Result<()> {
    let file = build_ebpf::target_folder().join("bypass-rows.tsv");
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    let mut runner = toolchain::cargo();
    if has_nextest() {
        // The rows say what happened; a test's own output only where it failed.
        runner.args([
            "nextest",
            "run",
            "--package",
            "gateway",
            "--test",
            "integration",
        ]);
        runner.args(["--status-level", "fail", "--final-status-level", "fail"]);
        runner.args([
            "--show-progress",
            "none",
            "--failure-output",
            "final",
            "bypass::",
        ]);
    } else {
        runner.args([
            "test",
            "--quiet",
            "--package",
            "gateway",
            "--test",
            "integration",
        ]);
        runner.arg("bypass::");
    }
    toolchain::progress("attacking: some minutes");
    let status = runner
        .env(COLLECTED, &file)
        .current_dir(build_ebpf::workspace())
        .status()?;
    let rows = read(&file)?;
    print(&rows);
    let failed = rows.iter().filter(|row| !row.passed).count();
    println!("\n{} rows, {failed} failed", rows.len());
    ensure!(!rows.is_empty(), "no test filled in a row");
    ensure!(
        failed == 0,
        "{failed} attacks did not come to what was expected"
    );
    // A test may fail for something that no row is about.
    ensure!(
        status.success(),
        "every row is as expected, but not every test passed"
    );
    Ok(())
}

fn read(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut rows: Vec<Row> = text.lines().map(row).collect::<Result<_>>()?;
    rows.sort_by(|one, other| (&one.chapter, one.row).cmp(&(&other.chapter, other.row)));
    Ok(rows)
}

/// One line: the fields in the order of [`Row`], with tabs between them.
fn row(line: &str) -> Result<Row> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [chapter, row, attack, stopped_by, passed, result] = fields[..] else {
        bail!("not a row: {line:?}");
    };
    Ok(Row {
        chapter: chapter.to_owned(),
        row: row
            .parse()
            .with_context(|| format!("not a row: {line:?}"))?,
        attack: attack.to_owned(),
        stopped_by: stopped_by.to_owned(),
        passed: passed == "true",
        result: result.to_owned(),
    })
}

fn print(rows: &[Row]) {
    let mut chapters: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        chapters.entry(&row.chapter).or_default().push(row);
    }
    let width = |text: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| text(row).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (attack, hook) = (width(|row| &row.attack), width(|row| &row.stopped_by));
    for (chapter, rows) in chapters {
        println!("\n{chapter}");
        println!(
            "        {:<attack$}  {:<hook$}  result",
            "attack", "stopped by"
        );
        for row in rows {
            let mark = if row.passed { "ok    " } else { "FAILED" };
            println!(
                "{mark}  {:<attack$}  {:<hook$}  {}",
                row.attack, row.stopped_by, row.result
            );
        }
    }
}
