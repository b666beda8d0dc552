//! What connecting costs: to agents, who are redirected, and to everybody else, with and without the guard.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::evidence::{self, Expected};
use super::report::Spread;
use super::site::Site;
use crate::demo::database;
use crate::toolchain;

/// Connects in one go, and logins.
const CONNECTS: &str = "1000";
const LOGINS: u64 = 100;

/// Of processes that are no agents, below the guard's cgroup; the guard is loaded and taken away in turn. The
/// gateway does not run yet. It is loaded afterwards.
pub fn bystanders(site: &Site<'_>, rounds: usize) -> Result<Vec<Value>> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let cgroup = site.bystanders()?;
    for round in 0..rounds {
        toolchain::progress(&format!("connects of others, round {}", round + 1));
        without.push(connects(site, Some(&cgroup), site.sink.port)?);
        site.guard("load")?;
        with.push(connects(site, Some(&cgroup), site.sink.port)?);
        if round + 1 < rounds {
            site.guard("unload")?;
        }
    }
    let mut rows = rows("others, no guard", &without, &without);
    rows.extend(self::rows("others, guard loaded", &with, &without));
    Ok(rows)
}

/// Of agents, beside those of others, to a server that does nothing and to the port that agents are redirected to.
pub fn agents(site: &Site<'_>, rounds: usize) -> Result<Vec<Value>> {
    let (mut redirected, mut same, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let (agents, bystanders) = (&site.gateway()?.cgroup, site.bystanders()?);
    for round in 0..rounds {
        toolchain::progress(&format!("connects of agents, round {}", round + 1));
        others.push(connects(site, Some(&bystanders), site.sink.port)?);
        same.push(connects(site, Some(&bystanders), site.listen)?);
        redirected.push(connects(site, agents.as_deref(), site.database.port)?);
    }
    let mut rows = rows("others, gateway running", &others, &others);
    // They are not let in, but they wake the same process: the difference to agents is what the kernel programs do.
    rows.extend(self::rows(
        "others, to the gateway's own port",
        &same,
        &others,
    ));
    rows.extend(self::rows("agents, redirected there", &redirected, &same));
    Ok(rows)
}

/// From connect to ReadyForQuery, over every way.
pub fn logins(site: &Site<'_>, rounds: usize) -> Result<Vec<Value>> {
    let mut medians: Vec<Vec<f64>> = vec![Vec::new(); site.ways.len()];
    for round in 0..rounds {
        toolchain::progress(&format!("logins, round {}", round + 1));
        for turn in 0..site.ways.len() {
            let index = (round + turn) % site.ways.len();
            let way = &site.ways[index];
            let before = evidence::mark(site)?;
            let words = site.client(&["logins", &LOGINS.to_string()]);
            medians[index].push(median(&run(site.command(way, &words))?)?);
            evidence::check(
                site,
                way,
                before,
                &Expected {
                    what: "logins".to_owned(),
                    statements: 0,
                    startup: evidence::startup(&[
                        "user",
                        database::USER,
                        "database",
                        database::NAME,
                    ]),
                    masked: 0,
                },
            )?;
        }
    }
    let hop = site.ways.iter().position(|way| way.name == "hop");
    let hop = medians[hop.context("there is a hop")?].clone();
    let named = site.ways.iter().zip(&medians);
    Ok(named
        .map(|(way, medians)| row(&format!("login, {}", way.name), medians, &hop))
        .collect())
}

/// Medians of connect(2) and of close(2), in microseconds.
#[derive(Debug, Clone, Copy)]
struct Calls {
    connect: f64,
    close: f64,
}

fn connects(site: &Site<'_>, cgroup: Option<&Path>, port: u16) -> Result<Calls> {
    let words = site.client(&["connects", CONNECTS]);
    let found = run(site.command_in(cgroup, port, &words))?;
    Ok(Calls {
        connect: median(&found["connect"])?,
        close: median(&found["close"])?,
    })
}

fn rows(whose: &str, rounds: &[Calls], against: &[Calls]) -> Vec<Value> {
    let row_of = |call: &str, of: fn(&Calls) -> f64| {
        let medians = |rounds: &[Calls]| rounds.iter().map(of).collect::<Vec<_>>();
        row(
            &format!("{call}, {whose}"),
            &medians(rounds),
            &medians(against),
        )
    };
    vec![
        row_of("connect", |calls| calls.connect),
        row_of("close", |calls| calls.close),
    ]
}

fn run(mut command: std::process::Command) -> Result<Value> {
    let output = command.stderr(Stdio::piped()).output()?;
    ensure!(
        output.status.success(),
        "a client failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn median(found: &Value) -> Result<f64> {
    found["median"]
        .as_f64()
        .context("the client tells a median")
}

/// The median over the rounds, and of the differences to what it is held against.
fn row(what: &str, rounds: &[f64], against: &[f64]) -> Value {
    let pairs = rounds.iter().zip(against);
    let over = Spread::of(pairs.map(|(own, other)| own - other).collect());
    json!({
        "what": what,
        "us": Spread::of(rounds.to_vec()).json(),
        "us_over": over.json(),
    })
}
