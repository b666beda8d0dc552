//! Waiting for a child on behalf of whoever waits for us: signals go down, the exit code comes up.
//!
//! Both sides of an isolated command do this, the caller's process for the first one inside, and that one
//! for the command.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is passed on. Stopping and continuing reach every process of a terminal's job by themselves.
const FORWARDED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// What a shell adds to a signal's number.
const BY_SIGNAL: i32 = 128;

/// From here on the signals wait for [`until_ended`]. A first process of a pid namespace needs it before
/// anybody signals it: what it neither blocks nor handles is thrown away.
pub fn hold_signals() -> Result<()> {
    held_signals().thread_block().context("blocking signals")
}

/// Signals have their usual effect again.
pub fn release_signals() -> Result<()> {
    held_signals()
        .thread_unblock()
        .context("unblocking signals")
}

/// What [`hold_signals`] holds.
pub fn held_signals() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Passes signals to `child` until it ends; its exit code as a shell would give it. Reaps every other child
/// meanwhile. Ends too when the other side of `lifeline` is closed.
pub fn until_ended(child: Pid, lifeline: Option<BorrowedFd<'_>>) -> Result<u8> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let pending = SignalFd::with_flags(&held_signals(), flags).context("receiving signals")?;
    loop {
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
        let mut waiting = vec![PollFd::new(pending.as_fd(), PollFlags::POLLIN)];
        waiting.extend(lifeline.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for signals"),
        }
        let cut = waiting.get(1).is_some_and(|fd| fd.any() == Some(true));
        if cut {
            return exit_code(BY_SIGNAL + Signal::SIGKILL as i32);
        }
        while let Some(signal) = pending.read_signal().context("receiving signals")? {
            forward(&signal, child);
        }
    }
}

/// What a terminal sends goes to the whole job, the command included: passed on, it would arrive twice.
fn forward(signal: &siginfo, child: Pid) {
    const FROM_KERNEL: i32 = 0x80;
    let number = Signal::try_from(signal.ssi_signo.cast_signed());
    if let Ok(number) = number
        && number != Signal::SIGCHLD
        && signal.ssi_code != FROM_KERNEL
    {
        // It may have ended meanwhile, which the next round notices.
        let _ = kill(child, number);
    }
}

/// Collects whoever has ended; the exit code once that was `child`.
fn reap(child: Pid) -> Result<Option<u8>> {
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, BY_SIGNAL + signal as i32),
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("waiting for the command"),
        };
        if pid == child {
            return exit_code(code).map(Some);
        }
    }
}

fn exit_code(code: i32) -> Result<u8> {
    u8::try_from(code).context("an exit code has 8 bits")
}
