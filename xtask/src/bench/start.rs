//! How long the gateway takes to start with many agents and many policies.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::process;
use super::site::Site;
use crate::demo::installation::AGENT;
use crate::toolchain;

const AGENTS: usize = 1_000;
const POLICIES: usize = 500;

/// Ends the gateway, and starts it with a larger configuration: the last thing that is measured at a site.
pub fn measure(site: &Site<'_>) -> Result<Value> {
    toolchain::progress(&format!(
        "start with {AGENTS} agents and {POLICIES} policies"
    ));
    let pid = site.installation.gateway_pid()?;
    let small = process::resident(pid)?;
    end(pid)?;
    // The broker goes with its gateway: the next one is started beside the next gateway.
    for other in brokers(site)? {
        end(other)?;
    }
    enlarge(site)?;
    let begun = Instant::now();
    site.guard("load")?;
    let guard = begun.elapsed();
    let begun = Instant::now();
    site.installation.start(site.stage)?;
    let both = begun.elapsed();
    let resident = process::resident(site.installation.gateway_pid()?)?;
    Ok(json!({
        "agents": AGENTS,
        "policies": POLICIES,
        "guard_seconds": guard.as_secs_f64(),
        "seconds_until_ready": both.as_secs_f64(),
        "resident_kb": resident,
        "resident_before_kb": small,
    }))
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
    None.with_context(|| format!("process {pid} does not end"))
}
