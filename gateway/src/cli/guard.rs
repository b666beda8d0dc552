//! `sluice guard`: load, verify or remove the kernel programs. Root; nothing of it keeps running.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::Globals;
use crate::intercept::cgroup;
use crate::intercept::guard::{self, Report, RunningAgents};

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
                println!("{}", json!({ "loaded": loaded }));
            } else {
                let count = loaded.programs.len();
                let agents = loaded.agents_cgroup.display();
                println!(
                    "guard: loaded {count} programs, {agents} is redirected to port {}",
                    loaded.port
                );
                println!("{}", loaded.lsm);
            }
            Ok(ExitCode::SUCCESS)
        }
        Action::Verify => {
            let report = guard::inspect(&config.kernel)?;
            let ok = report.all_problems().is_empty();
            if globals.json {
                println!("{}", json!({ "ok": ok, "report": report }));
            } else {
                print(&report);
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
                println!("{}", json!({ "unloaded": true }));
            } else {
                println!("guard: unloaded, agents are no longer intercepted");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print(report: &Report) {
    for link in &report.links {
        let state = if link.problem.is_some() {
            "WRONG"
        } else {
            "ok"
        };
        println!(
            "{:<16}  {:<5}  {}",
            link.program,
            state,
            link.target.display()
        );
    }
    for denials in report.denials.iter().filter(|denials| denials.count > 0) {
        println!("denied {} times: {}", denials.count, denials.reason);
    }
    let problems = report.all_problems();
    for problem in &problems {
        println!("{problem}");
    }
    match (problems.is_empty(), report.port) {
        (true, Some(port)) => println!("guard verify: ok, agents are redirected to port {port}"),
        _ => println!("guard verify: FAILED, agents are not intercepted"),
    }
}
