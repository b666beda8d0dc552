//! sendto(2), sendmsg(2) and sendmmsg(2) with a destination: only resolvers may be asked.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::decide;

use super::answer::{ALLOW_DNS, deny};
use super::connect::port;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    decision(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    decision(&ctx)
}

#[inline(always)]
fn decision(ctx: &SockAddrContext) -> i32 {
    match decide::datagram(port(ctx.sock_addr)) {
        Ok(()) => ALLOW_DNS,
        Err(denial) => deny(denial),
    }
}
