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

/// A median and the quartiles around it.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub q1: f64,
    pub q3: f64,
}

impl Spread {
    /// Values that are not known are left out.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.retain(|value| !value.is_nan());
        values.sort_by(f64::total_cmp);
        // Between two values, in proportion: as numpy and R have it.
        let at = |share: f64| {
            let place = values.len().saturating_sub(1) as f64 * share;
            let below = values.get(place.floor() as usize)?;
            let above = values.get(place.ceil() as usize)?;
            Some(below + (above - below) * place.fract())
        };
        let at = |share| at(share).unwrap_or(f64::NAN);
        Self {
            median: at(0.50),
            q1: at(0.25),
            q3: at(0.75),
        }
    }

    /// Null where nothing is known.
    pub fn json(self) -> Value {
        match self.median.is_nan() {
            true => Value::Null,
            false => json!({ "median": self.median, "q1": self.q1, "q3": self.q3 }),
        }
    }
}

/// One cell, and its ratios within each round.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    pub per_second: Spread,
    pub to_direct: Spread,
    pub to_hop: Spread,
    pub p50: Spread,
    pub p99: Spread,
    /// Of the way's own process, in microseconds per transaction.
    pub cpu: Spread,
    /// The same beyond the hop's, and as a multiple of it.
    pub over_hop: Spread,
    pub cpu_to_hop: Spread,
    pub p99_to_hop: Spread,
    /// In kB, the most of all rounds.
    pub resident: Option<u64>,
}

/// Summarises `cell`, held against the same load's cells of `direct` and `hop`.
pub fn summary(cell: &Cell, direct: &Cell, hop: &Cell) -> Summary {
    let own = |what: fn(&Run) -> f64| Spread::of(cell.rounds.iter().map(what).collect());
    let ratio = |other: &Cell, what: fn(&Run) -> f64| {
        let pairs = cell.rounds.iter().zip(&other.rounds);
        Spread::of(pairs.map(|(one, other)| what(one) / what(other)).collect())
    };
    let cpu = |run: &Run| run.cpu.unwrap_or(f64::NAN);
    let pairs = cell.rounds.iter().zip(&hop.rounds);
    let over = Spread::of(pairs.map(|(one, hop)| cpu(one) - cpu(hop)).collect());
    Summary {
        per_second: own(|run| run.per_second),
        to_direct: ratio(direct, |run| run.per_second),
        to_hop: ratio(hop, |run| run.per_second),
        p50: own(|run| run.p50),
        p99: own(|run| run.p99),
        cpu: own(cpu),
        over_hop: over,
        cpu_to_hop: ratio(hop, cpu),
        p99_to_hop: ratio(hop, |run| run.p99),
        resident: cell.rounds.iter().filter_map(|run| run.resident).max(),
    }
}

pub fn print(load: &Load, rows: &[(&'static str, Summary)]) {
    println!("\n{}", load.name);
    println!(
        "  way        per second  /direct   /hop   p50 µs   p99 µs  p99/hop  CPU µs  over hop  /hop"
    );
    for (way, it) in rows {
        let number = |spread: Spread, digits: usize| match spread.median.is_nan() {
            true => "-".to_owned(),
            false => format!("{:.digits$}", spread.median),
        };
        println!(
            "  {way:<9} {:>11} {:>8} {:>6} {:>8} {:>8} {:>8} {:>7} {:>9} {:>5}",
            number(it.per_second, 0),
            number(it.to_direct, 2),
            number(it.to_hop, 2),
            number(it.p50, 0),
            number(it.p99, 0),
            number(it.p99_to_hop, 2),
            number(it.cpu, 1),
            number(it.over_hop, 1),
            number(it.cpu_to_hop, 2),
        );
    }
}

pub fn to_json(load: &Load, way: &str, it: &Summary, cell: &Cell) -> Value {
    json!({
        "load": load.name,
        "way": way,
        "per_second": it.per_second.json(),
        "to_direct": it.to_direct.json(),
        "to_hop": it.to_hop.json(),
        "p50_us": it.p50.json(),
        "p99_us": it.p99.json(),
        "p99_to_hop": it.p99_to_hop.json(),
        "cpu_us": it.cpu.json(),
        "cpu_us_over_hop": it.over_hop.json(),
        "cpu_to_hop": it.cpu_to_hop.json(),
        "resident_kb": it.resident,
        "rounds": cell.rounds.iter().map(|run| json!({
            "transactions": run.transactions,
            "per_second": run.per_second,
            "p50_us": run.p50,
            "p99_us": run.p99,
            "cpu_us": run.cpu,
        })).collect::<Vec<_>>(),
    })
}

/// A number of the JSON, or a dash.
fn shown(value: &Value, digits: usize) -> String {
    let number = value.as_f64().or_else(|| value["median"].as_f64());
    number.map_or("-".to_owned(), |number| format!("{number:.digits$}"))
}

pub fn print_connects(rows: &[Value]) {
    if rows.is_empty() {
        return;
    }
    println!("\nconnecting                                      µs      over");
    for row in rows {
        println!(
            "  {:<42} {:>7} {:>9}",
            row["what"].as_str().unwrap_or_default(),
            shown(&row["us"], 1),
            shown(&row["us_over"], 1)
        );
    }
}

pub fn print_sessions(rows: &[Value]) {
    if rows.is_empty() {
        return;
    }
    println!(
        "\nsessions held       kB each, open   after a statement   before   afterwards   seconds"
    );
    for row in rows {
        println!(
            "  {:>5} {:<10} {:>15} {:>19} {:>8} {:>12} {:>9}",
            row["sessions"],
            row["way"].as_str().unwrap_or_default(),
            shown(&row["kb_per_open_session"], 1),
            shown(&row["kb_per_session_after_a_statement"], 1),
            row["pss_before_kb"],
            row["pss_after_kb"],
            shown(&row["seconds_to_open"], 1),
        );
    }
}

pub fn print_results(rows: &[Value]) {
    for row in rows {
        println!(
            "\n{} ({:.0} MB)\n  way         seconds  /direct   CPU s   memory +kB",
            row["result"].as_str().unwrap_or_default(),
            row["bytes"].as_f64().unwrap_or_default() / 1e6
        );
        for way in row["ways"].as_array().into_iter().flatten() {
            println!(
                "  {:<10} {:>8} {:>8} {:>7} {:>12}",
                way["way"].as_str().unwrap_or_default(),
                shown(&way["seconds"], 2),
                shown(&way["ratio_to_direct"], 2),
                shown(&way["cpu_seconds"], 2),
                shown(&way["memory_growth_kb"], 0),
            );
        }
    }
}

pub fn print_start(start: &Value) {
    if !start.is_null() {
        println!(
            "\nstart with {} agents and {} policies: guard {} s, ready after {} s, {} kB resident; with one agent and a log of {} MB {} s, {} kB",
            start["agents"],
            start["policies"],
            shown(&start["guard_seconds"], 2),
            shown(&start["seconds_until_ready"], 2),
            start["resident_kb"],
            shown(&start["log_mb"], 0),
            shown(&start["seconds_with_that_log"], 2),
            start["resident_kb_with_that_log"],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_values() {
        let spread = Spread::of(vec![4.0, 1.0, f64::NAN, 3.0, 2.0]);
        assert_eq!((spread.q1, spread.median, spread.q3), (1.75, 2.5, 3.25));
        assert!(Spread::of(Vec::new()).median.is_nan());
    }
}
