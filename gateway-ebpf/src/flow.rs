//! What is stored in the maps. Every struct is `#[repr(C)]` without padding: padding bytes would be
//! uninitialised kernel stack, which the verifier rejects in a map key and a reader could see in a value.

use crate::Address;

/// Length of `comm` in the kernel (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// Where a redirected connection wanted to go, and who asked. Taken in the connecting process' context.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The destination the process named; `0.0.0.0` and `::` are already loopback.
    pub destination: Address,
    /// Inode of the process' cgroup directory, never reused while it lives.
    pub cgroup_id: u64,
    /// Tells two network namespaces apart that use the same addresses.
    pub netns_cookie: u64,
    /// The connecting socket; another connect(2) on it keeps the cookie.
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
    pub reserved: [u16; 3],
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

/// What the guard tells the kernel programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Loopback port the gateway listens on. 0: not configured yet, so every connect is denied.
    pub gateway_port: u32,
}

// The kernel programs and a gateway that was built apart from them must agree on these bytes.
// After a change the pin directory's layout version (`intercept::guard`) has to change too.
const _: () = assert!(size_of::<Flow>() == 88 && align_of::<Flow>() == 8);
const _: () = assert!(size_of::<ConnKey>() == 48 && align_of::<ConnKey>() == 8);
const _: () = assert!(size_of::<Settings>() == 4);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), no padding (asserted above), every bit pattern is a value.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ConnKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
}
