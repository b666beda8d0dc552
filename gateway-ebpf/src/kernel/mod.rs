//! One file per thing an agent does.

mod connect;
mod datagram;
mod handshake;
mod lsm;
mod maps;
mod peer_name;
mod socket;

/// What a cgroup program returns. These are the only places where "yes" is spelled.
mod answer {
    use gateway_ebpf::decide::Denial;

    /// The destination is the gateway now.
    pub const ALLOW_REDIRECTED: i32 = 1;
    /// A resolver is asked directly.
    pub const ALLOW_DNS: i32 = 1;
    /// A plain TCP or UDP socket is created.
    pub const ALLOW_SOCKET: i32 = 1;
    /// Another process is looked at, not touched.
    pub const ALLOW_TRACE: i32 = 1;
    /// A Unix socket of the same agent listens.
    pub const ALLOW_UNIX: i32 = 1;
    /// Naming the peer cannot be denied: the verifier takes no other value.
    pub const NAMED: i32 = 1;
    /// Sock_ops programs do not decide; the kernel expects 1.
    pub const OBSERVED: u32 = 1;

    const DENY: i32 = 0;

    #[inline(always)]
    pub fn deny(why: Denial) -> i32 {
        let _ = why;
        DENY
    }
}

/// The programs use helpers the kernel gives only to GPL-compatible code.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; a program in which this were reachable would not pass the verifier.
    loop {}
}
