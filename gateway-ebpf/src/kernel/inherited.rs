//! The guard against sockets from outside: a socket carries its maker's cgroup for ever, so one that was made
//! outside and came in (inherited, passed, taken) runs none of the agents' hooks. These hooks are attached
//! further up and so run for every process there; all they ever deny is an agent using such a socket.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::{Address, decide};

use super::account::Attempt;
use super::answer::{ALLOW_NOT_INHERITED, deny};
use super::call;
use super::caller::{self, Caller};
use super::maps::{self, SK_OWNER};

#[cgroup_sock_addr(connect4)]
pub fn guard_connect4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    inherited(call, call::address4(call))
}

#[cgroup_sock_addr(connect6)]
pub fn guard_connect6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    inherited(call, call::address6(call))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn guard_sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    inherited(call, call::address4(call))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn guard_sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    inherited(call, call::address6(call))
}

#[inline(always)]
fn inherited(call: *mut bpf_sock_addr, destination: Address) -> i32 {
    let port = call::port(call);
    let protocol = call::protocol(call);
    // Before there are settings nobody is known to be an agent, and this runs for the whole host.
    let Some(settings) = maps::settings() else {
        return ALLOW_NOT_INHERITED;
    };
    let ancestor = caller::ancestor(settings);
    // Nearly everybody goes here, without a look at the socket.
    if ancestor != settings.agents_id {
        return ALLOW_NOT_INHERITED;
    }
    let has_owner = maps::stored(&SK_OWNER, call::socket(call)).is_some();
    match decide::inherited(ancestor, settings.agents_id, has_owner) {
        Ok(()) => ALLOW_NOT_INHERITED,
        Err(denial) => {
            let attempt = Attempt {
                netns_cookie: 0,
                destination,
                port,
                protocol,
            };
            deny(denial, Caller::current(settings), attempt)
        }
    }
}
