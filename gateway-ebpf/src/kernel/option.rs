//! setsockopt(2): no multicast groups. Whoever joins one makes the kernel itself tell the link, in packets that
//! belong to no socket, so `egress` never sees them; and the group's address is the agent's choice.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use gateway_ebpf::decide;

use super::account::Attempt;
use super::answer::{ALLOW_OPTION, deny};
use super::caller::Caller;
use super::maps::{self, SK_OWNER};

#[cgroup_sockopt(setsockopt)]
pub fn setsockopt(ctx: SockoptContext) -> i32 {
    // SAFETY: context words.
    let (level, name, socket) = unsafe {
        (
            addr_of!((*ctx.sockopt).level).read_volatile(),
            addr_of!((*ctx.sockopt).optname).read_volatile(),
            addr_of!((*ctx.sockopt).__bindgen_anon_1.sk).read_volatile(),
        )
    };
    // The kernel takes the caller's own value; of values longer than a page it would have refused ours.
    // SAFETY: a context word that may be written.
    unsafe { addr_of_mut!((*ctx.sockopt).optlen).write_volatile(0) };
    match decide::option(level, name) {
        Ok(()) => ALLOW_OPTION,
        Err(denial) => deny(denial, maker(socket), Attempt::UNKNOWN),
    }
}

/// Not every kernel lets this hook ask who calls; the socket knows who made it.
#[inline(always)]
fn maker(socket: *mut bpf_sock) -> Caller {
    let (cgroup_id, subtree) = match maps::stored(&SK_OWNER, socket) {
        Some(owner) => (owner.cgroup_id, owner.subtree),
        None => (0, 0),
    };
    Caller {
        cgroup_id,
        subtree,
        is_current: false,
    }
}
