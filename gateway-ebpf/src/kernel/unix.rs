//! Unix sockets: whoever listens there may act for an agent (container engines, D-Bus, ssh agents).
//!
//! The hooks do not see the path, so it is all or nothing. The loader gives these two programs their real
//! hooks (`BPF_CGROUP_UNIX_CONNECT` and `_SENDMSG`, Linux 6.7), which aya has no names for.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::decide::Denial;

use super::account::Attempt;
use super::answer::{ALLOW_UNIX, deny};
use super::caller::Caller;
use super::maps;

#[cgroup_sock_addr(connect4)]
pub fn connect_unix(_ctx: SockAddrContext) -> i32 {
    decision()
}

#[cgroup_sock_addr(connect4)]
pub fn sendmsg_unix(_ctx: SockAddrContext) -> i32 {
    decision()
}

#[inline(always)]
fn decision() -> i32 {
    match maps::settings() {
        Some(settings) if settings.allow_unix != 0 => ALLOW_UNIX,
        Some(settings) => deny(
            Denial::UnixSocket,
            Caller::current(settings),
            Attempt::UNKNOWN,
        ),
        None => deny(Denial::Unconfigured, Caller::unknown(), Attempt::UNKNOWN),
    }
}
