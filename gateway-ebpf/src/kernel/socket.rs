//! socket(2): what is neither TCP nor UDP does not exist for an agent.

use core::ptr::addr_of;

use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use gateway_ebpf::decide;

use super::answer::{ALLOW_SOCKET, deny};

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: context words.
    let (kind, protocol) = unsafe {
        (
            addr_of!((*ctx.sock).type_).read_volatile(),
            addr_of!((*ctx.sock).protocol).read_volatile(),
        )
    };
    match decide::socket(kind, protocol) {
        Ok(()) => ALLOW_SOCKET,
        Err(denial) => deny(denial),
    }
}
