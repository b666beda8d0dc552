//! What starting an isolated process needs of the kernel and no crate offers: clone3(2) into a control
//! group, a new session keyring, a namespace's cookie, and the signals of its child.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};

/// Makes a child that is in `cgroup` and in the new `namespaces` from its first instruction on (Linux 5.7).
/// It must be called by a process with one thread: the child has no other.
pub fn clone_into(cgroup: BorrowedFd<'_>, namespaces: CloneFlags) -> io::Result<ForkResult> {
    /// linux/sched.h; libc's constant of that name is too narrow for it.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let flags = namespaces.bits() as u64 | CLONE_INTO_CGROUP;
    // SAFETY: all-zero is a valid clone_args: no stack, no TLS, no descriptor to return.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM this is a fork: the child gets a copy of everything, and as there is one
    // thread, no lock is held by a thread that it does not have.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match result {
        0 => Ok(ForkResult::Child),
        child if child > 0 => Ok(ForkResult::Parent {
            child: Pid::from_raw(child as i32),
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// fork(2), for kernels and sandboxes without clone3. It too must be called by a process with one thread.
pub fn fork() -> io::Result<ForkResult> {
    // SAFETY: as there is one thread, no lock is held by a thread that the child does not have.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Leaves the keys of whoever started this process: a session keyring is inherited like a descriptor.
pub fn leave_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let anonymous: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name is allowed and asks for a new, anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) };
    match result {
        -1 => match io::Error::last_os_error() {
            // A kernel without keys has none to leave.
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// The number that the kernel programs know the socket's network namespace by (Linux 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the cookie is as long as is said; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Lets the command's process receive `signals` that this process holds back: a blocked signal stays blocked
/// across execve(2).
pub fn release_in_child(command: &mut Command, signals: SigSet) {
    let release = move || signals.thread_unblock().map_err(io::Error::from);
    // SAFETY: between fork and exec it calls pthread_sigmask(3) alone, which is async-signal-safe.
    unsafe { command.pre_exec(release) };
}
