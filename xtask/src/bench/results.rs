//! Large results: millions of rows as text, in binary and by COPY, with and without masked columns.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::evidence::{self, Expected};
use super::report::Spread;
use super::site::{Site, Way};
use super::{process, rows};
use crate::demo::database;
use crate::toolchain;

/// One kind of result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub format: &'static str,
    pub masked: usize,
    pub tenfold: bool,
}

impl Shape {
    fn rows(self) -> u64 {
        if self.tenfold { 10_000_000 } else { 1_000_000 }
    }

    pub fn name(self) -> String {
        let rows = if self.tenfold { "1e7" } else { "1e6" };
        format!("{rows} rows, {}, {} masked", self.format, self.masked)
    }

    fn statement(self) -> String {
        let select = rows::select(self.masked, self.tenfold);
        match self.format {
            "copy" => format!("COPY ({select}) TO STDOUT"),
            _ => select,
        }
    }
}

/// One result over one way.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    bytes: u64,
    cpu: Option<f64>,
    /// Of the process in between, in kB.
    growth: Option<u64>,
}

/// Every shape over every way, `rounds` times.
pub fn measure(site: &Site<'_>, shapes: &[Shape], rounds: usize) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for shape in shapes {
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); site.ways.len()];
        for round in 0..rounds {
            toolchain::progress(&format!("{}, round {}", shape.name(), round + 1));
            for turn in 0..site.ways.len() {
                let index = (round + turn) % site.ways.len();
                runs[index].push(run(site, &site.ways[index], *shape)?);
            }
            let sizes: Vec<u64> = runs
                .iter()
                .filter_map(|of| Some(of.last()?.bytes))
                .collect();
            ensure!(
                sizes.iter().all(|size| *size == sizes[0]),
                "{}: the ways delivered {sizes:?} bytes",
                shape.name()
            );
        }
        all.push(summary(site, *shape, &runs));
    }
    Ok(all)
}

fn run(site: &Site<'_>, way: &Way, shape: Shape) -> Result<Run> {
    let before = evidence::mark(site)?;
    let cpu = way.cpu_time()?;
    let memory = way.pid.map(process::resident).transpose()?;
    if let Some(pid) = way.pid {
        process::forget_peak(pid)?;
    }
    let words = site.client(&["result", shape.format, &shape.statement()]);
    let mut command = site.command(way, &words);
    let output = command.stderr(Stdio::piped()).output()?;
    ensure!(
        output.status.success(),
        "{} on {}: {}",
        shape.name(),
        way.name,
        String::from_utf8_lossy(&output.stderr)
    );
    let used = way.cpu_time()?.zip(cpu);
    let peak = way.pid.map(process::peak).transpose()?;
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| found[name].as_u64().context("the client counts");
    ensure!(
        number("rows")? == shape.rows(),
        "{}: {} rows came",
        shape.name(),
        found["rows"]
    );
    let values = shape.rows() * shape.masked as u64;
    // On the other ways all of them are there: the client does find them.
    let clear = if way.is_gateway() { 0 } else { values };
    ensure!(
        number("marks")? == clear,
        "{} on {}: {} clear values, not {clear}",
        shape.name(),
        way.name,
        found["marks"]
    );
    evidence::check(
        site,
        way,
        before,
        &Expected {
            what: shape.name(),
            statements: 1,
            startup: evidence::startup(&["user", database::USER, "database", database::NAME]),
            masked: values,
        },
    )?;
    if way.is_gateway() {
        evidence::verify_and_remove(site, before)?;
    }
    Ok(Run {
        seconds: found["seconds"]
            .as_f64()
            .context("the client has a clock")?,
        bytes: number("bytes")?,
        cpu: used.map(|(after, before)| after.saturating_sub(before).as_secs_f64()),
        growth: peak
            .zip(memory)
            .map(|(peak, before)| peak.saturating_sub(before)),
    })
}

fn summary(site: &Site<'_>, shape: Shape, runs: &[Vec<Run>]) -> Value {
    let direct = &runs[0];
    let ways = site.ways.iter().zip(runs).map(|(way, runs)| {
        let of = |what: fn(&Run) -> f64| Spread::of(runs.iter().map(what).collect());
        let pairs = runs.iter().zip(direct);
        let ratio = Spread::of(
            pairs
                .map(|(own, direct)| direct.seconds / own.seconds)
                .collect(),
        );
        let growth = runs.iter().filter_map(|run| run.growth).max();
        json!({
            "way": way.name,
            "seconds": of(|run| run.seconds).json(),
            "ratio_to_direct": ratio.json(),
            "cpu_seconds": of(|run| run.cpu.unwrap_or(f64::NAN)).json(),
            "memory_growth_kb": growth,
        })
    });
    json!({
        "result": shape.name(),
        "bytes": direct.first().map(|run| run.bytes),
        "ways": ways.collect::<Vec<_>>(),
    })
}
