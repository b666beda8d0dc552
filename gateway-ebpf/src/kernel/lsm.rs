//! The LSM tier: what the other hooks never see. Loaded only where BPF is among the kernel's security modules.
//!
//! The programs are attached to the agents' cgroup like the others (`BPF_LSM_CGROUP`, Linux 6.0), not to the
//! hooks of the whole host: no other process ever runs one, and so none can be denied by one. They answer as
//! cgroup programs do; an earlier program's refusal stays, whatever they answer.

use core::ffi::c_void;
use core::ptr::addr_of;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::lsm_cgroup;
use aya_ebpf::programs::LsmContext;
use gateway_ebpf::Owner;
use gateway_ebpf::decide::Denial;
use gateway_ebpf::hardening::{self, AF_UNIX};

use super::account::Attempt;
use super::answer::{ALLOW_SOCKET, ALLOW_TRACE, ALLOW_UNIX, deny};
use super::caller::Caller;
use super::maps::{self, SK_OWNER};

/// `struct socket` of linux/net.h as far as `sk`. The verifier compares it with the running kernel's: where it
/// is another, the programs that read it are refused.
#[repr(C)]
struct Socket {
    state: i32,
    kind: i16,
    flags: u64,
    file: *const c_void,
    sk: *mut bpf_sock,
}

/// socket(2) and socketpair(2), before the family's module is even loaded.
#[lsm_cgroup(hook = "socket_create")]
pub fn lsm_socket(ctx: LsmContext) -> i32 {
    let (family, protocol, by_kernel) = (ctx.arg(0), ctx.arg(2), ctx.arg::<i32>(3));
    match hardening::socket(family, protocol, by_kernel != 0) {
        Ok(()) => ALLOW_SOCKET,
        Err(denial) => refuse(
            denial,
            Attempt {
                protocol: family as u32,
                ..Attempt::UNKNOWN
            },
        ),
    }
}

/// A new user namespace has every capability over the network namespaces made in it (Linux 6.1).
#[lsm_cgroup(hook = "userns_create")]
pub fn lsm_userns(_ctx: LsmContext) -> i32 {
    refuse(Denial::Privilege, Attempt::UNKNOWN)
}

/// ptrace(2), process_vm_writev(2), pidfd_getfd(2) and /proc/PID/mem.
#[lsm_cgroup(hook = "ptrace_access_check")]
pub fn lsm_ptrace(ctx: LsmContext) -> i32 {
    match hardening::trace(ctx.arg(1)) {
        Ok(()) => ALLOW_TRACE,
        Err(denial) => refuse(denial, Attempt::UNKNOWN),
    }
}

/// bpf(2): an agent that is root could take these programs away.
#[lsm_cgroup(hook = "bpf")]
pub fn lsm_bpf(_ctx: LsmContext) -> i32 {
    refuse(Denial::Privilege, Attempt::UNKNOWN)
}

/// A Unix socket is told whose it is when it is made. For an inet socket `sock_create` does it.
#[lsm_cgroup(hook = "socket_post_create")]
pub fn lsm_owner(ctx: LsmContext) -> i32 {
    let (socket, family) = (ctx.arg(0), ctx.arg::<i32>(1));
    if family != AF_UNIX {
        return ALLOW_SOCKET;
    }
    match own(sock(socket)) {
        Ok(()) => ALLOW_SOCKET,
        Err(denial) => refuse(denial, Attempt::UNKNOWN),
    }
}

/// connect(2) of a stream socket: other agents, and the services of the host, listen on Unix sockets too.
#[lsm_cgroup(hook = "unix_stream_connect")]
pub fn lsm_unix_stream(ctx: LsmContext) -> i32 {
    unix(ctx.arg(1))
}

/// A datagram, or connect(2) of a datagram socket.
#[lsm_cgroup(hook = "unix_may_send")]
pub fn lsm_unix_dgram(ctx: LsmContext) -> i32 {
    unix(sock(ctx.arg(1)))
}

#[inline(always)]
fn unix(peer: *mut bpf_sock) -> i32 {
    match reach(peer) {
        Ok(()) => ALLOW_UNIX,
        Err(denial) => refuse(denial, Attempt::UNKNOWN),
    }
}

#[inline(always)]
fn reach(peer: *mut bpf_sock) -> Result<(), Denial> {
    let settings = maps::settings().ok_or(Denial::Unconfigured)?;
    if settings.allow_unix != 0 {
        return Ok(());
    }
    if peer.is_null() {
        return Err(Denial::UnixSocket);
    }
    let owner: &mut Owner = maps::stored(&SK_OWNER, peer).ok_or(Denial::UnixSocket)?;
    let by = Caller::current(settings);
    hardening::unix(by.subtree, owner.subtree, settings.agents_id)
}

#[inline(always)]
fn own(sock: *mut bpf_sock) -> Result<(), Denial> {
    let settings = maps::settings().ok_or(Denial::Unconfigured)?;
    if sock.is_null() {
        return Err(Denial::NoStorage);
    }
    let by = Caller::current(settings);
    let owner: &mut Owner = maps::stored_or_new(&SK_OWNER, sock).ok_or(Denial::NoStorage)?;
    owner.cgroup_id = by.cgroup_id;
    owner.subtree = by.subtree;
    Ok(())
}

#[inline(always)]
fn refuse(why: Denial, attempt: Attempt) -> i32 {
    let by = match maps::settings() {
        Some(settings) => Caller::current(settings),
        None => Caller::unknown(),
    };
    deny(why, by, attempt)
}

#[inline(always)]
fn sock(socket: *const Socket) -> *mut bpf_sock {
    // SAFETY: the kernel gave the pointer, and the verifier allows this one load through it.
    unsafe { addr_of!((*socket).sk).read_volatile() }
}
