//! The context of the socket address hooks: one 32-bit load per word, before any branch.

use core::ptr::addr_of;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use gateway_ebpf::Address;

#[inline(always)]
pub fn socket(call: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: a context word; never null in these hooks.
    unsafe { addr_of!((*call).__bindgen_anon_1.sk).read_volatile() }
}

#[inline(always)]
pub fn protocol(call: *mut bpf_sock_addr) -> u32 {
    // SAFETY: a context word.
    unsafe { addr_of!((*call).protocol).read_volatile() }
}

/// The interface the socket is bound to, 0 for none.
#[inline(always)]
pub fn bound_device(call: *mut bpf_sock_addr) -> u32 {
    // SAFETY: a word of the socket, which is never null in these hooks.
    unsafe { addr_of!((*socket(call)).bound_dev_if).read_volatile() }
}

#[inline(always)]
pub fn address4(call: *mut bpf_sock_addr) -> Address {
    // SAFETY: a context word.
    Address::v4(unsafe { addr_of!((*call).user_ip4).read_volatile() })
}

#[inline(always)]
pub fn address6(call: *mut bpf_sock_addr) -> Address {
    // SAFETY: context words; one 32-bit load each.
    Address(unsafe {
        [
            addr_of!((*call).user_ip6[0]).read_volatile(),
            addr_of!((*call).user_ip6[1]).read_volatile(),
            addr_of!((*call).user_ip6[2]).read_volatile(),
            addr_of!((*call).user_ip6[3]).read_volatile(),
        ]
    })
}

/// The port is 16 bits in network byte order, kept in a 32-bit word.
#[inline(always)]
pub fn port(call: *mut bpf_sock_addr) -> u16 {
    // SAFETY: a context word.
    u16::from_be(unsafe { addr_of!((*call).user_port).read_volatile() } as u16)
}

/// Only in hooks that may change the address.
#[inline(always)]
pub fn set_address4(call: *mut bpf_sock_addr, to: Address, port: u16) {
    // SAFETY: context words that the hook may write.
    unsafe {
        (*call).user_ip4 = to.0[3];
        (*call).user_port = u32::from(port.to_be());
    }
}

/// As above.
#[inline(always)]
pub fn set_address6(call: *mut bpf_sock_addr, to: Address, port: u16) {
    // SAFETY: context words that the hook may write.
    unsafe {
        (*call).user_ip6[0] = to.0[0];
        (*call).user_ip6[1] = to.0[1];
        (*call).user_ip6[2] = to.0[2];
        (*call).user_ip6[3] = to.0[3];
        (*call).user_port = u32::from(port.to_be());
    }
}
