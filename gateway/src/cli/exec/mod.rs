//! `sluice exec`: start a command as an agent.
//!
//! The command runs in the agent's cgroup, as the agent's user, with nothing inherited that could lead past
//! the gateway: no open descriptor beyond the standard three (a socket made outside escapes every hook), no
//! capability and no way to gain any, no family of sockets that has no hook, no environment but what is asked
//! for. The order matters: the guard is verified and the cgroup entered before privileges are dropped, and
//! everything happens before the command's first instruction.
//!
//! With `--isolate` it also gets namespaces of its own. [`isolate`] is the caller's side of that, [`init`]
//! the other: the first process inside, which sets up the [`network`] and the [`mounts`], starts the command
//! and waits for all that comes of it.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::{self, User};

use self::command::Command;
use self::confine::{Credentials, confine};
use super::Globals;
use crate::config::{Agent, Config};
use crate::intercept::{cgroup, guard};

mod command;
mod confine;
mod init;
mod isolate;
mod mounts;
mod network;
mod seccomp;
mod streams;
mod supervise;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The agent, as named in the configuration
    #[arg(long)]
    agent: String,
    /// Run as this user instead of the agent's run_as; root only if named here
    #[arg(long)]
    user: Option<String>,
    /// Give the command this environment variable, with this process's value or one of its own
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    environment: Vec<OsString>,
    /// Give the command namespaces of its own: no network but the gateway, no processes but its own,
    /// empty /run and /tmp
    #[arg(long)]
    isolate: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let config = globals.load_config()?;
    let agent = find_agent(&config, &args.agent)?;
    let user = find_user(agent, args.user.as_deref())?;
    ensure!(
        unistd::geteuid().is_root(),
        "sluice exec enters the agent's cgroup and changes user: run it as root"
    );
    ensure!(
        Path::new(&agent.cgroup).starts_with(&config.kernel.agents_cgroup),
        "agent {:?} has cgroup {}, which is not below {}: it would not be intercepted",
        agent.name,
        agent.cgroup,
        config.kernel.agents_cgroup
    );
    guard::verify(&config.kernel)?;
    streams::refuse_ways_out()?;
    streams::close_the_rest()?;
    let command = Command::new(args.command, &args.environment, &user, &config.tls);
    let credentials = Credentials::of(user)?;
    let cgroup = cgroup::cgroup2_mount()?.join(&agent.cgroup);
    cgroup::create(&cgroup)?;
    let code = if args.isolate {
        isolate::run(&config, &cgroup, &credentials, &command)?
    } else {
        cgroup::enter(&cgroup)?;
        confine(&credentials)?;
        leave_closed_folder()?;
        command.exec()
    };
    Ok(ExitCode::from(code))
}

fn find_agent<'c>(config: &'c Config, name: &str) -> Result<&'c Agent> {
    match config.agents.get(name) {
        Some(agent) => Ok(agent),
        None => {
            let known: Vec<&str> = config.agents.keys().map(String::as_str).collect();
            bail!(
                "no agent {name:?} in the configuration; there is: {}",
                known.join(", ")
            )
        }
    }
}

/// Root only by explicit request: root's files can take the kernel programs away, even without capabilities.
fn find_user(agent: &Agent, requested: Option<&str>) -> Result<User> {
    let name = requested.unwrap_or(&agent.run_as);
    let user = User::from_name(name).with_context(|| format!("looking up user {name:?}"))?;
    let user = user.with_context(|| format!("there is no user {name:?} on this host"))?;
    ensure!(
        !user.uid.is_root() || requested.is_some(),
        "agent {:?} has run_as = {name:?}: an agent that is root can escape; if you mean it, say --user {name}",
        agent.name
    );
    Ok(user)
}

/// Root may stand where the agent's user may not, and many programs complain about that.
fn leave_closed_folder() -> Result<()> {
    if std::env::current_dir()
        .and_then(std::env::set_current_dir)
        .is_err()
    {
        std::env::set_current_dir("/").context("changing to /")?;
    }
    Ok(())
}
