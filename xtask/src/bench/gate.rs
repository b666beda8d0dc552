//! The regression gate: the gateway's processor time per transaction as a multiple of the hop's, in the same round,
//! held against a committed baseline.
//!
//! Of all figures this is the one that other work on the machine moves least. Still, what is over the limit is measured
//! once more before it counts.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::load::{self, Load};
use super::report::Spread;
use super::site::Site;
use super::{evidence, rounds};
use crate::build_ebpf;

/// How much worse than the baseline is no noise any more.
const TOLERANCE: f64 = 1.15;

const ROUNDS: usize = 7;
const DURATION: Duration = Duration::from_secs(2);

/// Load by load, the median of gateway over hop.
type Ratios = BTreeMap<String, f64>;

/// Measures and compares; with `write`, what was measured becomes the baseline.
pub fn run(site: &mut Site<'_>, write: bool) -> Result<()> {
    let baseline = if write { Ratios::new() } else { baseline()? };
    site.guard("load")?;
    site.start_gateway()?;
    // The server itself is not part of the comparison.
    site.ways.retain(|way| way.pid.is_some());
    let found = measure(site, load::GATE)?;
    if write {
        fs::write(file(), serde_json::to_string_pretty(&found)? + "\n")?;
        println!("baseline: {}", file().display());
        return Ok(());
    }
    print(&found, &baseline);
    let worse = worse(&found, &baseline)?;
    if worse.is_empty() {
        return Ok(());
    }
    println!("once more: {}", worse.join(", "));
    let again: Vec<Load> = load::GATE
        .iter()
        .filter(|load| worse.iter().any(|name| name == load.name))
        .copied()
        .collect();
    let found = measure(site, &again)?;
    print(&found, &baseline);
    let worse = self::worse(&found, &baseline)?;
    ensure!(
        worse.is_empty(),
        "slower than the baseline by more than {:.0} %, twice: {}. Where the time goes: `cargo xtask bench profile`; \
         where it is meant: `cargo xtask bench gate --write`",
        (TOLERANCE - 1.0) * 100.0,
        worse.join(", ")
    );
    Ok(())
}

fn measure(site: &Site<'_>, loads: &[Load]) -> Result<Ratios> {
    let cells = rounds(loads, ROUNDS, DURATION, site)?;
    println!("{}", evidence::verify(site)?);
    let mut ratios = Ratios::new();
    for load in loads {
        let of = |name: &str| {
            let cell = cells.iter().find(|it| it.load == *load && it.way == name);
            cell.map(|cell| &cell.rounds)
        };
        let pairs = of("gateway").into_iter().flatten();
        let pairs = pairs.zip(of("hop").into_iter().flatten());
        let rounds = pairs.filter_map(|(own, hop)| Some(own.cpu? / hop.cpu?));
        ratios.insert(load.name.to_owned(), Spread::of(rounds.collect()).median);
    }
    Ok(ratios)
}

fn print(found: &Ratios, baseline: &Ratios) {
    println!("\nCPU per transaction, gateway/hop      now   baseline   limit");
    for (load, ratio) in found {
        let before = baseline.get(load).copied().unwrap_or(f64::NAN);
        println!(
            "  {load:<32} {ratio:>7.2} {before:>10.2} {:>7.2}",
            before * TOLERANCE
        );
    }
}

/// Loads that are over the limit. A load without a baseline is an error: it would never be.
fn worse(found: &Ratios, baseline: &Ratios) -> Result<Vec<String>> {
    let mut worse = Vec::new();
    for (load, ratio) in found {
        let before = baseline.get(load);
        let before = before.with_context(|| format!("{load} is not in {}", file().display()))?;
        // What is not a number is no good news either.
        if ratio.is_nan() || *ratio > before * TOLERANCE {
            worse.push(load.clone());
        }
    }
    Ok(worse)
}

fn baseline() -> Result<Ratios> {
    let text = fs::read_to_string(file())
        .with_context(|| format!("no {}: cargo xtask bench gate --write", file().display()))?;
    let values: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)?;
    let numbers = values.into_iter().map(|(load, value)| {
        let ratio = value.as_f64();
        Ok((load, ratio.context("a baseline is a number")?))
    });
    numbers.collect()
}

fn file() -> PathBuf {
    build_ebpf::workspace().join("xtask/bench-baseline.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratios(of: &[(&str, f64)]) -> Ratios {
        of.iter()
            .map(|(name, ratio)| ((*name).to_owned(), *ratio))
            .collect()
    }

    #[test]
    fn fifteen_percent_are_tolerated_and_nothing_unknown() {
        let baseline = ratios(&[("a", 2.0)]);
        let is_worse = |ratio| {
            !worse(&ratios(&[("a", ratio)]), &baseline)
                .unwrap()
                .is_empty()
        };
        assert!(!is_worse(1.0));
        assert!(!is_worse(2.3));
        assert!(is_worse(2.31));
        assert!(is_worse(f64::NAN));
        assert!(worse(&ratios(&[("b", 1.0)]), &baseline).is_err());
    }
}
