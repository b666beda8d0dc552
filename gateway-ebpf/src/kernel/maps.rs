//! The maps, pinned by the guard; the types are explained in the library.

use core::ffi::c_void;
use core::ptr::{addr_of, null_mut};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, SkStorage};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use gateway_ebpf::decide::Denial;
use gateway_ebpf::{ConnKey, Flow, Settings};

/// Of the connecting socket. Freed with it; nobody else can evict it.
#[btf_map]
static SK_ORIG: SkStorage<Flow> = SkStorage::new();

/// Of the socket the gateway accepted; the gateway reads it by file descriptor.
#[btf_map]
static SK_ACC: SkStorage<Flow> = SkStorage::new();

/// Connections in their handshake. Not an LRU: a full table refuses new connections (they reach the gateway
/// without a flow and are reset), it never forgets a waiting one.
#[btf_map]
pub static CONNS: HashMap<ConnKey, Flow, 65536> = HashMap::new();

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// How often each [`Denial`] happened.
#[btf_map]
static DENIALS: PerCpuArray<u64, { Denial::COUNT }> = PerCpuArray::new();

/// The gateway's loopback port, 0 before the guard has set one.
#[inline(always)]
pub fn gateway_port() -> u16 {
    match SETTINGS.get(0) {
        Some(settings) => settings.gateway_port as u16,
        None => 0,
    }
}

#[inline(always)]
pub fn count(why: Denial) {
    if let Some(counter) = DENIALS.get_ptr_mut(why as u32) {
        // SAFETY: a per-CPU slot, and the program is not preempted by another on this CPU.
        unsafe { *counter += 1 };
    }
}

/// The client socket's flow, made zeroed if there is none.
#[inline(always)]
pub fn original_or_new(socket: *mut bpf_sock) -> Option<&'static mut Flow> {
    storage(
        addr_of!(SK_ORIG),
        socket,
        null_mut(),
        BPF_SK_STORAGE_GET_F_CREATE,
    )
}

/// The client socket's flow, if it was redirected.
#[inline(always)]
pub fn original(socket: *mut bpf_sock) -> Option<&'static mut Flow> {
    storage(addr_of!(SK_ORIG), socket, null_mut(), 0)
}

/// Gives the accepted socket its flow.
#[inline(always)]
pub fn set_accepted(socket: *mut bpf_sock, flow: *mut Flow) {
    storage(addr_of!(SK_ACC), socket, flow, BPF_SK_STORAGE_GET_F_CREATE);
}

/// aya's own `SkStorage` methods take only a sock_addr context; the helper takes any socket.
#[inline(always)]
fn storage(
    map: *const SkStorage<Flow>,
    socket: *mut bpf_sock,
    initial: *mut Flow,
    flags: u32,
) -> Option<&'static mut Flow> {
    let map: *mut c_void = map.cast_mut().cast();
    // SAFETY: the helper checks the socket and returns null or a value of the map's type, which lives at
    // least as long as the program runs.
    unsafe {
        bpf_sk_storage_get(map, socket.cast(), initial.cast(), flags.into())
            .cast::<Flow>()
            .as_mut()
    }
}
