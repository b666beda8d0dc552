//! bind(2): an agent may listen for itself, but not where the gateway or a system service is expected.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::Address;
use gateway_ebpf::decide::{self, Denial};

use super::account::Attempt;
use super::answer::{ALLOW_BIND, deny};
use super::caller::Caller;
use super::{call, maps};

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    bind(call, call::address4(call))
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    bind(call, call::address6(call))
}

#[inline(always)]
fn bind(call: *mut bpf_sock_addr, destination: Address) -> i32 {
    let port = call::port(call);
    let protocol = call::protocol(call);
    let Some(settings) = maps::settings() else {
        return deny(Denial::Unconfigured, Caller::unknown(), Attempt::UNKNOWN);
    };
    let attempt = Attempt {
        netns_cookie: 0,
        destination,
        port,
        protocol,
    };
    match decide::bind(protocol, port, settings.gateway_port as u16) {
        Ok(()) => ALLOW_BIND,
        Err(denial) => {
            let by = Caller::of_socket(settings, call::socket(call));
            deny(denial, by, attempt)
        }
    }
}
