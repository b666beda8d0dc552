//! How long the gateway takes to start with many agents and many policies.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::process;
use super::site::Site;
use crate::demo::installation::AGENT;
use crate::toolchain;

const AGENTS: usize = 1_000;
const POLICIES: usize = 500;

/// Ends the gateway, and starts it as it was, with the log that the run has left, and then with a larger configuration
/// and a log of its own: the last thing that is measured at a site.
pub fn measure(site: &Site<'_>) -> Result<Value> {
    toolchain::progress(&format!(
        "start with {AGENTS} agents and {POLICIES} policies"
    ));
    let log = site.installation.log();
    let log_mb = fs::metadata(log.join("log.jsonl"))?.len() as f64 / 1e6;
    stop(site)?;
    let small = start(site)?;
    stop(site)?;
    fs::rename(&log, log.with_file_name("log-before"))?;
    enlarge(site)?;
    let begun = Instant::now();
    site.guard("load")?;
    let guard = begun.elapsed();
    let large = start(site)?;
    Ok(json!({
        "agents": AGENTS,
        "policies": POLICIES,
        "log_mb": log_mb,
        "guard_seconds": guard.as_secs_f64(),
        "seconds_until_ready": large.0,
        "resident_kb": large.1,
        "seconds_with_that_log": small.0,
        "resident_kb_with_that_log": small.1,
    }))
}

fn stop(site: &Site<'_>) -> Result<()> {
    end(site.installation.gateway_pid()?)?;
    brokers(site)?.into_iter().try_for_each(end)
}

/// Broker and gateway: seconds until they are ready, and the gateway's memory in kB.
fn start(site: &Site<'_>) -> Result<(f64, u64)> {
    let begun = Instant::now();
    site.installation.start(site.stage)?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok((
        seconds,
        process::resident(site.installation.gateway_pid()?)?,
    ))
}

fn enlarge(site: &Site<'_>) -> Result<()> {
    let etc = site.stage.root().join("etc/sluice");
    let file = etc.join("sluice.toml");
    let mut text = fs::read_to_string(&file)?;
    for n in 0..AGENTS {
        write!(
            text,
            "\n[agents.crowd-{n}]\nidentity = \"corp\"\ntoken_file = \"/run/sluice/tokens/{AGENT}.jwt\"\nsubject = \"crowd-{n}@corp\"\n"
        )?;
    }
    fs::write(&file, text)?;
    let mut policies = String::new();
    for n in 0..POLICIES {
        write!(
            policies,
            "\n@id(\"crowd-{n}\")\npermit (principal == Sluice::Agent::\"crowd-{n}\", action in Sluice::Action::\"sql:write\", resource is Sluice::Table)\nwhen {{ resource.schema == \"public\" && resource.name == \"table_{n}\" }};\n"
        )?;
    }
    Ok(fs::write(etc.join("policies/crowd.cedar"), policies)?)
}

/// Processes of this site that are brokers.
fn brokers(site: &Site<'_>) -> Result<Vec<u32>> {
    let root = site.stage.root().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> = line.split('\0').filter(|word| !word.is_empty()).collect();
        if words.contains(&root.as_str()) && words.last() == Some(&"broker") {
            found.push(pid);
        }
    }
    Ok(found)
}

fn end(pid: u32) -> Result<()> {
    let done = Command::new("sh")
        .args(["-c", &format!("kill -s INT {pid}")])
        .status()?;
    ensure!(done.success(), "process {pid} cannot be ended");
    for _ in 0..3000 {
        // A zombie has ended: the stage reaps it.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat
            .rsplit(')')
            .next()
            .is_none_or(|rest| rest.is_empty() || rest.starts_with(" Z"))
        {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("process {pid} does not end")
}
