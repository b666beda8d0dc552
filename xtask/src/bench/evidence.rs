//! A figure counts only if the evidence behind it is whole.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::load::{Load, Run};
use super::site::{Site, Way};

/// How long the last sessions may take to end after their clients have.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the log ends now.
pub fn mark(site: &Site<'_>) -> Result<u64> {
    Ok(fs::metadata(site.installation.log().join("log.jsonl"))?.len())
}

/// Through the gateway, the log has gained one intent and one result per statement that pgbench ran; on the other
/// ways it has gained nothing.
pub fn check(site: &Site<'_>, way: &Way, load: &Load, run: &Run, before: u64) -> Result<()> {
    let expected = match way.cgroup {
        Some(_) => run.transactions * load.statements,
        None => 0,
    };
    let begun = Instant::now();
    loop {
        let (intents, results) = statements(site, before)?;
        if (intents, results) == (expected, expected) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE && intents <= expected,
            "{} on {}: {expected} statements ran, the log has {intents} intents and {results} results",
            load.name,
            way.name
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// The statements of pgbench's scripts since `before`; its own questions when it starts are left out.
fn statements(site: &Site<'_>, before: u64) -> Result<(u64, u64)> {
    let mut file = File::open(site.installation.log().join("log.jsonl"))?;
    file.seek(SeekFrom::Start(before))?;
    let (mut intents, mut results, mut questions) = (0, 0, 0);
    for line in BufReader::new(file).lines() {
        let line = line?;
        if line.contains(r#""event":"stmt.intent""#) {
            // What pgbench asks about the tables before it starts.
            match line.contains("pg_catalog.") || line.contains("count(*)") {
                true => questions += 1,
                false => intents += 1,
            }
        } else if line.contains(r#""event":"stmt.result""#) {
            results += 1;
        }
    }
    Ok((intents, results - questions))
}

/// The whole log, by the product's own verifier.
pub fn verify(site: &Site<'_>) -> Result<()> {
    let output = site.installation.sluice(["audit", "verify"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("audit verify: ok"),
        "the log does not verify: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{}", said.trim());
    Ok(())
}
