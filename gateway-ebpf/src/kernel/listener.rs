//! Listeners of the agent itself: reaching them is no business of the gateway's.

use core::ptr::addr_of;

use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as tuple6,
};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release};
use gateway_ebpf::{Settings, decide};

use super::maps::{self, SK_OWNER};
use super::redirect::Asked;

const TCP_LISTEN: u32 = 10;
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether the destination is a listener that the caller's own subtree made.
#[inline(always)]
pub fn is_own(asked: &Asked, settings: &Settings) -> bool {
    let listener = find(asked);
    if listener.is_null() {
        return false;
    }
    // SAFETY: a word of the socket, which is not null.
    let state = unsafe { addr_of!((*listener).state).read_volatile() };
    let owner = maps::stored(&SK_OWNER, listener);
    let subtree = owner.map_or(0, |owner| owner.subtree);
    // SAFETY: the lookup took the reference that is given back here.
    unsafe { bpf_sk_release(listener.cast()) };
    state == TCP_LISTEN && decide::same_agent(subtree, asked.by.subtree, settings.agents_id)
}

/// The socket that a SYN to the destination would reach, referenced; or null.
#[inline(always)]
fn find(asked: &Asked) -> *mut bpf_sock {
    let to = asked.attempt.destination;
    let port = asked.attempt.port.to_be();
    // The source does not matter to a listener; a port of 0 is no connection's.
    if to.as_v4().is_some() {
        let mut tuple = bpf_sock_tuple {
            __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
                ipv4: tuple4 {
                    saddr: to.0[3],
                    daddr: to.0[3],
                    sport: 0,
                    dport: port,
                },
            },
        };
        lookup(asked, &mut tuple, size_of::<tuple4>())
    } else {
        let mut tuple = bpf_sock_tuple {
            __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
                ipv6: tuple6 {
                    saddr: to.0,
                    daddr: to.0,
                    sport: 0,
                    dport: port,
                },
            },
        };
        lookup(asked, &mut tuple, size_of::<tuple6>())
    }
}

#[inline(always)]
fn lookup(asked: &Asked, tuple: &mut bpf_sock_tuple, size: usize) -> *mut bpf_sock {
    // SAFETY: the context, and a tuple of which the first `size` bytes are set.
    unsafe { bpf_sk_lookup_tcp(asked.call.cast(), tuple, size as u32, CURRENT_NETNS, 0) }
}
