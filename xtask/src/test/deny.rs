//! `cargo xtask test denials`: denied statements in every order of messages, through every client, beside the
//! server's own permission error.
//!
//! The tests of `tests/deny_table.rs` write a line for each row into a file; here they are put in order and
//! printed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::has_nextest;
use crate::{build_ebpf, toolchain};

/// The variable by which the tests know where their rows go.
const COLLECTED: &str = "SLUICE_DENIAL_ROWS";

struct Row {
    /// The client; the rows of one test have the same.
    chapter: String,
    /// Its place there, from 1.
    row: usize,
    order: String,
    passed: bool,
    result: String,
}

pub fn run() -> Result<()> {
    let file = build_ebpf::target_folder().join("denial-rows.tsv");
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    let mut runner = toolchain::cargo();
    let tests = ["--package", "gateway", "--test", "integration"];
    if has_nextest() {
        // The rows say what happened; a test's own output only where it failed.
        runner.args(["nextest", "run"]).args(tests);
        runner.args(["--status-level", "fail", "--final-status-level", "fail"]);
        runner.args(["--show-progress", "none", "--failure-output", "final"]);
    } else {
        runner.args(["test", "--quiet"]).args(tests);
    }
    toolchain::progress("denying: about a minute");
    let status = runner
        .arg("deny_table::")
        .env(COLLECTED, &file)
        .current_dir(build_ebpf::workspace())
        .status()?;
    let rows = read(&file)?;
    print(&rows);
    ensure!(!rows.is_empty(), "no test filled in a row");
    let failed = rows.iter().filter(|row| !row.passed).count();
    ensure!(
        failed == 0,
        "{failed} denials are not what the server's own would be"
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
    let [chapter, row, order, passed, result] = fields[..] else {
        bail!("not a row: {line:?}");
    };
    Ok(Row {
        chapter: chapter.to_owned(),
        row: row
            .parse()
            .with_context(|| format!("not a row: {line:?}"))?,
        order: order.to_owned(),
        passed: passed == "true",
        result: result.to_owned(),
    })
}

fn print(rows: &[Row]) {
    let mut chapters: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        chapters.entry(&row.chapter).or_default().push(row);
    }
    let width = rows.iter().map(|row| row.order.chars().count()).max();
    let width = width.unwrap_or(0);
    for (chapter, rows) in &chapters {
        println!("\n{chapter}");
        for row in rows {
            let mark = if row.passed { "ok    " } else { "FAILED" };
            println!("{mark}  {:<width$}  {}", row.order, row.result);
        }
    }
    println!();
    for (chapter, rows) in &chapters {
        println!("{}", total(chapter, rows.iter().copied()));
    }
    println!("{}", total("all", rows.iter()));
}

fn total<'a>(what: &str, rows: impl Iterator<Item = &'a Row>) -> String {
    let (mut all, mut equal, mut failed) = (0, 0, 0);
    for row in rows {
        all += 1;
        equal += usize::from(row.passed && row.result == "equal");
        failed += usize::from(!row.passed);
    }
    format!(
        "{what}: {all} rows, {equal} equal to the server's own, {} explained, {failed} failed",
        all - equal - failed
    )
}
