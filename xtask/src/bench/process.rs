//! What a process has used so far, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Processor time of all its threads, user and system (proc(5), fields 14 and 15 of `stat`).
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The name in parentheses may hold spaces; what follows it does not.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| -> Result<u64> {
        let field = fields
            .get(index)
            .context("stat is shorter than it should be")?;
        Ok(field.parse()?)
    };
    // USER_HZ is 100 on every architecture that Sluice runs on.
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}
