//! `cargo xtask test pg-suites`: PostgreSQL's own suites, run directly and as an agent through the gateway.
//!
//! Their sources come from Debian's archive into `~/.cache/sluice/pg-suites`; delete it to get the archive's
//! newest. The tests of `tests/pg_suites.rs`, which nothing else runs, write a line for each test of a suite into a
//! file; here they are put in order and printed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::has_nextest;
use crate::apt::{Apt, DEBIAN};
use crate::{build_ebpf, packages, toolchain};

/// The variables by which the tests know where the suites are, and where their rows go.
const SUITES: &str = "SLUICE_PG_SUITES";
const COLLECTED: &str = "SLUICE_PG_SUITES_ROWS";

/// The release of Debian that has [`MAJOR`].
const SUITE: &str = "bookworm";
const MAJOR: &str = "15";

/// What is taken out of the source archive.
const PARTS: [&str; 3] = [
    "src/test/regress",
    "src/test/isolation",
    "src/test/modules/libpq_pipeline",
];

struct Row {
    suite: String,
    test: String,
    /// How it ended directly, and through the gateway, by the suite's own judgement.
    direct: String,
    gateway: String,
    /// What differs between the two; empty if nothing does.
    difference: String,
}

pub fn run() -> Result<()> {
    packages::for_pg_suites()?;
    let suites = suites()?;
    let file = build_ebpf::target_folder().join("pg-suites-rows.tsv");
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    toolchain::progress("running PostgreSQL's suites, each twice: some minutes");
    let status = tests()
        .env(SUITES, &suites)
        .env(COLLECTED, &file)
        .current_dir(build_ebpf::workspace())
        .status()?;
    let rows = read(&file)?;
    let mut different = 0;
    for suite in ["pg_regress", "pg_isolation_regress", "libpq_pipeline"] {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.suite == suite).collect();
        ensure!(!rows.is_empty(), "{suite} did not come to an end");
        different += print(suite, &rows);
    }
    ensure!(
        different == 0,
        "{different} tests differ through the gateway"
    );
    ensure!(
        status.success(),
        "no test differs, but not every run ended well"
    );
    Ok(())
}

/// One after another: a suite alone keeps the machine busy.
fn tests() -> Command {
    let mut runner = toolchain::cargo();
    let which = ["--package", "gateway", "--test", "integration"];
    if has_nextest() {
        runner.args(["nextest", "run"]).args(which);
        runner.args(["--run-ignored", "only", "--test-threads", "1"]);
        runner.args(["--show-progress", "none", "--failure-output", "final"]);
        runner.arg("pg_suites::");
    } else {
        runner.args(["test", "--quiet"]).args(which);
        runner.args(["pg_suites::", "--", "--ignored", "--test-threads", "1"]);
    }
    runner
}

/// The suites, ready to run; downloaded and compiled when they are not in the cache.
fn suites() -> Result<PathBuf> {
    let folder = toolchain::private_folder()?.join("pg-suites").join(MAJOR);
    if folder.exists() {
        return Ok(folder);
    }
    let partial = folder.with_extension("partial");
    // What an interrupted download left is not to be taken for the suites.
    let _ = fs::remove_dir_all(&partial);
    toolchain::progress(&format!(
        "downloading PostgreSQL {MAJOR}'s sources from {SUITE} (about 25 MB)"
    ));
    let work = partial.join("apt");
    let apt = Apt::with_sources(&work, &DEBIAN, SUITE)?;
    let archive = apt.original(&format!("postgresql-{MAJOR}"))?;
    unpack(&archive, &partial)?;
    apt.unpack("libpq-dev")?;
    let headers = apt.unpack(&format!("postgresql-server-dev-{MAJOR}"))?;
    compile(&partial, &headers.join("usr"))?;
    fs::remove_dir_all(&work)?;
    fs::rename(&partial, &folder)?;
    Ok(folder)
}

fn unpack(archive: &Path, into: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(archive).arg("-C").arg(into);
    tar.args(["--strip-components=3", "--no-same-owner", "--wildcards"]);
    tar.args(PARTS.map(|part| format!("*/{part}")));
    toolchain::run_quietly(&mut tar)
}

/// The extension that pg_regress loads, and the client that is libpq_pipeline; both are one file.
fn compile(suites: &Path, usr: &Path) -> Result<()> {
    let includes = ["", "/server", "/internal"].map(|kind| {
        let folder = format!("include/postgresql/{MAJOR}{kind}");
        format!("-I{}", usr.join(folder).display())
    });
    let libpq = ["", "/internal"].map(|kind| {
        format!(
            "-I{}",
            usr.join(format!("include/postgresql{kind}")).display()
        )
    });
    let mut extension = Command::new("gcc");
    extension
        .args(["-shared", "-fPIC", "-O1"])
        .args(&includes)
        .args(&libpq)
        .arg(suites.join("regress/regress.c"))
        .arg("-o")
        .arg(suites.join("regress/regress.so"));
    toolchain::run_quietly(&mut extension)?;
    let module = suites.join("modules/libpq_pipeline");
    let mut client = Command::new("gcc");
    client
        .arg("-O1")
        .args(&includes)
        .args(&libpq)
        .arg(module.join("libpq_pipeline.c"))
        .arg("-o")
        .arg(module.join("libpq_pipeline"))
        .arg(format!(
            "-L{}",
            usr.join(format!("lib/postgresql/{MAJOR}/lib")).display()
        ))
        // libpq itself is the host's, which PostgreSQL's packages bring.
        .args(["-l:libpq.so.5", "-lpgcommon", "-lpgport"]);
    toolchain::run_quietly(&mut client)
}

fn read(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(row).collect()
}

/// One line: the fields in the order of [`Row`], with tabs between them.
fn row(line: &str) -> Result<Row> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [suite, test, direct, gateway, difference] = fields[..] else {
        bail!("not a row: {line:?}");
    };
    Ok(Row {
        suite: suite.to_owned(),
        test: test.to_owned(),
        direct: direct.to_owned(),
        gateway: gateway.to_owned(),
        difference: difference.to_owned(),
    })
}

/// Answers how many differ.
fn print(suite: &str, rows: &[&Row]) -> usize {
    let width = rows.iter().map(|row| row.test.len()).max().unwrap_or(0);
    println!("\n{suite}");
    println!("           {:<width$}  direct  gateway  results", "test");
    for row in rows {
        let (mark, results) = match row.difference.as_str() {
            "" => ("equal    ", "the same"),
            difference => ("DIFFERENT", difference),
        };
        let (direct, gateway) = (&row.direct, &row.gateway);
        println!(
            "{mark}  {:<width$}  {direct:<6}  {gateway:<7}  {results}",
            row.test
        );
    }
    let different = rows.iter().filter(|row| !row.difference.is_empty()).count();
    let passed = |ended: fn(&Row) -> &str| rows.iter().filter(|row| ended(row) == "ok").count();
    println!(
        "{} tests: {} pass directly, {} through the gateway; {different} differ",
        rows.len(),
        passed(|row| &row.direct),
        passed(|row| &row.gateway),
    );
    different
}
