//! The LSM tier: what the other hooks never see. Loaded only where BPF is among the kernel's security modules.
//!
//! The programs are attached to the agents' cgroup like the others (`BPF_LSM_CGROUP`, Linux 6.0), not to the
//! hooks of the whole host: no other process ever runs one, and so none can be denied by one. They answer as
//! cgroup programs do; an earlier program's refusal stays, whatever they answer.

use core::ffi::c_void;
use core::ptr::addr_of;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id};
use aya_ebpf::macros::lsm_cgroup;
use aya_ebpf::programs::LsmContext;
use gateway_ebpf::decide::Denial;
use gateway_ebpf::hardening::{self, AF_UNIX};
use gateway_ebpf::{Owner, Settings};

use super::answer::{ALLOW_SOCKET, ALLOW_TRACE, ALLOW_UNIX, deny};
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
        Err(denial) => deny(denial),
    }
}

/// A new user namespace has every capability over the network namespaces made in it (Linux 6.1).
#[lsm_cgroup(hook = "userns_create")]
pub fn lsm_userns(_ctx: LsmContext) -> i32 {
    deny(Denial::Privilege)
}

/// ptrace(2), process_vm_writev(2), pidfd_getfd(2) and /proc/PID/mem.
#[lsm_cgroup(hook = "ptrace_access_check")]
pub fn lsm_ptrace(ctx: LsmContext) -> i32 {
    match hardening::trace(ctx.arg(1)) {
        Ok(()) => ALLOW_TRACE,
        Err(denial) => deny(denial),
    }
}

/// bpf(2): an agent that is root could take these programs away.
#[lsm_cgroup(hook = "bpf")]
pub fn lsm_bpf(_ctx: LsmContext) -> i32 {
    deny(Denial::Privilege)
}

/// A Unix socket is told whose it is when it is made. An inet socket knows already.
#[lsm_cgroup(hook = "socket_post_create")]
pub fn lsm_owner(ctx: LsmContext) -> i32 {
    let (socket, family) = (ctx.arg::<*const Socket>(0), ctx.arg::<i32>(1));
    if family == AF_UNIX && !own(socket) {
        return deny(Denial::NoStorage);
    }
    ALLOW_SOCKET
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
    let Some(settings) = maps::settings() else {
        return deny(Denial::Unconfigured);
    };
    if settings.allow_unix != 0 {
        return ALLOW_UNIX;
    }
    if peer.is_null() {
        return deny(Denial::UnixSocket);
    }
    let subtree = subtree(settings);
    match maps::stored(&SK_OWNER, peer) {
        Some(owner) if owner.subtree == subtree && subtree != settings.agents_id => ALLOW_UNIX,
        _ => deny(Denial::UnixSocket),
    }
}

#[inline(always)]
fn own(socket: *const Socket) -> bool {
    let Some(settings) = maps::settings() else {
        return false;
    };
    let mut owner = Owner {
        // SAFETY: a helper without preconditions.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        subtree: subtree(settings),
    };
    let sock = sock(socket);
    !sock.is_null() && maps::stored_or(&SK_OWNER, sock, &raw mut owner).is_some()
}

#[inline(always)]
fn subtree(settings: &Settings) -> u64 {
    // SAFETY: a helper without preconditions; 0 when the process is not that deep.
    match unsafe { bpf_get_current_ancestor_cgroup_id(settings.agents_level as i32 + 1) } {
        0 => settings.agents_id,
        subtree => subtree,
    }
}

#[inline(always)]
fn sock(socket: *const Socket) -> *mut bpf_sock {
    // SAFETY: the kernel gave the pointer, and the verifier allows this one load through it.
    unsafe { addr_of!((*socket).sk).read_volatile() }
}
