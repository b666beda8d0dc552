//! `docs/performance.md`, made from the JSON of a run and from what people wrote about it.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::build_ebpf;

const INTRODUCTION: &str = "\
# Performance

What it costs that every statement is parsed, decided, recorded and put into the log. This page is made by
`cargo xtask bench` from `target/bench.json` (`cargo xtask bench report` makes it again); the last part is
[performance-notes.md](performance-notes.md), which people write.

";

const HOW: &str = "
## How it is measured

* The same work is done over every way in turn, round by round, and another way begins each round. Ratios are taken within a
  round; a cell is the median over the rounds, with the quartiles behind it where it says so. Trust ratios and CPU
  time, not absolute figures: client, proxy and server share the machine.
* *direct* is PostgreSQL itself. *hop* is a plain tokio `copy_bidirectional` with two workers, the least that a process in between can cost.
  *gateway* is reached through the eBPF redirect, from an agent's cgroup, with identity, policies, masks, recording and log on.
* CPU is the proxy's own, user and system, from `/proc/PID/stat`.
* A run of the gateway counts only if the log has exactly one intent and one result for each statement that the client counted, the
  recordings' payload is exactly what the kernel counted on the agents' sockets (tcp_info(7), as each socket ends) less the
  StartupMessage, the server's sockets carried the same and at most 4 KB more per session for the gateway's own login
  and a Describe with its answer per statement, no clear value of a masked column arrived, and `sluice audit verify` finds nothing. Anything else ends the run.
* Recordings and log are on the disk that the system is on; what is written is in the page cache when it counts as recorded.

";

pub fn write(run: &Value) -> Result<()> {
    let docs = build_ebpf::workspace().join("docs");
    let notes = fs::read_to_string(docs.join("performance-notes.md"))
        .context("reading docs/performance-notes.md")?;
    let file = docs.join("performance.md");
    fs::write(&file, text(run, &notes)?)?;
    println!("{}", file.display());
    Ok(())
}

/// The page again, from the last run's JSON.
pub fn again() -> Result<()> {
    write(&serde_json::from_str(&fs::read_to_string(json())?)?)
}

pub fn json() -> PathBuf {
    build_ebpf::target_folder().join("bench.json")
}

fn text(run: &Value, notes: &str) -> Result<String> {
    let mut page = INTRODUCTION.to_owned();
    machine(&mut page, &run["machine"])?;
    loads(&mut page, run)?;
    results(&mut page, &run["results"])?;
    connects(&mut page, &run["connects"])?;
    sessions(&mut page, &run["sessions"])?;
    start(&mut page, &run["start"])?;
    micro(&mut page, &run["micro"])?;
    page.push_str(HOW);
    page.push_str(notes);
    Ok(page)
}

fn machine(page: &mut String, it: &Value) -> Result<()> {
    let word = |name: &str| it[name].as_str().unwrap_or("unknown").to_owned();
    writeln!(
        page,
        "{} cores of {}, {}; kernel {}, {}; revision {}, {}; load average at the start {}.",
        it["cores"],
        word("processor"),
        word("memory"),
        word("kernel"),
        word("system"),
        word("revision"),
        word("date"),
        word("load_average"),
    )?;
    let versions = it["versions"].as_object().into_iter().flatten();
    let versions: Vec<String> = versions
        .filter_map(|(_, version)| Some(version.as_str()?.to_owned()))
        .collect();
    writeln!(page, "{}.", versions.join("; "))?;
    Ok(())
}

fn loads(page: &mut String, run: &Value) -> Result<()> {
    let rows = run["loads"].as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return Ok(());
    }
    page.push_str(
        "\n## Ways\n\n| way | looks at | pools server connections |\n| --- | --- | --- |\n",
    );
    for way in run["ways"].as_array().into_iter().flatten() {
        let pools = if way["pools"] == true { "yes" } else { "no" };
        writeln!(
            page,
            "| {} | {} | {pools} |",
            plain(&way["way"]),
            plain(&way["inspects"])
        )?;
    }
    page.push_str(
        "\n## pgbench\n\n| load | way | transactions/s | to direct | to hop | p50 µs | p99 µs | p99 to hop | CPU µs each | CPU over hop | CPU to hop | RSS MB |\n\
         | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n",
    );
    for row in rows {
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            plain(&row["load"]),
            plain(&row["way"]),
            spread(&row["per_second"], 0),
            spread(&row["to_direct"], 2),
            spread(&row["to_hop"], 2),
            number(&row["p50_us"], 0),
            number(&row["p99_us"], 0),
            number(&row["p99_to_hop"], 2),
            number(&row["cpu_us"], 1),
            number(&row["cpu_us_over_hop"], 1),
            number(&row["cpu_to_hop"], 2),
            megabytes(&row["resident_kb"]),
        )?;
    }
    Ok(())
}

fn results(page: &mut String, rows: &Value) -> Result<()> {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return Ok(());
    }
    page.push_str(
        "\n## Large results\n\nRows of six columns. Masked values keep their width, so every way delivers as many bytes.\n\n\
         | result | MB | way | s | to direct | CPU s | memory + MB |\n| --- | --: | --- | --: | --: | --: | --: |\n",
    );
    for row in rows {
        for way in row["ways"].as_array().into_iter().flatten() {
            writeln!(
                page,
                "| {} | {:.0} | {} | {} | {} | {} | {} |",
                plain(&row["result"]),
                row["bytes"].as_f64().unwrap_or(f64::NAN) / 1e6,
                plain(&way["way"]),
                number(&way["seconds"], 2),
                spread(&way["ratio_to_direct"], 2),
                number(&way["cpu_seconds"], 2),
                megabytes(&way["memory_growth_kb"]),
            )?;
        }
    }
    Ok(())
}

fn connects(page: &mut String, rows: &Value) -> Result<()> {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return Ok(());
    }
    page.push_str(
        "\n## Connecting\n\nConnect and close are connect(2) and close(2) alone, 1 ms apart, so that whoever accepts has done its part; *others* are processes below\n\
         the guard's cgroup that are no agents. A login goes from connect to the first ReadyForQuery. *Over*: what it is more than for\n\
         others without the guard, for others beside it; for agents, than for others who wake the same process without being redirected; for logins, than\n\
         for the hop.\n\n\
         | what | µs | over |\n| --- | --: | --: |\n",
    );
    for row in rows {
        writeln!(
            page,
            "| {} | {} | {} |",
            plain(&row["what"]),
            spread(&row["us"], 1),
            spread(&row["us_over"], 1)
        )?;
    }
    Ok(())
}

fn sessions(page: &mut String, rows: &Value) -> Result<()> {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return Ok(());
    }
    page.push_str(
        "\n## Idle sessions\n\nMemory is PSS: before, for each session that has said nothing yet, for each that has run a statement and is\n\
         idle, and after all of them have gone.\n\n\
         | sessions | way | s to open | before MB | kB each, new | kB each, used | after MB |\n| --: | --- | --: | --: | --: | --: | --: |\n",
    );
    for row in rows {
        writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row["sessions"],
            plain(&row["way"]),
            number(&row["seconds_to_open"], 1),
            megabytes(&row["pss_before_kb"]),
            number(&row["kb_per_open_session"], 1),
            number(&row["kb_per_session_after_a_statement"], 1),
            megabytes(&row["pss_after_kb"]),
        )?;
    }
    Ok(())
}

fn start(page: &mut String, it: &Value) -> Result<()> {
    if it.is_null() {
        return Ok(());
    }
    writeln!(
        page,
        "\n## Start\n\nWith {} agents and {} policies the guard is loaded in {} s, and broker and gateway are ready after {} s, the gateway with {} MB\n\
         resident; with one agent, and a log of {} MB to continue, after {} s with {} MB.",
        it["agents"],
        it["policies"],
        number(&it["guard_seconds"], 2),
        number(&it["seconds_until_ready"], 2),
        megabytes(&it["resident_kb"]),
        number(&it["log_mb"], 0),
        number(&it["seconds_with_that_log"], 2),
        megabytes(&it["resident_kb_with_that_log"]),
    )?;
    Ok(())
}

fn micro(page: &mut String, rows: &Value) -> Result<()> {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    if rows.is_empty() {
        return Ok(());
    }
    page.push_str(
        "\n## Single steps\n\n`cargo xtask bench micro` (criterion, one core).\n\n| step | ns | GB/s |\n| --- | --: | --: |\n",
    );
    for row in rows {
        writeln!(
            page,
            "| {} | {} | {} |",
            plain(&row["step"]),
            number(&row["ns"], 0),
            number(&row["gb_per_second"], 3)
        )?;
    }
    Ok(())
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// A number, or the median of several.
fn number(value: &Value, digits: usize) -> String {
    let number = value.as_f64().or_else(|| value["median"].as_f64());
    number.map_or("-".to_owned(), |number| format!("{number:.digits$}"))
}

fn spread(value: &Value, digits: usize) -> String {
    match (value["q1"].as_f64(), value["q3"].as_f64()) {
        (Some(q1), Some(q3)) => {
            format!("{} ({q1:.digits$}–{q3:.digits$})", number(value, digits))
        }
        _ => number(value, digits),
    }
}

fn megabytes(kilobytes: &Value) -> String {
    let number = kilobytes.as_f64();
    number.map_or("-".to_owned(), |number| format!("{:.1}", number / 1024.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_not_measured_has_no_section_and_notes_stay_as_they_are() {
        let run = json!({ "machine": { "cores": 2 }, "start": null });
        let page = text(&run, "## Notes\n\nas written\n").unwrap();
        assert!(!page.contains("## pgbench") && !page.contains("## Start"));
        assert!(page.ends_with("## Notes\n\nas written\n"));
    }

    #[test]
    fn a_spread_shows_its_quartiles() {
        let value = json!({ "median": 2.0, "q1": 1.5, "q3": 2.5 });
        assert_eq!(spread(&value, 1), "2.0 (1.5–2.5)");
        assert_eq!(spread(&json!(null), 1), "-");
    }
}
