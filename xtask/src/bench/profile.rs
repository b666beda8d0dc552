//! Where the gateway's time goes: `perf` samples it under load.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::load::Load;
use super::site::Site;
use crate::{build_ebpf, packages, toolchain};

const DURATION: Duration = Duration::from_secs(8);

/// Samples a second, on each core; not a multiple of what timers do.
const FREQUENCY: &str = "997";

/// Writes one folded profile per load: a stack a line, and how many samples it had.
pub fn record(site: &Site<'_>, loads: &[Load]) -> Result<()> {
    packages::for_profiling()?;
    let gateway = site.ways.iter().find(|way| way.cgroup.is_some());
    let gateway = gateway.context("the gateway is one of the ways")?;
    let pid = gateway.pid.context("it is a process")?.to_string();
    let folder = build_ebpf::target_folder().join("profile");
    fs::create_dir_all(&folder)?;
    for load in loads {
        toolchain::progress(&format!("profiling {}", load.name));
        let data = site.stage.folder().join("perf.data");
        let mut perf = Command::new("perf")
            .args([
                "record",
                "-q",
                "-F",
                FREQUENCY,
                "--call-graph",
                "fp",
                "-p",
                &pid,
                "-o",
            ])
            .arg(&data)
            .args(["--", "sleep", &DURATION.as_secs().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .context("starting perf")?;
        let run = load.run(site, gateway, DURATION)?;
        ensure!(perf.wait()?.success(), "perf failed");
        println!(
            "{}: {:.1} µs of processor time each",
            load.name,
            run.cpu.unwrap_or(0.0)
        );
        let flat = Command::new("perf")
            .args([
                "report",
                "--stdio",
                "--no-children",
                "-g",
                "none",
                "--percent-limit",
                "0.5",
                "-i",
            ])
            .arg(&data)
            .stderr(Stdio::null())
            .output()?;
        let name = load.name.replace([' ', ','], "-");
        let file = folder.join(format!("{name}.txt"));
        fs::write(&file, &flat.stdout)?;
        println!("  {}", file.display());
    }
    Ok(())
}
