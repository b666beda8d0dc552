//! Where the gateway's time goes: `perf` samples it under load.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::flame::{self, Frame};
use super::load::Load;
use super::site::Site;
use crate::{build_ebpf, packages, toolchain};

const DURATION: Duration = Duration::from_secs(5);

/// Samples a second, on each core; not a multiple of what timers do.
const FREQUENCY: &str = "499";

/// Release builds keep no frame pointers: part of the stack is copied, and unwound by its DWARF tables later.
const CALLS: &str = "dwarf,16384";

/// How many functions the list shows.
const SHOWN: usize = 40;

/// Writes, below `target/profile`, one flame graph of all loads side by side, and for each load the functions in which
/// most samples were taken.
pub fn record(site: &Site<'_>, loads: &[Load]) -> Result<()> {
    packages::for_profiling()?;
    let folder = build_ebpf::target_folder().join("profile");
    fs::create_dir_all(&folder)?;
    let mut all = Frame::default();
    for load in loads {
        let script = sample(site, load)?;
        let mut one = Frame::default();
        flame::read(&script, &mut one, load.name);
        flame::read(&script, &mut all, load.name);
        let file = folder.join(format!("{}.txt", load.name.replace([' ', ','], "-")));
        fs::write(&file, list(&one))?;
        println!("  {}", file.display());
    }
    let file = folder.join("flame.svg");
    fs::write(&file, all.svg("the gateway under the quick loads"))?;
    println!("{}", file.display());
    Ok(())
}

fn sample(site: &Site<'_>, load: &Load) -> Result<String> {
    toolchain::progress(&format!("profiling {}", load.name));
    let gateway = site.gateway()?;
    let pid = gateway.pid.context("it is a process")?.to_string();
    let data = site.stage.folder().join("perf.data");
    let mut perf = Command::new("perf")
        .args(["record", "-q", "-F", FREQUENCY, "--call-graph", CALLS])
        .args(["-p", &pid, "-o"])
        .arg(&data)
        .args(["--", "sleep", &DURATION.as_secs().to_string()])
        .stdout(Stdio::null())
        .spawn()
        .context("starting perf")?;
    let run = load.run(site, gateway, DURATION)?;
    ensure!(perf.wait()?.success(), "perf failed");
    println!(
        "{}: {:.1} µs of processor time each, sampling included",
        load.name,
        run.cpu.unwrap_or(0.0)
    );
    let script = script(&data);
    fs::remove_file(&data)?;
    script
}

fn script(data: &Path) -> Result<String> {
    let output = Command::new("perf")
        .args(["script", "--no-inline", "-F", "comm,ip,sym", "-i"])
        .arg(data)
        .stderr(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "perf script failed");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The gateway's own functions with what they call, then whatever was running itself.
fn list(frame: &Frame) -> String {
    let all = frame.samples().max(1) as f64;
    let lines = |functions: Vec<(String, u64)>| -> String {
        let shown = functions.iter().take(SHOWN);
        shown
            .map(|(name, samples)| format!("{:5.1} %  {name}\n", *samples as f64 * 100.0 / all))
            .collect()
    };
    let mut steps = frame.anywhere();
    steps.retain(|(name, _)| name.contains("gateway::") || name.contains("__x64_sys_"));
    format!(
        "with what they call\n{}\nthemselves\n{}",
        lines(steps),
        lines(frame.innermost())
    )
}
