//! The maps, pinned by the guard; the types are explained in the library.

use core::ffi::c_void;
use core::ptr::{addr_of, null_mut};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, RingBuf, SkStorage, SockMap};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::btf_map;
use gateway_ebpf::{
    ConnKey, Counters, DatagramKey, DeviceKey, Flow, KernelEvent, Listener, Owner, ReportedKey,
    Settings, TargetKey,
};

/// Of the calling socket. Freed with it; nobody else can evict it.
#[btf_map]
pub static SK_ORIG: SkStorage<Flow> = SkStorage::new();

/// Of the socket the gateway accepted; the gateway reads it by file descriptor.
#[btf_map]
pub static SK_ACC: SkStorage<Flow> = SkStorage::new();

/// Who made a socket, on every socket made inside of the agents' cgroup.
#[btf_map]
pub static SK_OWNER: SkStorage<Owner> = SkStorage::new();

/// Connections in their handshake. Not an LRU: a full table refuses new connections (they reach the gateway
/// without a flow and are reset), it never forgets a waiting one.
#[btf_map]
pub static CONNS: HashMap<ConnKey, Flow, 65536> = HashMap::new();

/// Who sent the datagrams that the gateway's resolver receives. An LRU: a query whose entry is gone gets no
/// answer and is asked again.
#[btf_map]
pub static DATAGRAMS: LruHashMap<DatagramKey, Flow, 65536> = LruHashMap::new();

#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Network namespaces, by cookie, in which the gateway listens.
#[btf_map]
pub static LISTENERS: HashMap<u64, Listener, 4096> = HashMap::new();

/// When the gateway last showed that it accepts (`CLOCK_MONOTONIC`, nanoseconds); 0: it does not.
#[btf_map]
pub static HEARTBEAT: Array<u64, 1> = Array::new();

#[btf_map]
pub static TARGETS: HashMap<TargetKey, u32, 65536> = HashMap::new();

/// Devices that agents may open besides the standard ones.
#[btf_map]
pub static DEVICES: HashMap<DeviceKey, u32, 256> = HashMap::new();

/// By subtree; 0 is what finds no room.
#[btf_map]
pub static COUNTERS: HashMap<u64, Counters, 4096> = HashMap::new();

/// The gateway's own: how much of the counters is in the evidence log.
#[btf_map]
pub static REPORTED: HashMap<ReportedKey, u64, 65536> = HashMap::new();

#[btf_map]
pub static EVENTS: RingBuf<KernelEvent, 262144> = RingBuf::new();

/// Where the gateway listens: TCP of IPv4 and IPv6, UDP of IPv4 and IPv6.
#[btf_map]
pub static SOCKETS: SockMap<4> = SockMap::new();

/// The socket's value in `map`, if it has one.
#[inline(always)]
pub fn stored<T>(map: &'static SkStorage<T>, socket: *mut bpf_sock) -> Option<&'static mut T> {
    storage(map, socket, null_mut(), 0)
}

/// The socket's value in `map`, made zeroed if there is none. `None` when there is no memory.
#[inline(always)]
pub fn stored_or_new<T>(
    map: &'static SkStorage<T>,
    socket: *mut bpf_sock,
) -> Option<&'static mut T> {
    storage(map, socket, null_mut(), BPF_SK_STORAGE_GET_F_CREATE)
}

/// The socket's value in `map`, made a copy of `initial` if there is none.
#[inline(always)]
pub fn stored_or<T>(
    map: &'static SkStorage<T>,
    socket: *mut bpf_sock,
    initial: *mut T,
) -> Option<&'static mut T> {
    storage(map, socket, initial, BPF_SK_STORAGE_GET_F_CREATE)
}

/// aya's own `SkStorage` methods take only a sock_addr context; the helper takes any socket.
#[inline(always)]
fn storage<T>(
    map: *const SkStorage<T>,
    socket: *mut bpf_sock,
    initial: *mut T,
    flags: u32,
) -> Option<&'static mut T> {
    let map: *mut c_void = map.cast_mut().cast();
    // SAFETY: the helper checks the socket and returns null or a value of the map's type, which lives at
    // least as long as the program runs.
    unsafe {
        bpf_sk_storage_get(map, socket.cast(), initial.cast(), flags.into())
            .cast::<T>()
            .as_mut()
    }
}

/// The settings, once the guard has written them.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS
        .get(0)
        .filter(|settings| settings.gateway_port != 0)
}

/// The gateway's loopback port, 0 before the guard has set one.
#[inline(always)]
pub fn gateway_port() -> u16 {
    match SETTINGS.get(0) {
        Some(settings) => settings.gateway_port as u16,
        None => 0,
    }
}

#[inline(always)]
pub fn heartbeat() -> u64 {
    match HEARTBEAT.get_ptr(0) {
        // SAFETY: an element of the array; another CPU or the gateway writes it at any time.
        Some(beat) => unsafe { addr_of!(*beat).read_volatile() },
        None => 0,
    }
}
