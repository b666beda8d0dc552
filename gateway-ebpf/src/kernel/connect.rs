//! connect(2): note where the process wanted to go, then send it to the gateway.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::decide::{self, Call, Denial, Route};
use gateway_ebpf::flow::kind;
use gateway_ebpf::{Address, Settings, TargetKey};

use super::account::{self, Attempt, What};
use super::answer::{ALLOW_LOCAL, ALLOW_REDIRECTED, deny, deny_with_errno};
use super::caller::Caller;
use super::maps::{self, TARGETS};
use super::redirect::Asked;
use super::{call, listener};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    connect(call, call::address4(call), call::set_address4)
}

/// IPv6, v4-mapped included: for those the kernel runs this hook only.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    connect(call, call::address6(call), call::set_address6)
}

#[inline(always)]
fn connect(
    call: *mut bpf_sock_addr,
    named: Address,
    rewrite: fn(*mut bpf_sock_addr, Address, u16),
) -> i32 {
    let port = call::port(call);
    let protocol = call::protocol(call);
    let Some(settings) = maps::settings() else {
        return deny(Denial::Unconfigured, Caller::unknown(), Attempt::UNKNOWN);
    };
    let asked = Asked::new(call, settings, named.effective(), port, protocol);
    let outcome = match decide::call(protocol, port) {
        Ok(Call::Tcp) => {
            account::count(asked.by, What::Connect);
            tcp(&asked, settings)
        }
        Ok(Call::Dns) => dns(&asked, settings),
        Err(denial) => Err(denial),
    };
    match outcome {
        Ok(Route::Gateway) => {
            let gateway = asked.attempt.destination.gateway();
            rewrite(call, gateway, settings.gateway_port as u16);
            ALLOW_REDIRECTED
        }
        Ok(Route::Local) => ALLOW_LOCAL,
        Err(denial) => deny_with_errno(denial, asked.by, asked.attempt),
    }
}

#[inline(always)]
fn tcp(asked: &Asked, settings: &Settings) -> Result<Route, Denial> {
    let (to, port) = (asked.attempt.destination, asked.attempt.port);
    asked.gateway_is_there(settings)?;
    decide::destination(to, port, settings.gateway_port as u16)?;
    let own = listener::is_own(asked, settings);
    let route = decide::route(port, own, is_target(to, port))?;
    match route {
        Route::Gateway => {
            asked.note(kind::REDIRECTED)?;
            account::count(asked.by, What::Redirected);
        }
        Route::Local => {
            asked.note(kind::LOCAL)?;
            account::count(asked.by, What::Local);
        }
    }
    Ok(route)
}

#[inline(always)]
fn dns(asked: &Asked, settings: &Settings) -> Result<Route, Denial> {
    asked.gateway_is_there(settings)?;
    asked.note(kind::DNS)?;
    account::count(asked.by, What::Dns);
    Ok(Route::Gateway)
}

#[inline(always)]
fn is_target(address: Address, port: u16) -> bool {
    let key = TargetKey {
        address,
        port,
        reserved: 0,
    };
    TARGETS.get_ptr(key).is_some()
}
