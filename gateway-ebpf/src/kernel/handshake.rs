//! The TCP handshake carries a flow from the client's socket to the socket the gateway accepts.
//!
//! There is no race: the client's callback runs inside connect(2) before the SYN leaves, the gateway's before
//! accept(2) can return the socket.

use core::ptr::{addr_of, from_ref};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    bpf_sock,
};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::bpf_map_update_elem;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use gateway_ebpf::flow::kind;
use gateway_ebpf::{Address, ConnKey, Flow};

use super::answer::OBSERVED;
use super::maps::{self, CONNS, SK_ACC, SK_ORIG};

const AF_INET: u32 = 2;

/// The agent's side: the client's, and of connections within the agent the listener's too.
#[sock_ops]
pub fn agent_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => announce(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => open(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => claim(&ctx, &SK_ORIG, kind::LOCAL_OPEN),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => withdraw(&ctx),
        _ => {}
    }
    OBSERVED
}

/// The gateway's side.
#[sock_ops]
pub fn gateway_sock_ops(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        claim(&ctx, &SK_ACC, kind::REDIRECTED);
    }
    OBSERVED
}

/// Publishes the client's flow under the connection's 4-tuple. When the table is full there is no entry, and
/// the gateway resets the connection.
#[inline(always)]
fn announce(ctx: &SockOpsContext) {
    let socket = socket(ctx);
    let (local, remote) = endpoints(ctx);
    if socket.is_null() {
        return;
    }
    let Some(flow) = maps::stored(&SK_ORIG, socket) else {
        return;
    };
    let key = key(ctx, local, remote);
    // SAFETY: key and value are of the map's types; the helper copies both.
    unsafe {
        bpf_map_update_elem(
            addr_of!(CONNS).cast_mut().cast(),
            from_ref(&key).cast(),
            from_ref(flow).cast(),
            BPF_ANY.into(),
        );
    }
    // Without the callback the entry of a refused connect would stay for ever.
    let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

/// A connection within the agent may carry data once it is the agent's own listener that has answered.
#[inline(always)]
fn open(ctx: &SockOpsContext) {
    let socket = socket(ctx);
    let (local, remote) = endpoints(ctx);
    if socket.is_null() {
        return;
    }
    let Some(flow) = maps::stored(&SK_ORIG, socket) else {
        return;
    };
    if flow.kind != kind::LOCAL {
        return;
    }
    if let Some(noted) = CONNS.get_ptr(key(ctx, local, remote)) {
        // SAFETY: a map value.
        flow.kind = unsafe { (*noted).kind };
    }
}

/// Removes the entry of a connection that ends before the other side has claimed it.
#[inline(always)]
fn withdraw(ctx: &SockOpsContext) {
    let (local, remote) = endpoints(ctx);
    let _ = CONNS.remove(key(ctx, local, remote));
}

/// Moves the flow to the accepted socket, if it is of the kind that ends here.
#[inline(always)]
fn claim(ctx: &SockOpsContext, accepted: &'static SkStorage<Flow>, kind: u8) {
    let socket = socket(ctx);
    let (local, remote) = endpoints(ctx);
    if socket.is_null() {
        return;
    }
    // Seen from the client, the source is what is remote here.
    let key = key(ctx, remote, local);
    if let Some(flow) = CONNS.get_ptr_mut(key) {
        // SAFETY: a map value.
        if unsafe { (*flow).kind } == kind {
            maps::stored_or(accepted, socket, flow);
            let _ = CONNS.remove(key);
        }
    }
}

type Endpoint = (Address, u16);

#[inline(always)]
fn key(ctx: &SockOpsContext, source: Endpoint, destination: Endpoint) -> ConnKey {
    // SAFETY: a helper without preconditions.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    ConnKey {
        netns_cookie,
        source: source.0,
        destination: destination.0,
        source_port: source.1,
        destination_port: destination.1,
        reserved: 0,
    }
}

/// Local and remote endpoint. An IPv6 socket with a v4-mapped peer has it mapped here too, so it meets the
/// gateway's IPv4 listener under the same key.
#[inline(always)]
fn endpoints(ctx: &SockOpsContext) -> (Endpoint, Endpoint) {
    let ops = ctx.ops;
    // SAFETY: context words, all read before the branch.
    let (family, local4, remote4, local6, remote6, local_port, remote_port) = unsafe {
        (
            addr_of!((*ops).family).read_volatile(),
            addr_of!((*ops).local_ip4).read_volatile(),
            addr_of!((*ops).remote_ip4).read_volatile(),
            words(addr_of!((*ops).local_ip6)),
            words(addr_of!((*ops).remote_ip6)),
            // Host byte order, unlike the remote port.
            addr_of!((*ops).local_port).read_volatile() as u16,
            u32::from_be(addr_of!((*ops).remote_port).read_volatile()) as u16,
        )
    };
    let (local, remote) = if family == AF_INET {
        (Address::v4(local4), Address::v4(remote4))
    } else {
        (Address(local6), Address(remote6))
    };
    ((local, local_port), (remote, remote_port))
}

#[inline(always)]
unsafe fn words(of: *const [u32; 4]) -> [u32; 4] {
    let word: *const u32 = of.cast();
    // SAFETY: the caller passes four context words; one 32-bit load each.
    unsafe {
        [
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ]
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: a context word; null for request sockets.
    unsafe { addr_of!((*ctx.ops).__bindgen_anon_2.sk).read_volatile() }
}
