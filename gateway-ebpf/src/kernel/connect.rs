//! connect(2): note where the process wanted to go, then send it to the gateway.

use core::ptr::addr_of;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_boot_ns,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use gateway_ebpf::decide::{self, Connect, Denial, Verdict};
use gateway_ebpf::flow::{COMM_LEN, kind};
use gateway_ebpf::{Address, Flow};

use super::answer::{ALLOW_DNS, ALLOW_REDIRECTED, deny};
use super::maps;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    let (destination, port) = destination4(call);
    match verdict(call, destination, port) {
        Verdict::Redirect { original, gateway } => {
            if let Err(denial) = note(call, original, port) {
                return deny(denial);
            }
            // SAFETY: the context is the kernel's; both words are writable in this hook.
            unsafe {
                (*call).user_ip4 = gateway.0[3];
                (*call).user_port = u32::from(maps::gateway_port().to_be());
            }
            ALLOW_REDIRECTED
        }
        Verdict::Dns => ALLOW_DNS,
        Verdict::Deny(denial) => deny(denial),
    }
}

/// IPv6, v4-mapped included: for those the kernel runs this hook only.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    let (destination, port) = destination6(call);
    match verdict(call, destination, port) {
        Verdict::Redirect { original, gateway } => {
            if let Err(denial) = note(call, original, port) {
                return deny(denial);
            }
            // SAFETY: as in connect4.
            unsafe {
                (*call).user_ip6[0] = gateway.0[0];
                (*call).user_ip6[1] = gateway.0[1];
                (*call).user_ip6[2] = gateway.0[2];
                (*call).user_ip6[3] = gateway.0[3];
                (*call).user_port = u32::from(maps::gateway_port().to_be());
            }
            ALLOW_REDIRECTED
        }
        Verdict::Dns => ALLOW_DNS,
        Verdict::Deny(denial) => deny(denial),
    }
}

#[inline(always)]
fn verdict(call: *mut bpf_sock_addr, destination: Address, port: u16) -> Verdict {
    // SAFETY: context words, read before any branch on them.
    let protocol = unsafe { addr_of!((*call).protocol).read_volatile() };
    let bound_device = unsafe { addr_of!((*socket(call)).bound_dev_if).read_volatile() };
    decide::connect(Connect {
        protocol,
        destination,
        port,
        bound_device,
        gateway_port: maps::gateway_port(),
    })
}

/// Writes the flow into the socket's storage in place: a struct literal would become a call to memset,
/// which does not exist here.
#[inline(always)]
fn note(call: *mut bpf_sock_addr, original: Address, port: u16) -> Result<(), Denial> {
    let flow: &mut Flow =
        maps::stored_or_new(&maps::SK_ORIG, socket(call)).ok_or(Denial::NoStorage)?;
    // SAFETY: helpers without preconditions; `comm` is COMM_LEN writable bytes of a map value.
    unsafe {
        let pid_tgid = bpf_get_current_pid_tgid();
        let uid_gid = bpf_get_current_uid_gid();
        flow.destination = original;
        flow.port = port;
        flow.kind = kind::REDIRECTED;
        flow.cgroup_id = bpf_get_current_cgroup_id();
        flow.netns_cookie = bpf_get_netns_cookie(call.cast());
        flow.socket_cookie = bpf_get_socket_cookie(call.cast());
        flow.boot_ns = bpf_ktime_get_boot_ns();
        flow.tgid = (pid_tgid >> 32) as u32;
        flow.pid = pid_tgid as u32;
        flow.uid = uid_gid as u32;
        flow.gid = (uid_gid >> 32) as u32;
        bpf_get_current_comm(flow.comm.as_mut_ptr().cast(), COMM_LEN as u32);
    }
    Ok(())
}

#[inline(always)]
fn socket(call: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: a context word; never null in these hooks.
    unsafe { addr_of!((*call).__bindgen_anon_1.sk).read_volatile() }
}

/// Address and port (host byte order) of an IPv4 call.
#[inline(always)]
pub fn destination4(call: *mut bpf_sock_addr) -> (Address, u16) {
    // SAFETY: context words.
    let ip = unsafe { addr_of!((*call).user_ip4).read_volatile() };
    (Address::v4(ip), port(call))
}

/// Address and port (host byte order) of an IPv6 call.
#[inline(always)]
fn destination6(call: *mut bpf_sock_addr) -> (Address, u16) {
    let words = addr_of_ip6(call);
    (Address(words), port(call))
}

#[inline(always)]
fn addr_of_ip6(call: *mut bpf_sock_addr) -> [u32; 4] {
    // SAFETY: context words; one 32-bit load each.
    unsafe {
        [
            addr_of!((*call).user_ip6[0]).read_volatile(),
            addr_of!((*call).user_ip6[1]).read_volatile(),
            addr_of!((*call).user_ip6[2]).read_volatile(),
            addr_of!((*call).user_ip6[3]).read_volatile(),
        ]
    }
}

/// The port is 16 bits in network byte order, kept in a 32-bit word.
#[inline(always)]
pub fn port(call: *mut bpf_sock_addr) -> u16 {
    // SAFETY: a context word.
    u16::from_be(unsafe { addr_of!((*call).user_port).read_volatile() } as u16)
}
