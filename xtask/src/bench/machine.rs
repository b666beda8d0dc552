//! On what it was measured.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::{build_ebpf, toolchain};

pub fn describe() -> Value {
    let versions = [
        ("PostgreSQL", "pgbench", "--version"),
        ("rustc", "rustc", "--version"),
        ("pgbouncer", "pgbouncer", "--version"),
        ("HAProxy", "/usr/sbin/haproxy", "-v"),
        ("pgcat", "pgcat", "--version"),
    ];
    let versions = versions.into_iter().filter_map(|(name, program, flag)| {
        let said = toolchain::output(Command::new(program).arg(flag))?;
        let first = said.lines().next()?.to_owned();
        Some((name.to_owned(), Value::String(first)))
    });
    json!({
        "processor": field("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "system": field("/etc/os-release", "PRETTY_NAME"),
        "load_average": fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
        "revision": revision(),
        "date": toolchain::output(Command::new("date").args(["-u", "+%Y-%m-%d"])),
        "versions": versions.collect::<serde_json::Map<_, _>>(),
    })
}

/// The commit, with a mark when it is not all of it.
fn revision() -> Option<String> {
    toolchain::output(
        Command::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=10"])
            .current_dir(build_ebpf::workspace()),
    )
}

/// `name : value` or `name="value"`, the first of them.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once([':', '=']));
    let value = value.map_or("unknown", |(_, value)| value);
    value.trim().trim_matches('"').to_owned()
}
