//! socket(2): what is neither TCP nor UDP does not exist for an agent; what is has an owner from the start.

use core::ptr::addr_of;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use gateway_ebpf::Owner;
use gateway_ebpf::decide::{self, Denial};

use super::account::Attempt;
use super::answer::{ALLOW_SOCKET, deny};
use super::caller::Caller;
use super::maps::{self, SK_OWNER};

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let socket = ctx.sock;
    // SAFETY: context words.
    let (kind, protocol) = unsafe {
        (
            addr_of!((*socket).type_).read_volatile(),
            addr_of!((*socket).protocol).read_volatile(),
        )
    };
    let Some(settings) = maps::settings() else {
        return deny(Denial::Unconfigured, Caller::unknown(), Attempt::UNKNOWN);
    };
    let by = Caller::current(settings);
    match decide::socket(kind, protocol).and_then(|()| own(socket, by)) {
        Ok(()) => ALLOW_SOCKET,
        Err(denial) => {
            let attempt = Attempt {
                protocol: kind,
                ..Attempt::UNKNOWN
            };
            deny(denial, by, attempt)
        }
    }
}

#[inline(always)]
fn own(socket: *mut bpf_sock, by: Caller) -> Result<(), Denial> {
    let owner: &mut Owner = maps::stored_or_new(&SK_OWNER, socket).ok_or(Denial::NoStorage)?;
    owner.cgroup_id = by.cgroup_id;
    owner.subtree = by.subtree;
    // SAFETY: a helper on the context.
    owner.netns_cookie = unsafe { bpf_get_netns_cookie(socket.cast()) };
    Ok(())
}
