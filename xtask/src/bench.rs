//! `cargo xtask bench`: what enforcement costs, held against the server itself and a plain hop.
//!
//! The same work is run on every way in turn, several rounds of it, so that whatever else the machine does falls on
//! all of them; ratios are taken within a round and medians over the rounds. A run of the gateway counts only if
//! its evidence is exact: as many statements in the log as pgbench counted transactions, and a log that verifies.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::demo::leftovers::Stage;
use crate::{build, build_ebpf, packages, toolchain};

mod evidence;
mod hop;
mod load;
mod process;
mod profile;
mod report;
mod site;

use load::Load;
use report::Cell;
use site::Site;

/// How much is measured.
struct Plan {
    loads: &'static [Load],
    rounds: usize,
    duration: Duration,
}

pub fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["hop", listen, target] => hop::run(listen.parse()?, target.parse()?),
        [] => measure(&Plan {
            loads: load::ALL,
            rounds: 5,
            duration: Duration::from_secs(5),
        }),
        ["quick"] => measure(&Plan {
            loads: load::QUICK,
            rounds: 5,
            duration: Duration::from_secs(2),
        }),
        ["profile"] => profile(load::QUICK),
        _ => bail!("bench takes nothing, quick, or profile"),
    }
}

fn measure(plan: &Plan) -> Result<()> {
    packages::require_root("bench")?;
    packages::for_demo()?;
    build::run(&["--release".to_owned()])?;
    build_hop()?;
    let stage = Stage::set(false)?;
    let measured = Site::set_up(&stage, &programs()).and_then(|site| rounds(plan, &site));
    stage.clear_away()?;
    show(plan, &measured?)
}

/// Where the gateway spends its time under each load.
fn profile(loads: &[Load]) -> Result<()> {
    packages::require_root("bench profile")?;
    packages::for_demo()?;
    build::run(&["--release".to_owned()])?;
    build_hop()?;
    let stage = Stage::set(false)?;
    let profiled = Site::set_up(&stage, &programs()).and_then(|site| profile::record(&site, loads));
    stage.clear_away()?;
    profiled
}

fn build_hop() -> Result<()> {
    let mut cargo = toolchain::cargo();
    cargo.args(["build", "--release", "--package", "xtask"]);
    let status = cargo.current_dir(build_ebpf::workspace()).status()?;
    ensure!(status.success(), "the hop does not build");
    Ok(())
}

fn programs() -> PathBuf {
    build_ebpf::target_folder().join("release")
}

fn rounds(plan: &Plan, site: &Site<'_>) -> Result<Vec<Cell>> {
    let mut cells: Vec<Cell> = Vec::new();
    for load in plan.loads {
        let first = cells.len();
        cells.extend(site.ways.iter().map(|way| Cell {
            load: *load,
            way: way.name,
            rounds: Vec::new(),
        }));
        for round in 0..plan.rounds {
            toolchain::progress(&format!("{}, round {}", load.name, round + 1));
            // Another begins in each round: whoever comes first finds other caches.
            for turn in 0..site.ways.len() {
                let index = (round + turn) % site.ways.len();
                let way = &site.ways[index];
                let before = evidence::mark(site)?;
                let run = load.run(site, way, plan.duration)?;
                evidence::check(site, way, load, &run, before)?;
                cells[first + index].rounds.push(run);
            }
        }
    }
    evidence::verify(site)?;
    Ok(cells)
}

fn show(plan: &Plan, cells: &[Cell]) -> Result<()> {
    println!("{}", load::version()?);
    let mut rows = Vec::new();
    for load in plan.loads {
        let of = |way: &str| {
            cells
                .iter()
                .find(|cell| cell.load == *load && cell.way == way)
        };
        let (direct, hop) = of("direct").zip(of("hop")).context("both are always run")?;
        let own = cells.iter().filter(|cell| cell.load == *load);
        let summaries: Vec<_> = own
            .map(|cell| (cell, report::summary(cell, direct, hop)))
            .collect();
        let printed: Vec<_> = summaries.iter().map(|(cell, it)| (cell.way, *it)).collect();
        report::print(load, &printed);
        rows.extend(
            summaries
                .iter()
                .map(|(cell, it)| report::to_json(load, cell.way, it, cell)),
        );
    }
    let file = build_ebpf::target_folder().join("bench.json");
    fs::write(&file, serde_json::to_string_pretty(&rows)?)?;
    println!("\nevery round: {}", file.display());
    Ok(())
}
