//! Single steps of the gateway's, by criterion: `gateway/benches`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{build_ebpf, toolchain};

/// Runs all of them and answers a row for each.
pub fn run() -> Result<Vec<Value>> {
    let results = build_ebpf::target_folder().join("criterion");
    // What other runs left would be read as this one's.
    if results.exists() {
        fs::remove_dir_all(&results)?;
    }
    let mut cargo = toolchain::cargo();
    cargo.args(["bench", "--package", "gateway", "--bench", "steps"]);
    let status = cargo.current_dir(build_ebpf::workspace()).status()?;
    ensure!(status.success(), "the micro-benches failed");
    let mut rows = Vec::new();
    collect(&results, &mut rows)?;
    ensure!(!rows.is_empty(), "nothing in {}", results.display());
    rows.sort_by_key(order);
    Ok(rows)
}

/// By step, then by size: `facts, new/bytes/1000`.
fn order(row: &Value) -> (String, u64) {
    let step = row["step"].as_str().unwrap_or_default();
    match step.rsplit_once('/') {
        Some((name, size)) => (name.to_owned(), size.parse().unwrap_or(0)),
        None => (step.to_owned(), 0),
    }
}

pub fn print(rows: &[Value]) {
    println!("\n{:<52} {:>12} {:>8}", "step", "ns", "GB/s");
    for row in rows {
        let number = |name: &str, digits: usize| {
            let number = row[name].as_f64();
            number.map_or("-".to_owned(), |number| format!("{number:.digits$}"))
        };
        println!(
            "{:<52} {:>12} {:>8}",
            row["step"].as_str().unwrap_or_default(),
            number("ns", 0),
            number("gb_per_second", 3)
        );
    }
}

/// Criterion leaves a folder for each bench, with `new/benchmark.json` and `new/estimates.json`.
fn collect(folder: &Path, rows: &mut Vec<Value>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.ends_with("new") && path.join("estimates.json").exists() {
            rows.push(row(&path)?);
        } else if path.is_dir() {
            collect(&path, rows)?;
        }
    }
    Ok(())
}

fn row(folder: &Path) -> Result<Value> {
    let read = |name: &str| -> Result<Value> {
        let file: PathBuf = folder.join(name);
        let text = fs::read_to_string(&file);
        let text = text.with_context(|| format!("reading {}", file.display()))?;
        Ok(serde_json::from_str(&text)?)
    };
    let (bench, estimates) = (read("benchmark.json")?, read("estimates.json")?);
    let median = estimates["median"]["point_estimate"].as_f64();
    let ns = median.context("criterion writes a median")?;
    let throughput = &bench["throughput"];
    let bytes = throughput["Bytes"].as_u64();
    let items = throughput["Elements"].as_f64();
    Ok(json!({
        "step": bench["full_id"],
        "bytes": bytes,
        "ns": ns / items.unwrap_or(1.0),
        "gb_per_second": bytes.map(|bytes| bytes as f64 / ns),
    }))
}
