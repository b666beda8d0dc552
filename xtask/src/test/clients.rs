//! `cargo xtask test clients`: every client, run directly and as an agent through the gateway.
//!
//! The tests of `tests/client_matrix` do it and write a line for each test of a client into a file; here they are
//! counted and printed. What Python and Node import, the tests fetch themselves, with the hashes that
//! `tests/clients` has. The tests inside of crates are fetched here: they are copied out of cargo's registry,
//! whose checksums the lock file beside them has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::has_nextest;
use crate::{build_ebpf, toolchain};

/// The variables by which the tests know where what was fetched is, and where their rows go.
const FETCHED: &str = "SLUICE_CLIENTS";
const COLLECTED: &str = "SLUICE_CLIENTS_ROWS";

/// The packages that the tests become, which lie in `tests/clients/crates`, and the crates they are taken out of.
const CRATES: [(&str, &str); 2] = [
    ("sqlx-test", "sqlx-0.9.0"),
    ("tokio-postgres-test", "tokio-postgres-0.7.18"),
];

/// tokio-postgres' tests have the server's port written into them.
const REPLACED: [(&str, &str); 2] = [
    (r#""127.0.0.1:5433""#, "tokio_postgres_test::address()"),
    ("tokio_postgres::connect(", "tokio_postgres_test::connect("),
];

struct Row {
    client: String,
    test: String,
    /// `passed`, `failed` or `missing`: directly, and through the gateway.
    direct: String,
    gateway: String,
    /// What differs between the two, and why that has to be; empty if nothing does.
    difference: String,
    reason: String,
}

pub fn run() -> Result<()> {
    let fetched = build_ebpf::target_folder().join("clients");
    fetch_crates(&fetched.join("crates"))?;
    let file = build_ebpf::target_folder().join("clients-rows.tsv");
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    toolchain::progress(
        "running every client twice: many minutes, and gigabytes of disk for a while",
    );
    let status = tests()
        .env(FETCHED, &fetched)
        .env(COLLECTED, &file)
        .current_dir(build_ebpf::workspace())
        .status()?;
    let rows = read(&file)?;
    let unexplained = print(&rows);
    ensure!(
        unexplained == 0,
        "{unexplained} tests differ through the gateway"
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
        runner.args(["--run-ignored", "all", "--test-threads", "1"]);
        runner.args(["--show-progress", "none", "--failure-output", "final"]);
        runner.arg("client_matrix::");
    } else {
        runner.args(["test", "--quiet"]).args(which);
        runner.args(["client_matrix::", "--", "--include-ignored"]);
        runner.args(["--test-threads", "1"]);
    }
    runner
}

/// The packages, with the tests out of the crates in them, ready to be compiled. What was compiled before stays.
fn fetch_crates(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let ours = build_ebpf::workspace().join("tests/clients/crates");
    let mut copy = Command::new("cp");
    // Unchanged files keep their age, so that cargo compiles only what changed.
    copy.args(["-r", "--preserve=timestamps"]);
    copy.arg(ours.join(".")).arg(folder);
    toolchain::run_quietly(&mut copy)?;
    toolchain::progress("fetching the crates whose tests are run");
    let manifest = folder.join("Cargo.toml");
    let mut fetch = toolchain::cargo();
    fetch.args(["fetch", "--quiet", "--locked", "--manifest-path"]);
    toolchain::run_quietly(fetch.arg(&manifest))?;
    for (package, crate_) in CRATES {
        let source = source_of(crate_, &manifest)?;
        let tests = folder.join(package).join("tests");
        let mut copy = Command::new("cp");
        copy.args(["-r", "--preserve=timestamps", "--no-target-directory"]);
        copy.arg(source.join("tests")).arg(&tests);
        toolchain::run_quietly(&mut copy)?;
    }
    let tests = folder.join("tokio-postgres-test/tests/test");
    for name in ["main.rs", "runtime.rs"] {
        replace(&tests.join(name))?;
    }
    Ok(())
}

/// Where cargo has unpacked a crate.
fn source_of(crate_: &str, manifest: &Path) -> Result<PathBuf> {
    let mut metadata = toolchain::cargo();
    metadata.args(["metadata", "--format-version", "1", "--locked"]);
    metadata.arg("--manifest-path").arg(manifest);
    let text = toolchain::output(&mut metadata).context("cargo metadata failed")?;
    let end = format!("/{crate_}/Cargo.toml\"");
    let found = text.find(&end).with_context(|| format!("no {crate_}"))?;
    let before = text.get(..found).unwrap_or_default();
    let start = before.rfind('"').map_or(0, |quote| quote + 1);
    let registry = before.get(start..).unwrap_or_default();
    Ok(Path::new(registry).join(crate_))
}

/// Puts the port that the environment names where one is written.
fn replace(file: &Path) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let replaced = REPLACED
        .iter()
        .fold(text, |text, (from, to)| text.replace(from, to));
    let age = fs::metadata(file)?.modified()?;
    fs::write(file, replaced)?;
    fs::File::options()
        .write(true)
        .open(file)?
        .set_modified(age)?;
    Ok(())
}

fn read(file: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(row).collect()
}

/// One line: the fields in the order of [`Row`], with tabs between them.
fn row(line: &str) -> Result<Row> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [client, test, direct, gateway, difference, reason] = fields[..] else {
        bail!("not a row: {line:?}");
    };
    Ok(Row {
        client: client.to_owned(),
        test: test.to_owned(),
        direct: direct.to_owned(),
        gateway: gateway.to_owned(),
        difference: difference.to_owned(),
        reason: reason.to_owned(),
    })
}

/// Answers how many differ that nobody has explained.
fn print(rows: &[Row]) -> usize {
    let mut clients: Vec<&str> = Vec::new();
    for row in rows {
        if !clients.contains(&row.client.as_str()) {
            clients.push(&row.client);
        }
    }
    let width = clients.iter().map(|client| client.len()).max().unwrap_or(0);
    println!(
        "\n{:<width$}  tests  direct  gateway  differences",
        "client"
    );
    for client in &clients {
        let rows = || rows.iter().filter(|row| row.client == **client);
        let passed = |ended: fn(&Row) -> &str| rows().filter(|row| ended(row) == "passed").count();
        let different = rows().filter(|row| !row.difference.is_empty());
        println!(
            "{client:<width$}  {:>5}  {:>6}  {:>7}  {}",
            rows().count(),
            passed(|row| &row.direct),
            passed(|row| &row.gateway),
            different.count(),
        );
    }
    let mut unexplained = 0;
    for row in rows.iter().filter(|row| !row.difference.is_empty()) {
        let (client, test, difference) = (&row.client, &row.test, &row.difference);
        match row.reason.as_str() {
            "" => {
                unexplained += 1;
                println!("DIFFERENT  {client}: {test}: {difference}");
            }
            reason => println!("explained  {client}: {test}: {reason}"),
        }
    }
    println!(
        "{} tests of {} clients; {unexplained} differ without an explanation",
        rows.len(),
        clients.len()
    );
    unexplained
}
