//! `sluice exec`: start a command as an agent.
//!
//! The command runs in the agent's cgroup, as the agent's user, with nothing inherited that could lead past
//! the gateway: no open descriptor beyond the standard three (a socket made outside escapes every hook), no
//! way to gain privileges, no environment but what is asked for. The order matters: the guard is verified and the cgroup entered before privileges
//! are dropped, and everything happens before the command's first instruction.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};
use nix::unistd::{self, User};

use super::Globals;
use crate::config::{Agent, Config};
use crate::intercept::{cgroup, guard};

/// What a shell answers when a command cannot be run, or is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

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
    refuse_network_streams()?;
    close_beyond_standard()?;
    enter_cgroup(agent)?;
    become_user(&user)?;
    prctl::set_no_new_privs().context("setting no_new_privs")?;
    leave_closed_folder()?;
    replace_process(&args.command, &user, &args.environment)
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

/// Root only by explicit request: whoever is root in an agent's cgroup can take the kernel programs away.
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

/// A network socket as standard input belongs to another cgroup and would carry traffic past the gateway.
fn refuse_network_streams() -> Result<()> {
    let standard = [
        ("input", std::io::stdin().as_fd().as_raw_fd()),
        ("output", std::io::stdout().as_fd().as_raw_fd()),
        ("error", std::io::stderr().as_fd().as_raw_fd()),
    ];
    for (name, descriptor) in standard {
        let family = getsockname::<SockaddrStorage>(descriptor)
            .ok()
            .and_then(|address| address.family());
        // Pipes, files and terminals have no address; socket pairs and local sockets stay on the host.
        let is_network = family.is_some_and(|family| family != AddressFamily::Unix);
        ensure!(
            !is_network,
            "standard {name} is a network socket, which bypasses interception: use a pipe or a terminal"
        );
    }
    Ok(())
}

fn close_beyond_standard() -> Result<()> {
    let listed: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .context("listing open descriptors")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in listed.into_iter().filter(|descriptor| *descriptor > 2) {
        // The one that listed them is closed already.
        let _ = unistd::close(descriptor);
    }
    Ok(())
}

fn enter_cgroup(agent: &Agent) -> Result<()> {
    let cgroup = cgroup::cgroup2_mount()?.join(&agent.cgroup);
    cgroup::create(&cgroup)?;
    cgroup::enter(&cgroup)?;
    Ok(())
}

fn become_user(user: &User) -> Result<()> {
    let name = CString::new(user.name.as_str())?;
    unistd::initgroups(&name, user.gid).context("setting the user's groups")?;
    unistd::setresgid(user.gid, user.gid, user.gid).context("setting the group")?;
    unistd::setresuid(user.uid, user.uid, user.uid).context("setting the user")?;
    Ok(())
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

/// What an agent gets of the caller's environment unasked. The caller is root: the rest may hold secrets.
const PASSED_ON: [&str; 6] = ["PATH", "TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ"];

fn passed_on(asked_for: &[OsString]) -> Vec<(OsString, OsString)> {
    let is_harmless = |name: &OsString| {
        let name = name.to_string_lossy();
        PASSED_ON.contains(&&*name) || name.starts_with("LC_")
    };
    let mut passed: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| is_harmless(name))
        .collect();
    for asked in asked_for {
        let bytes = asked.as_encoded_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, value) = bytes.split_at(at);
                let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
                passed.push((text(name), text(value.get(1..).unwrap_or_default())));
            }
            None => passed.extend(std::env::var_os(asked).map(|value| (asked.clone(), value))),
        }
    }
    passed
}

/// Returns only if the command could not be started.
fn replace_process(
    command: &[OsString],
    user: &User,
    environment: &[OsString],
) -> Result<ExitCode> {
    let Some((program, arguments)) = command.split_first() else {
        bail!("no command")
    };
    let error = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("HOME", &user.dir)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .envs(passed_on(environment))
        .exec();
    eprintln!("sluice: {}: {error}", program.display());
    Ok(ExitCode::from(match error.kind() {
        ErrorKind::NotFound => NOT_FOUND,
        _ => CANNOT_RUN,
    }))
}
