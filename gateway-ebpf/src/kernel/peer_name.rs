//! getpeername(2): a redirected socket names the destination it asked for, as drivers and clients expect.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::answer::NAMED;
use super::maps;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: context words of the kernel's; the destination of an IPv4 socket is v4-mapped.
    unsafe {
        if let Some(flow) = maps::stored(&maps::SK_ORIG, (*call).__bindgen_anon_1.sk) {
            (*call).user_ip4 = flow.destination.0[3];
            (*call).user_port = u32::from(flow.port.to_be());
        }
    }
    NAMED
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: as above.
    unsafe {
        if let Some(flow) = maps::stored(&maps::SK_ORIG, (*call).__bindgen_anon_1.sk) {
            (*call).user_ip6[0] = flow.destination.0[0];
            (*call).user_ip6[1] = flow.destination.0[1];
            (*call).user_ip6[2] = flow.destination.0[2];
            (*call).user_ip6[3] = flow.destination.0[3];
            (*call).user_port = u32::from(flow.port.to_be());
        }
    }
    NAMED
}
