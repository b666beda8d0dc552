//! Medians of what was measured, as a table for people and as JSON for programs.

use serde_json::{Value, json};

use super::load::{Load, Run};

/// One load on one way: what came of every round.
#[derive(Debug, Clone)]
pub struct Cell {
    pub load: Load,
    pub way: &'static str,
    pub rounds: Vec<Run>,
}

/// The medians of one cell, and the medians of its ratios within each round.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    pub per_second: f64,
    pub to_direct: f64,
    pub to_hop: f64,
    pub p50: f64,
    pub p99: f64,
    /// Of the way's own process, in microseconds per transaction.
    pub cpu: Option<f64>,
    /// The same beyond the hop's.
    pub over_hop: Option<f64>,
    pub p99_to_hop: f64,
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Summarises `cell`, held against the same load's cells of `direct` and `hop`.
pub fn summary(cell: &Cell, direct: &Cell, hop: &Cell) -> Summary {
    let own = |what: fn(&Run) -> f64| median(cell.rounds.iter().map(what).collect());
    let ratio = |other: &Cell, what: fn(&Run) -> f64| {
        let pairs = cell.rounds.iter().zip(&other.rounds);
        median(pairs.map(|(one, other)| what(one) / what(other)).collect())
    };
    let cpu = |run: &Run| run.cpu.unwrap_or(f64::NAN);
    let pairs = cell.rounds.iter().zip(&hop.rounds);
    let over = median(pairs.map(|(one, hop)| cpu(one) - cpu(hop)).collect());
    Summary {
        per_second: own(|run| run.per_second),
        to_direct: ratio(direct, |run| run.per_second),
        to_hop: ratio(hop, |run| run.per_second),
        p50: own(|run| run.p50),
        p99: own(|run| run.p99),
        cpu: Some(median(cell.rounds.iter().map(cpu).collect())).filter(|cpu| !cpu.is_nan()),
        over_hop: Some(over).filter(|over| !over.is_nan()),
        p99_to_hop: ratio(hop, |run| run.p99),
    }
}

pub fn print(load: &Load, rows: &[(&'static str, Summary)]) {
    println!("\n{}", load.name);
    println!(
        "  way        per second  /direct   /hop   p50 µs   p99 µs  p99/hop  CPU µs  over hop"
    );
    for (way, it) in rows {
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        println!(
            "  {way:<9} {:>11.0} {:>8.2} {:>6.2} {:>8.0} {:>8.0} {:>8.2} {:>7} {:>9}",
            it.per_second,
            it.to_direct,
            it.to_hop,
            it.p50,
            it.p99,
            it.p99_to_hop,
            number(it.cpu),
            number(it.over_hop),
        );
    }
}

pub fn to_json(load: &Load, way: &str, it: &Summary, cell: &Cell) -> Value {
    json!({
        "load": load.name,
        "way": way,
        "transactions_per_second": it.per_second,
        "ratio_to_direct": it.to_direct,
        "ratio_to_hop": it.to_hop,
        "p50_us": it.p50,
        "p99_us": it.p99,
        "p99_ratio_to_hop": it.p99_to_hop,
        "cpu_us_per_transaction": it.cpu,
        "cpu_us_over_hop": it.over_hop,
        "rounds": cell.rounds.iter().map(|run| json!({
            "transactions": run.transactions,
            "per_second": run.per_second,
            "p50_us": run.p50,
            "p99_us": run.p99,
            "cpu_us": run.cpu,
        })).collect::<Vec<_>>(),
    })
}
