//! What is stored in the maps. Every struct is `#[repr(C)]` without padding: padding bytes would be
//! uninitialised kernel stack, which the verifier rejects in a map key and a reader could see in a value.

use crate::Address;
use crate::decide::Denial;

/// Length of `comm` in the kernel (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// What was noted of a socket call.
pub mod kind {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// TCP, sent to the gateway.
    pub const REDIRECTED: u8 = 1;
    /// TCP to a listener of the same agent subtree, left alone.
    pub const LOCAL: u8 = 2;
    /// UDP to port 53, sent to the gateway's resolver.
    pub const DNS: u8 = 3;
    /// As [`LOCAL`], and the listener has answered; also of the socket it accepted.
    pub const LOCAL_OPEN: u8 = 4;
}

/// Where a socket call wanted to go, and who asked. Taken in the calling process' context.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The destination the process named; `0.0.0.0` and `::` are already loopback.
    pub destination: Address,
    /// Inode of the process' cgroup directory, never reused while it lives.
    pub cgroup_id: u64,
    /// The child of the agents' cgroup that it is in or below; the agents' cgroup itself if it is in none.
    pub subtree: u64,
    /// Tells two network namespaces apart that use the same addresses.
    pub netns_cookie: u64,
    /// The calling socket; another connect(2) on it keeps the cookie.
    pub socket_cookie: u64,
    /// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
    pub boot_ns: u64,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Chosen by the process itself: for display only.
    pub comm: [u8; COMM_LEN],
    /// Destination port, host byte order.
    pub port: u16,
    /// One of [`kind`].
    pub kind: u8,
    pub reserved: [u8; 5],
}

/// One connection between the SYN and the end of the handshake, seen from the client.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnKey {
    pub netns_cookie: u64,
    pub source: Address,
    pub destination: Address,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    pub reserved: u32,
}

/// The sender of a datagram to the resolver, as the resolver sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramKey {
    pub netns_cookie: u64,
    pub source: Address,
    /// Host byte order.
    pub source_port: u16,
    pub reserved: [u16; 3],
}

/// Who made a socket. Sockets without one were made outside of the agents' cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub cgroup_id: u64,
    pub subtree: u64,
    pub netns_cookie: u64,
}

/// What the guard tells the kernel programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Inode of the agents' cgroup directory.
    pub agents_id: u64,
    /// How old a heartbeat may be, in nanoseconds.
    pub heartbeat_max_ns: u64,
    /// Loopback port the gateway listens on, TCP and UDP. 0: not configured yet, so every connect is denied.
    pub gateway_port: u32,
    /// Depth of the agents' cgroup; the root of the hierarchy has 0.
    pub agents_level: u32,
    /// What getsockname(2) answers on a redirected socket, IPv4 in network byte order; 0: the truth.
    pub local_v4: u32,
    /// The same for IPv6; all zero: the truth.
    pub local_v6: [u32; 4],
    /// Not 0: agents may connect to Unix sockets.
    pub allow_unix: u32,
}

/// A network namespace in which the gateway listens; the key is the namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Not 0: there are IPv4 listeners, TCP and UDP.
    pub v4: u8,
    /// The same for IPv6; without them an IPv6 connect gets ENETUNREACH, so that clients turn to IPv4.
    pub v6: u8,
    pub reserved: [u8; 6],
}

/// A destination that is worth asking the gateway for: an address of some target, synthetic ones included.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetKey {
    pub address: Address,
    /// Host byte order.
    pub port: u16,
    pub reserved: u16,
}

/// A device an agent may open.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKey {
    /// `BPF_DEVCG_DEV_BLOCK` 1 or `BPF_DEVCG_DEV_CHAR` 2.
    pub kind: u32,
    pub major: u32,
    /// [`DeviceKey::ANY_MINOR`] for all of a major number.
    pub minor: u32,
}

impl DeviceKey {
    pub const BLOCK: u32 = 1;
    pub const CHARACTER: u32 = 2;
    pub const ANY_MINOR: u32 = u32::MAX;
}

/// What one agent subtree did, counted since the guard was first loaded. Every field only grows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// connect(2) on TCP sockets: redirected + local + those denied.
    pub connects: u64,
    pub redirected: u64,
    pub local: u64,
    /// Datagrams and UDP connects that went to the resolver.
    pub dns: u64,
    /// Packets and bytes that sockets of the subtree sent, IP headers included.
    pub packets_out: u64,
    pub bytes_out: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    /// By [`Denial`].
    pub denied: [u64; Denial::COUNT],
}

/// How much of a counter is in the evidence log already; the value is a u64.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportedKey {
    pub subtree: u64,
    /// A [`Denial`].
    pub reason: u32,
    pub reserved: u32,
}

/// One thing that happened, on its way through the ring buffer. Events may be lost when the buffer is full;
/// the counters are not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelEvent {
    pub boot_ns: u64,
    pub cgroup_id: u64,
    pub subtree: u64,
    /// 0 where the hook cannot tell.
    pub netns_cookie: u64,
    pub destination: Address,
    pub tgid: u32,
    pub uid: u32,
    /// A [`Denial`]. [`Denial::Netns`] is also what asks for listeners in a new namespace.
    pub reason: u32,
    /// `IPPROTO_*`, or the socket type for [`Denial::SocketKind`]; 0 where the hook cannot tell.
    pub protocol: u32,
    /// Host byte order; 0 where the hook cannot tell.
    pub port: u32,
    pub reserved: u32,
    pub comm: [u8; COMM_LEN],
}

// The kernel programs and a gateway that was built apart from them must agree on these bytes.
// After a change the pin directory's layout version (`intercept::pins`) has to change too.
const _: () = assert!(size_of::<Flow>() == 96 && align_of::<Flow>() == 8);
const _: () = assert!(size_of::<ConnKey>() == 48 && align_of::<ConnKey>() == 8);
const _: () = assert!(size_of::<DatagramKey>() == 32);
const _: () = assert!(size_of::<Owner>() == 24);
const _: () = assert!(size_of::<Settings>() == 48);
const _: () = assert!(size_of::<Listener>() == 8);
const _: () = assert!(size_of::<TargetKey>() == 20);
const _: () = assert!(size_of::<DeviceKey>() == 12);
const _: () = assert!(size_of::<Counters>() == 64 + 8 * Denial::COUNT);
const _: () = assert!(size_of::<ReportedKey>() == 16);
const _: () = assert!(size_of::<KernelEvent>() == 88);

#[cfg(feature = "user")]
mod pod {
    macro_rules! pod {
        ($($name:ident),*) => {
            $(
                // SAFETY: repr(C), no padding (the sizes are asserted above), every bit pattern is a value.
                unsafe impl aya::Pod for super::$name {}
            )*
        };
    }
    pod!(
        Flow,
        ConnKey,
        DatagramKey,
        Owner,
        Settings,
        Listener,
        TargetKey,
        DeviceKey,
        Counters,
        ReportedKey,
        KernelEvent
    );
}
