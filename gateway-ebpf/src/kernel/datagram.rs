//! Datagrams: questions go to the gateway's resolver, whatever resolver was named; its answers come from the
//! one that was.
//!
//! The hook on sending runs only when a destination is given with the call. On a socket that connect(2) has
//! given one, connect's hook has decided.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::decide::{self, Call, Denial, IPPROTO_UDP};
use gateway_ebpf::flow::kind;
use gateway_ebpf::{Address, Settings};

use super::account::{self, Attempt, What};
use super::answer::{ALLOW_REDIRECTED, NAMED, deny, deny_with_errno};
use super::call;
use super::caller::Caller;
use super::maps::{self, SK_ORIG};
use super::redirect::Asked;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    send(call, call::address4(call), call::set_address4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    send(call, call::address6(call), call::set_address6)
}

#[inline(always)]
fn send(
    call: *mut bpf_sock_addr,
    named: Address,
    rewrite: fn(*mut bpf_sock_addr, Address, u16),
) -> i32 {
    let port = call::port(call);
    let Some(settings) = maps::settings() else {
        return deny(Denial::Unconfigured, Caller::unknown(), Attempt::UNKNOWN);
    };
    let asked = Asked::new(call, settings, named.effective(), port, IPPROTO_UDP);
    match ask(&asked, settings) {
        Ok(Question::Further) => ALLOW_REDIRECTED,
        Ok(Question::First) => {
            let gateway = asked.attempt.destination.gateway();
            rewrite(call, gateway, settings.gateway_port as u16);
            ALLOW_REDIRECTED
        }
        Err(denial) => deny_with_errno(denial, asked.by, asked.attempt),
    }
}

#[derive(Clone, Copy)]
enum Question {
    First,
    /// On a socket that connect(2) has sent to the gateway, and addressed to it.
    Further,
}

#[inline(always)]
fn ask(asked: &Asked, settings: &Settings) -> Result<Question, Denial> {
    let gateway_port = settings.gateway_port as u16;
    let noted =
        maps::stored(&SK_ORIG, call::socket(asked.call)).map_or(kind::NONE, |flow| flow.kind);
    let (to, port) = (asked.attempt.destination, asked.attempt.port);
    let question = if decide::is_asking(noted, to, port, gateway_port) {
        asked.gateway_is_there(settings)?;
        Question::Further
    } else {
        match decide::call(IPPROTO_UDP, port)? {
            Call::Dns => {}
            Call::Tcp => return Err(Denial::Datagram),
        }
        asked.gateway_is_there(settings)?;
        asked.note(kind::DNS)?;
        Question::First
    };
    account::count(asked.by, What::Dns);
    Ok(question)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    receive(call, call::address4(call), call::set_address4);
    NAMED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    receive(call, call::address6(call), call::set_address6);
    NAMED
}

/// An answer of the gateway's resolver names the resolver that was asked. (With several asked from one
/// socket, the last one; clients take an answer from any that they asked.)
#[inline(always)]
fn receive(call: *mut bpf_sock_addr, from: Address, rewrite: fn(*mut bpf_sock_addr, Address, u16)) {
    let port = call::port(call);
    if port != maps::gateway_port() || !from.is_loopback() {
        return;
    }
    if let Some(flow) = maps::stored(&SK_ORIG, call::socket(call))
        && flow.kind == kind::DNS
    {
        rewrite(call, flow.destination, flow.port);
    }
}
