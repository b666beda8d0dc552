//! The gateway's port on loopback belongs to the gateway's sockets, also while it is down: nobody else who
//! binds it gets a connection.

use core::ptr::addr_of;

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use gateway_ebpf::{Address, decide};

use super::answer::{ALLOW_LOOKUP, DENY_LOOKUP};
use super::maps::{self, SOCKETS};

const AF_INET: u32 = 2;

#[sk_lookup]
pub fn port_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: context words, all read before the branch.
    let (family, protocol, v4, v6, port) = unsafe {
        (
            addr_of!((*lookup).family).read_volatile(),
            addr_of!((*lookup).protocol).read_volatile(),
            addr_of!((*lookup).local_ip4).read_volatile(),
            [
                addr_of!((*lookup).local_ip6[0]).read_volatile(),
                addr_of!((*lookup).local_ip6[1]).read_volatile(),
                addr_of!((*lookup).local_ip6[2]).read_volatile(),
                addr_of!((*lookup).local_ip6[3]).read_volatile(),
            ],
            // Host byte order.
            addr_of!((*lookup).local_port).read_volatile() as u16,
        )
    };
    let to = if family == AF_INET {
        Address::v4(v4)
    } else {
        Address(v6)
    };
    match decide::gateway_socket(protocol, to, port, maps::gateway_port()) {
        None => ALLOW_LOOKUP,
        Some(index) => match SOCKETS.redirect_sk_lookup(&ctx, index, 0) {
            Ok(()) => ALLOW_LOOKUP,
            Err(_) => DENY_LOOKUP,
        },
    }
}
