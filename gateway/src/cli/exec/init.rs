//! `--isolate`, the inner side: process 1 of the new namespaces.
//!
//! It sets up network and mounts as root, then becomes what the command is to be, filter included, and only
//! then starts the command. So nothing inside ever has a privilege that the command has not. What is left
//! of it reaps, passes signals on, and ends with the command; the kernel then kills whatever is still there.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use nix::unistd::Pid;

use super::command::Command;
use super::confine::{Credentials, confine};
use super::{mounts, network, supervise};
use crate::config::Config;
use crate::intercept::isolate;

/// An address for documentation (RFC 5737), of no use to anybody: connecting to it is refused in any case.
const KNOCK: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9);

/// The kernel's report of one connection may be lost, so it is made again.
const KNOCK_AGAIN_MS: u16 = 500;

const FAILED: u8 = 1;

/// The pipes to the process outside.
#[derive(Debug)]
pub struct Outside {
    pub ready: File,
    pub go: File,
}

/// Everything a first process does; its exit code. What fails is said on standard error.
pub fn run(
    config: &Config,
    folder: &Path,
    credentials: &Credentials,
    command: &Command,
    outside: Outside,
) -> u8 {
    attempt(config, folder, credentials, command, outside).unwrap_or_else(|error| {
        eprintln!("sluice: {error:#}");
        FAILED
    })
}

fn attempt(
    config: &Config,
    folder: &Path,
    credentials: &Credentials,
    command: &Command,
    outside: Outside,
) -> Result<u8> {
    // The cgroup that /proc/self/cgroup calls / from now on is the agent's.
    unshare(CloneFlags::CLONE_NEWCGROUP).context("making a cgroup namespace")?;
    network::set_up(&config.kernel)?;
    // A whole installation may lie below /tmp.
    let trusted = [config.tls.authority(), config.tls.bundle()];
    mounts::set_up(&config.kernel.devices, &trusted)?;
    let lifeline = wait_for_go(outside)?;
    confine(credentials)?;
    // The agent has the same user: it must not read or trace this process.
    prctl::set_dumpable(false).context("closing the first process to the agent")?;
    stand_in(folder)?;
    match command.spawn(supervise::held_signals()) {
        Ok(child) => {
            let child = Pid::from_raw(child.id().cast_signed());
            supervise::until_ended(child, Some(lifeline.as_fd()))
        }
        Err(code) => Ok(code),
    }
}

/// Tells which namespace this is and knocks until the process outside has seen listeners in it.
fn wait_for_go(outside: Outside) -> Result<File> {
    let Outside { mut ready, mut go } = outside;
    let cookie = {
        let socket = tcp_socket()?;
        isolate::netns_cookie(socket.as_fd()).context("asking for the namespace's cookie")?
    };
    ready
        .write_all(&cookie.to_ne_bytes())
        .context("reporting the namespace")?;
    drop(ready);
    loop {
        knock()?;
        let mut waiting = [PollFd::new(go.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(KNOCK_AGAIN_MS))? > 0 {
            break;
        }
    }
    let mut byte = [0];
    if go.read(&mut byte)? == 0 {
        bail!("the process that asked for this command is gone");
    }
    Ok(go)
}

fn knock() -> Result<()> {
    let socket = tcp_socket()?;
    // Refused by the kernel programs, which report it. That is all it is for.
    let _ = connect(socket.as_raw_fd(), &SockaddrIn::from(KNOCK));
    Ok(())
}

fn tcp_socket() -> Result<std::os::fd::OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None).context("making a socket")
}

/// The caller's working folder where it is still to be seen and entered, which is decided by name: the folder
/// itself may be under one of the new mounts.
fn stand_in(folder: &Path) -> Result<()> {
    std::env::set_current_dir("/").context("changing to /")?;
    let _ = std::env::set_current_dir(folder);
    Ok(())
}
