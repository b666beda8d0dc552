//! `sluice guard`: load, verify or remove the kernel programs. Root; nothing of it keeps running.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::{Globals, say};
use crate::intercept::cgroup;
use crate::intercept::guard::{self, Report, RunningAgents};
use crate::recording::terminal::count;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Attach the kernel programs to the agents' and the gateway's cgroup; safe to repeat
    Load {
        /// Redirect to this loopback port instead of gateway.listen_port
        #[arg(long)]
        port: Option<u16>,
    },
    /// Check that every program is attached to the live cgroups; exit 1 if not
    Verify,
    /// Take the kernel programs away: agents are no longer intercepted
    Unload {
        /// Also while agents are running
        #[arg(long)]
        force: bool,
    },
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let config = globals.load_config()?;
    match args.action {
        Action::Load { port } => {
            let loaded = guard::load(&config.kernel, port.unwrap_or(config.gateway.listen_port))?;
            // Whoever is intercepted again may go on: the broker freezes agents that are not.
            cgroup::thaw(&loaded.agents_cgroup)?;
            if globals.json {
                say(json!({ "loaded": loaded }))?;
            } else {
                let programs = count(loaded.programs.len() as u64, "program");
                let agents = loaded.agents_cgroup.display();
                say(format_args!(
                    "guard: loaded {programs}, {agents} is redirected to port {}",
                    loaded.port
                ))?;
                say(&loaded.lsm)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Action::Verify => {
            let report = guard::inspect(&config.kernel)?;
            let ok = report.all_problems().is_empty();
            if globals.json {
                say(json!({ "ok": ok, "report": report }))?;
            } else {
                say(text(&report))?;
            }
            Ok(if ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Action::Unload { force } => {
            let running = if force {
                RunningAgents::LeaveUnwatched
            } else {
                RunningAgents::Refuse
            };
            guard::unload(&config.kernel, running)?;
            if globals.json {
                say(json!({ "unloaded": true }))?;
            } else {
                say("guard: unloaded, agents are no longer intercepted")?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn text(report: &Report) -> String {
    let mut lines: Vec<String> = Vec::new();
    for link in &report.links {
        let state = if link.problem.is_some() {
            "WRONG"
        } else {
            "ok"
        };
        let target = link.target.display();
        lines.push(format!("{:<16}  {state:<5}  {target}", link.program));
    }
    for denials in report.denials.iter().filter(|denials| denials.count > 0) {
        let times = count(denials.count, "time");
        lines.push(format!("denied {times}: {}", denials.reason));
    }
    let problems = report.all_problems();
    let is_whole = problems.is_empty();
    lines.extend(problems);
    lines.push(match (is_whole, report.port) {
        (true, Some(port)) => format!("guard verify: ok, agents are redirected to port {port}"),
        _ => "guard verify: FAILED, agents are not intercepted".to_owned(),
    });
    lines.join("\n")
}
