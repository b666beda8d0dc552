//! The LSM tier: what the other hooks never see. Loaded only where BPF is among the kernel's security modules.
//!
//! The programs are attached to the agents' cgroup like the others (`BPF_LSM_CGROUP`, Linux 6.0), not to the
//! hooks of the whole host: no other process ever runs one, and so none can be denied by one. They answer as
//! cgroup programs do; an earlier program's refusal stays, whatever they answer.

use aya_ebpf::macros::lsm_cgroup;
use aya_ebpf::programs::LsmContext;
use gateway_ebpf::decide::Denial;
use gateway_ebpf::hardening;

use super::answer::{ALLOW_SOCKET, ALLOW_TRACE, deny};

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
