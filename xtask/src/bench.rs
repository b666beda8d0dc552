//! `cargo xtask bench`: what enforcement costs, held against the server itself and a plain hop.
//!
//! The same work is run on every way in turn, several rounds of it, so that whatever else the machine does falls on
//! all of them; ratios are taken within a round and medians over the rounds. A run of the gateway counts only if
//! its evidence is exact (`evidence`): as many statements in the log as pgbench counted transactions, as many bytes in
//! the recordings as the kernel counted on the sockets, no clear value where a mask is, and a log that verifies.
//!
//! Everything that was measured is in `target/bench.json`, and `docs/performance.md` is made from it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::demo::leftovers::Stage;
use crate::{build, build_ebpf, packages, toolchain};

mod client;
mod connects;
mod evidence;
mod flame;
mod gate;
mod hop;
mod load;
mod machine;
mod micro;
mod page;
mod peers;
mod process;
mod profile;
mod recordings;
mod report;
mod results;
mod rows;
mod sessions;
mod site;
mod sockets;
mod start;

use load::Load;
use report::Cell;
use results::Shape;
use site::Site;

/// How much is measured.
struct Plan {
    loads: &'static [Load],
    rounds: usize,
    duration: Duration,
    results: Vec<Shape>,
    result_rounds: usize,
    /// How many sessions are held, one after another.
    sessions: &'static [usize],
    /// Rounds of connects and logins; none at all with 0.
    connects: usize,
    start: bool,
    peers: bool,
    /// Not enough for the page.
    is_part: bool,
}

impl Plan {
    fn whole() -> Self {
        let shapes = |tenfold| {
            ["text", "binary", "copy"]
                .into_iter()
                .flat_map(move |format| {
                    [0, 1, 3].map(|masked| Shape {
                        format,
                        masked,
                        tenfold,
                    })
                })
        };
        Self {
            loads: load::ALL,
            rounds: 5,
            duration: Duration::from_secs(3),
            results: shapes(false).chain(shapes(true)).collect(),
            result_rounds: 5,
            sessions: &[1_000, 5_000],
            connects: 5,
            start: true,
            peers: true,
            is_part: false,
        }
    }

    fn quick() -> Self {
        let shape = |format, masked| Shape {
            format,
            masked,
            tenfold: false,
        };
        Self {
            loads: load::QUICK,
            rounds: 5,
            duration: Duration::from_secs(2),
            results: vec![shape("text", 0), shape("text", 1), shape("copy", 1)],
            result_rounds: 3,
            sessions: &[1_000],
            connects: 3,
            start: true,
            peers: false,
            is_part: false,
        }
    }
}

pub fn run(arguments: &[String]) -> Result<()> {
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut option = |name: &str| {
        let given = words.contains(&name);
        words.retain(|word| *word != name);
        given
    };
    let peers = option("--with-peers");
    if peers {
        packages::for_peers()?;
    }
    let built = option("--built");
    match words[..] {
        ["hop", listen, target] => hop::run(listen.parse()?, target.parse()?),
        ["sink", listen] => hop::sink(listen.parse()?),
        ["client", ref task @ ..] => client::run(task),
        [] => measure(&Plan::whole(), built),
        ["quick"] => {
            let quick = Plan::quick();
            measure(&Plan { peers, ..quick }, built)
        }
        ["part", ref parts @ ..] => measure(&part(parts)?, built),
        ["profile"] => at_a_site(built, profile),
        ["hold"] => at_a_site(built, hold),
        ["gate"] => at_a_site(built, |mut site| gate::run(&mut site, false)),
        ["gate", "--write"] => at_a_site(built, |mut site| gate::run(&mut site, true)),
        ["micro"] => micro_alone(),
        ["report"] => page::again(),
        _ => bail!(
            "bench takes nothing, quick, part PART…, profile, hold, gate [--write], micro, or report; \
             --with-peers installs pgbouncer and HAProxy first, --built measures the release builds that are there"
        ),
    }
}

/// Only some parts of the quick run: for whoever works on one of them.
fn part(parts: &[&str]) -> Result<Plan> {
    let known = [
        "loads", "results", "sessions", "crowd", "connects", "start", "peers",
    ];
    if let Some(part) = parts.iter().find(|part| !known.contains(part)) {
        bail!("no part {part}: {known:?}");
    }
    let has = |part| parts.contains(&part);
    let mut plan = Plan::quick();
    if !has("loads") {
        plan.loads = &[];
    }
    if !has("results") {
        plan.results.clear();
    }
    plan.sessions = match (has("sessions"), has("crowd")) {
        (true, true) => &[1_000, 5_000],
        (true, false) => &[1_000],
        (false, true) => &[5_000],
        (false, false) => &[],
    };
    if !has("connects") {
        plan.connects = 0;
    }
    plan.start = has("start");
    plan.peers = has("peers");
    plan.is_part = true;
    Ok(plan)
}

fn measure(plan: &Plan, built: bool) -> Result<()> {
    let mut run = at_a_site(built, |site| everything(plan, site))?;
    // The micro-benches have a run of their own.
    if let Ok(before) = last_run() {
        run["micro"] = before["micro"].clone();
    }
    save(&run)?;
    match plan.is_part {
        true => Ok(()),
        false => page::write(&run),
    }
}

fn micro_alone() -> Result<()> {
    // The gateway does not compile without the kernel programs that it embeds.
    build_ebpf::build()?;
    let rows = micro::run()?;
    micro::print(&rows);
    let mut run = last_run().unwrap_or_else(|_| json!({ "machine": machine::describe() }));
    run["micro"] = Value::Array(rows);
    save(&run)?;
    page::write(&run)
}

fn last_run() -> Result<Value> {
    let run: Value = serde_json::from_str(&fs::read_to_string(page::json())?)?;
    ensure!(run.is_object(), "the last run was written by another bench");
    Ok(run)
}

fn save(run: &Value) -> Result<()> {
    let file = page::json();
    fs::write(&file, serde_json::to_string_pretty(run)?)?;
    println!("\nevery round: {}", file.display());
    Ok(())
}

/// Builds, sets everything up but the gateway, and clears it away again whatever comes of it.
/// `built`: the release builds that are there are taken as they are.
fn at_a_site<T>(built: bool, act: impl FnOnce(Site<'_>) -> Result<T>) -> Result<T> {
    packages::require_root("bench")?;
    packages::for_bench()?;
    if !built {
        build_all()?;
    }
    let stage = Stage::set(false)?;
    let done = Site::prepare(&stage, &programs()).and_then(act);
    let cleared = stage.clear_away();
    let done = done?;
    cleared?;
    Ok(done)
}

/// Where the gateway spends its time under each load.
fn profile(mut site: Site<'_>) -> Result<()> {
    site.guard("load")?;
    site.start_gateway()?;
    profile::record(&site, load::QUICK)
}

/// Sets everything up and waits, for whoever wants to look closer with tools of their own.
fn hold(mut site: Site<'_>) -> Result<()> {
    site.guard("load")?;
    site.start_gateway()?;
    for way in &site.ways {
        let pid = way
            .pid
            .map_or(String::new(), |pid| format!(", process {pid}"));
        let arguments: Vec<_> = site
            .command(way, &["\"$@\""])
            .get_args()
            .map(|word| word.display().to_string())
            .collect();
        println!("{}: port {}{pid}\n  sh {arguments:?}", way.name, way.port);
    }
    println!("ends with its input");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn build_all() -> Result<()> {
    build::run(&["--release".to_owned()])?;
    let mut cargo = toolchain::cargo();
    cargo.args(["build", "--release", "--package", "xtask"]);
    let status = cargo.current_dir(build_ebpf::workspace()).status()?;
    ensure!(status.success(), "the hop does not build");
    Ok(())
}

fn programs() -> PathBuf {
    build_ebpf::target_folder().join("release")
}

fn everything(plan: &Plan, mut site: Site<'_>) -> Result<Value> {
    let machine = machine::describe();
    let mut connecting = Vec::new();
    match plan.connects {
        0 => site.guard("load")?,
        rounds => connecting.extend(connects::bystanders(&site, rounds)?),
    }
    site.start_gateway()?;
    if plan.connects > 0 {
        connecting.extend(connects::agents(&site, plan.connects)?);
    }
    report::print_connects(&connecting);
    let mut held = Vec::new();
    for count in plan.sessions {
        held.extend(sessions::measure(&site, *count)?);
    }
    report::print_sessions(&held);
    // Before the loads: after each result the log is verified, and now it is short.
    let results = results::measure(&site, &plan.results, plan.result_rounds)?;
    report::print_results(&results);
    if plan.peers {
        site.start_peers()?;
    }
    let cells = rounds(plan.loads, plan.rounds, plan.duration, &site)?;
    let loads = loads(plan, &cells)?;
    // At the end: a file system that has just deleted a site's files is slow to make new ones.
    if plan.connects > 0 {
        let logins = connects::logins(&site, plan.connects)?;
        report::print_connects(&logins);
        connecting.extend(logins);
    }
    println!("\n{}", evidence::verify(&site)?);
    let start = match plan.start {
        true => start::measure(&site)?,
        false => Value::Null,
    };
    report::print_start(&start);
    let ways = site
        .ways
        .iter()
        .map(|way| json!({ "way": way.name, "inspects": way.inspects, "pools": way.pools }));
    Ok(json!({
        "machine": machine,
        "ways": ways.collect::<Vec<_>>(),
        "loads": loads,
        "results": results,
        "sessions": held,
        "connects": connecting,
        "start": start,
    }))
}

fn rounds(loads: &[Load], rounds: usize, duration: Duration, site: &Site<'_>) -> Result<Vec<Cell>> {
    let mut cells: Vec<Cell> = Vec::new();
    for load in loads {
        let first = cells.len();
        cells.extend(site.ways.iter().map(|way| Cell {
            load: *load,
            way: way.name,
            rounds: Vec::new(),
        }));
        for round in 0..rounds {
            toolchain::progress(&format!("{}, round {}", load.name, round + 1));
            // Another begins in each round: whoever comes first finds other caches.
            for turn in 0..site.ways.len() {
                let index = (round + turn) % site.ways.len();
                let way = &site.ways[index];
                let before = evidence::mark(site)?;
                let run = load.run(site, way, duration)?;
                evidence::check(site, way, before, &load.expected(&run))?;
                cells[first + index].rounds.push(run);
            }
        }
    }
    Ok(cells)
}

fn loads(plan: &Plan, cells: &[Cell]) -> Result<Vec<Value>> {
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
    Ok(rows)
}
