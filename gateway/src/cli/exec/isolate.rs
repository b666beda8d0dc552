//! `--isolate`, the caller's side: makes the first process of the namespaces, inside the agent's cgroup from
//! its first instruction on, and waits for it.
//!
//! A new network namespace is denied everything until the gateway listens in it. So the first process inside
//! tells its namespace's cookie and knocks: the kernel programs refuse the connection and report the
//! namespace, the gateway has the broker put listeners there, and only when they are registered may the
//! command start. A caller that is killed takes everything inside with it: the pipe that says *go* stays open
//! as long as it lives.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, pipe2};

use super::command::Command;
use super::confine::Credentials;
use super::{init, supervise};
use crate::config::Config;
use crate::intercept::{self, cgroup, isolate};

/// How long setting up may take; on a free machine it is some 20 ms.
const SET_UP: Duration = Duration::from_secs(10);
const REGISTRATION: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// The first process inside and the two pipes to it.
#[derive(Debug)]
struct Inside {
    init: Pid,
    /// Has the namespace's cookie once it is set up.
    ready: File,
    /// Takes one byte; closing it ends everything inside.
    lifeline: File,
}

/// Runs the command in namespaces of its own, to its end. Its exit code, 128 and more if it was killed.
pub fn run(
    config: &Config,
    cgroup: &Path,
    credentials: &Credentials,
    command: &Command,
) -> Result<u8> {
    let folder = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let (ready, tell_ready) = pipe()?;
    let (go, lifeline) = pipe()?;
    // The first process inside must never miss one, so it is born with them held.
    supervise::hold_signals()?;
    let init = match start(cgroup)? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop((ready, lifeline));
            let outside = init::Outside {
                ready: tell_ready.into(),
                go: go.into(),
            };
            let code = init::run(config, &folder, credentials, command, outside);
            std::process::exit(code.into())
        }
    };
    drop((tell_ready, go));
    supervise::release_signals()?;
    let inside = Inside {
        init,
        ready: ready.into(),
        lifeline: lifeline.into(),
    };
    inside.attend(&config.kernel.pins).inspect_err(|_| {
        let _ = kill(init, Signal::SIGKILL);
    })
}

impl Inside {
    fn attend(mut self, pins: &Path) -> Result<u8> {
        if let Some(cookie) = self.cookie()? {
            wait_for_listeners(pins, cookie)?;
            supervise::hold_signals()?;
            self.lifeline
                .write_all(b"g")
                .context("starting the command")?;
        } else {
            // It has said on standard error why not.
            supervise::hold_signals()?;
        }
        supervise::until_ended(self.init, None)
    }

    /// `None` if setting up failed.
    fn cookie(&mut self) -> Result<Option<u64>> {
        let mut waiting = [PollFd::new(self.ready.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(SET_UP)?;
        ensure!(
            poll(&mut waiting, timeout)? > 0,
            "setting up the namespaces took more than {SET_UP:?}: is the agent's cgroup frozen? `sluice guard verify` tells"
        );
        let mut cookie = [0; size_of::<u64>()];
        match self.ready.read_exact(&mut cookie) {
            Ok(()) => Ok(Some(u64::from_ne_bytes(cookie))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error).context("waiting for the namespaces"),
        }
    }
}

fn wait_for_listeners(pins: &Path, cookie: u64) -> Result<()> {
    let started = Instant::now();
    while !intercept::registered_netns(pins)?.contains(&cookie) {
        if started.elapsed() > REGISTRATION {
            bail!(
                "the gateway does not answer in the new network namespace: is `sluice run` running, and the broker?"
            );
        }
        thread::sleep(ASK_AGAIN);
    }
    Ok(())
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).context("making a pipe")
}

/// Makes the first process of all the namespaces, in the agent's cgroup.
fn start(cgroup: &Path) -> Result<ForkResult> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let folder = File::open(cgroup).with_context(|| format!("opening {}", cgroup.display()))?;
    match isolate::clone_into(folder.as_fd(), namespaces | CloneFlags::CLONE_NEWPID) {
        Err(error) if lacks_clone3(&error) => start_step_by_step(cgroup, namespaces),
        started => started.context("making the namespaces"),
    }
}

/// Before Linux 5.7, and in containers whose filter knows no clone3(2).
fn lacks_clone3(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::E2BIG)
    )
}

/// The same without clone3(2): the caller enters the cgroup first, so that the child is born in it.
fn start_step_by_step(cgroup: &Path, namespaces: CloneFlags) -> Result<ForkResult> {
    cgroup::enter(cgroup)?;
    unshare(CloneFlags::CLONE_NEWPID).context("making a pid namespace")?;
    let started = isolate::fork().context("starting the first process inside")?;
    if matches!(started, ForkResult::Child) {
        unshare(namespaces).context("making the namespaces")?;
    }
    Ok(started)
}
