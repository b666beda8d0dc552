//! Sessions that are open and silent: what they cost the process in between, and that many of them work.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::evidence::{self, Expected};
use super::process;
use super::site::{Site, Way};
use crate::demo::database;
use crate::toolchain;

/// Holds `count` sessions on each way that is a process of its own.
pub fn measure(site: &Site<'_>, count: usize) -> Result<Vec<Value>> {
    let held = site.ways.iter().filter(|way| way.pid.is_some());
    held.map(|way| hold(site, way, count)).collect()
}

fn hold(site: &Site<'_>, way: &Way, count: usize) -> Result<Value> {
    toolchain::progress(&format!("{count} sessions on {}", way.name));
    let pid = way.pid.context("it is a process")?;
    let before = evidence::mark(site)?;
    let (empty, begun) = (process::pss(pid)?, Instant::now());
    let mut client = site
        .command(way, &site.client(&["hold", &count.to_string()]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(client.stdout.take().context("stdout is a pipe")?);
    let mut heard = client.stdin.take().context("stdin is a pipe")?;
    let mut wait_for = |word: &str| -> Result<u64> {
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(
            line.trim() == word,
            "{count} sessions on {}: {line:?} instead of {word:?}",
            way.name
        );
        let memory = process::pss(pid)?;
        heard.write_all(b"\n")?;
        Ok(memory)
    };
    let open = wait_for("open")?;
    let seconds = begun.elapsed().as_secs_f64();
    let worked = wait_for("worked")?;
    ensure!(client.wait()?.success(), "not every session ended well");
    evidence::check(
        site,
        way,
        before,
        &Expected {
            what: format!("{count} sessions"),
            statements: count as u64,
            startup: evidence::startup(&["user", database::USER, "database", database::NAME]),
            masked: 0,
        },
    )?;
    let each = |memory: u64| memory.saturating_sub(empty) as f64 / count as f64;
    Ok(json!({
        "way": way.name,
        "sessions": count,
        "seconds_to_open": seconds,
        "pss_before_kb": empty,
        "pss_after_kb": process::pss(pid)?,
        "kb_per_open_session": each(open),
        "kb_per_session_after_a_statement": each(worked),
    }))
}
