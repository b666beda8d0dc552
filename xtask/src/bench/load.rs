//! What is run against every way to the server, and what came of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::evidence::{self, Expected};
use super::process;
use super::site::{Site, Way};
use crate::demo::database;

/// What pgbench runs that it does not know by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    Pipeline,
}

impl Script {
    fn text(self) -> String {
        match self {
            Script::Pipeline => pipeline(),
        }
    }
}

/// One kind of work that `pgbench` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    pub name: &'static str,
    /// Of pgbench, beside the number of clients.
    pub options: &'static [&'static str],
    pub clients: usize,
    /// How many statements one transaction has, as the evidence counts them.
    pub statements: u64,
    /// Instead of one of pgbench's own.
    script: Option<Script>,
}

const SIMPLE: &[&str] = &["-S", "-M", "simple"];
const EXTENDED: &[&str] = &["-S", "-M", "extended"];
const PREPARED: &[&str] = &["-S", "-M", "prepared"];
const TPC_B: &[&str] = &["-M", "simple", "-b", "tpcb-like"];
const CHURN: &[&str] = &["-S", "-M", "simple", "-C"];

const fn load(
    name: &'static str,
    options: &'static [&'static str],
    clients: usize,
    statements: u64,
) -> Load {
    Load {
        name,
        options,
        clients,
        statements,
        script: None,
    }
}

const PIPELINED: u64 = 50;

const PIPELINE: Load = Load {
    script: Some(Script::Pipeline),
    ..load(
        "pipeline of 50, 8 clients",
        &["-M", "prepared"],
        8,
        PIPELINED,
    )
};

/// All statements before the first answer is read.
fn pipeline() -> String {
    let mut script = "\\set aid random(1, 1000000)\n\\startpipeline\n".to_owned();
    for _ in 0..PIPELINED {
        script.push_str("SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n");
    }
    script + "\\endpipeline\n"
}

pub const ALL: &[Load] = &[
    load("simple, 1 client", SIMPLE, 1, 1),
    load("simple, 8 clients", SIMPLE, 8, 1),
    load("simple, 32 clients", SIMPLE, 32, 1),
    load("extended, 1 client", EXTENDED, 1, 1),
    load("extended, 8 clients", EXTENDED, 8, 1),
    load("extended, 32 clients", EXTENDED, 32, 1),
    load("prepared, 1 client", PREPARED, 1, 1),
    load("prepared, 8 clients", PREPARED, 8, 1),
    load("prepared, 32 clients", PREPARED, 32, 1),
    load("TPC-B, 8 clients", TPC_B, 8, 7),
    PIPELINE,
    load("churn, 8 clients", CHURN, 8, 1),
];

pub const QUICK: &[Load] = &[
    load("simple, 8 clients", SIMPLE, 8, 1),
    load("extended, 8 clients", EXTENDED, 8, 1),
    load("prepared, 8 clients", PREPARED, 8, 1),
    PIPELINE,
    load("churn, 8 clients", CHURN, 8, 1),
];

/// What the gate in CI holds against its baseline. Churn is not among them: it makes a file for each transaction, and what
/// ext4 takes for that goes by how many files were deleted in the minutes before. Nor are pipelines: their hundred
/// lines for each transaction cost what the page cache takes, which goes by how much waits to be written back (12 to 23
/// times the hop, on one machine and one day).
pub const GATE: &[Load] = &[
    load("simple, 8 clients", SIMPLE, 8, 1),
    load("extended, 8 clients", EXTENDED, 8, 1),
    load("prepared, 8 clients", PREPARED, 8, 1),
];

/// One run of a load on one way.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub transactions: u64,
    pub per_second: f64,
    /// Of the sampled transactions, in microseconds.
    pub p50: f64,
    pub p99: f64,
    /// Of the process in between, per transaction, in microseconds; none directly.
    pub cpu: Option<f64>,
    /// Memory of that process afterwards, in kB.
    pub resident: Option<u64>,
}

impl Load {
    /// What `run` must have left in the evidence.
    pub fn expected(&self, run: &Run) -> Expected {
        let parameters = [
            "user",
            database::USER,
            "database",
            database::NAME,
            "application_name",
            "pgbench",
        ];
        Expected {
            what: self.name.to_owned(),
            statements: run.transactions * self.statements,
            startup: evidence::startup(&parameters),
            masked: 0,
        }
    }

    pub fn run(&self, site: &Site<'_>, way: &Way, duration: Duration) -> Result<Run> {
        let folder = site.scratch()?;
        let prefix = folder.join("latency");
        let mut words: Vec<String> = vec!["pgbench".into(), "-n".into()];
        words.extend(self.options.iter().map(|word| (*word).to_owned()));
        words.extend(["-c".into(), self.clients.to_string()]);
        words.extend(["-j".into(), self.clients.min(2).to_string()]);
        words.extend(["-T".into(), duration.as_secs().to_string()]);
        words.extend(["-l".into(), "--sampling-rate=0.2".into()]);
        words.push(format!("--log-prefix={}", prefix.display()));
        if let Some(script) = self.script {
            let file = folder.join("script.sql");
            fs::write(&file, script.text())?;
            words.push(format!("--file={}", file.display()));
        }
        let before = way.cpu_time()?;
        let output = site
            .command(way, &words)
            .output()
            .context("running pgbench")?;
        let used = way
            .cpu_time()?
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before));
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "pgbench failed on {}:\n{text}{}",
            way.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let transactions: u64 = number(&text, "number of transactions actually processed: ")?;
        let failed: u64 = number(&text, "number of failed transactions: ")?;
        ensure!(failed == 0, "{failed} transactions failed on {}", way.name);
        let (p50, p99) = percentiles(&folder)?;
        fs::remove_dir_all(&folder)?;
        Ok(Run {
            transactions,
            per_second: number(&text, "tps = ")?,
            p50,
            p99,
            cpu: used.map(|used| used.as_secs_f64() * 1e6 / transactions as f64),
            resident: way.pid.map(process::resident).transpose()?,
        })
    }
}

/// A number that follows `label` in pgbench's report.
fn number<T: std::str::FromStr>(text: &str, label: &str) -> Result<T> {
    let rest = text
        .split(label)
        .nth(1)
        .with_context(|| format!("pgbench does not say {label:?}:\n{text}"))?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    rest[..end]
        .parse()
        .ok()
        .with_context(|| format!("pgbench says no number after {label:?}"))
}

/// Median and 99th percentile of the latencies in pgbench's logs: the third word of each line, in microseconds.
fn percentiles(folder: &Path) -> Result<(f64, f64)> {
    let mut latencies: Vec<f64> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            continue;
        }
        let text = fs::read_to_string(path)?;
        latencies.extend(
            text.lines()
                .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()),
        );
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (latencies.len().saturating_sub(1)) as f64 * share;
        latencies.get(index as usize).copied().unwrap_or(f64::NAN)
    };
    Ok((at(0.50), at(0.99)))
}
