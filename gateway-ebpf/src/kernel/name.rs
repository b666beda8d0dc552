//! getpeername(2) and getsockname(2): a redirected socket names the destination it asked for, and a local
//! address that fits to it, as drivers and clients expect.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::flow::kind;
use gateway_ebpf::{Address, Flow};

use super::answer::NAMED;
use super::call;
use super::maps::{self, SK_ORIG};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    if let Some(flow) = redirected(call) {
        call::set_address4(call, flow.destination, flow.port);
    }
    NAMED
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    if let Some(flow) = redirected(call) {
        call::set_address6(call, flow.destination, flow.port);
    }
    NAMED
}

#[cgroup_sock_addr(getsockname4)]
pub fn getsockname4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    let port = call::port(call);
    if redirected(call).is_some()
        && let Some(settings) = maps::settings()
        && settings.local_v4 != 0
    {
        call::set_address4(call, Address::v4(settings.local_v4), port);
    }
    NAMED
}

#[cgroup_sock_addr(getsockname6)]
pub fn getsockname6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    let port = call::port(call);
    if let Some(flow) = redirected(call)
        && let Some(settings) = maps::settings()
    {
        let is_v4 = flow.destination.as_v4().is_some();
        let [a, b, c, d] = settings.local_v6;
        if is_v4 && settings.local_v4 != 0 {
            call::set_address6(call, Address::v4(settings.local_v4), port);
        } else if !is_v4 && (a | b | c | d) != 0 {
            call::set_address6(call, Address([a, b, c, d]), port);
        }
    }
    NAMED
}

/// The socket's flow, if it leads to the gateway.
#[inline(always)]
fn redirected(call: *mut bpf_sock_addr) -> Option<&'static Flow> {
    let flow = maps::stored(&SK_ORIG, call::socket(call))?;
    matches!(flow.kind, kind::REDIRECTED | kind::DNS).then_some(&*flow)
}
