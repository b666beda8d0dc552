//! One file per thing an agent does, or that is done to it.

mod account;
mod bind;
mod call;
mod caller;
mod connect;
mod datagram;
mod device;
mod handshake;
mod inherited;
mod listener;
mod lsm;
mod maps;
mod name;
mod option;
mod packet;
mod port;
mod redirect;
mod socket;
mod unix;

/// What a cgroup program returns. These are the only places where "yes" is spelled.
mod answer {
    use super::account::{self, Attempt};
    use super::caller::Caller;
    use aya_ebpf::Global;
    use aya_ebpf::helpers::generated::bpf_set_retval;
    use gateway_ebpf::decide::{Denial, EPERM};

    /// The destination is the gateway now.
    pub const ALLOW_REDIRECTED: i32 = 1;
    /// A listener of the same agent is connected to directly.
    pub const ALLOW_LOCAL: i32 = 1;
    /// A plain TCP or UDP socket is created.
    pub const ALLOW_SOCKET: i32 = 1;
    /// A port that is nobody's is taken.
    pub const ALLOW_BIND: i32 = 1;
    /// An option that makes the kernel send nothing is set.
    pub const ALLOW_OPTION: i32 = 1;
    /// A packet stays on the host: to the gateway, or within the agent.
    pub const ALLOW_PACKET: i32 = 1;
    /// A harmless device is opened, or one that the configuration lists.
    pub const ALLOW_DEVICE: i32 = 1;
    /// Another process is looked at, not touched.
    pub const ALLOW_TRACE: i32 = 1;
    /// The configuration allows Unix sockets, or the same agent listens.
    pub const ALLOW_UNIX: i32 = 1;
    /// The root guard has no say: the caller is no agent, or the socket is its own.
    pub const ALLOW_NOT_INHERITED: i32 = 1;
    /// A connection that is not for the gateway's port, or is for its socket (`SK_PASS`).
    pub const ALLOW_LOOKUP: u32 = 1;
    /// Naming an address cannot be denied: the verifier takes no other value.
    pub const NAMED: i32 = 1;
    /// Sock_ops programs do not decide; the kernel expects 1.
    pub const OBSERVED: u32 = 1;

    const DENY: i32 = 0;
    /// `SK_DROP`
    pub const DENY_LOOKUP: u32 = 0;

    /// Whether the kernel has bpf_set_retval (5.18). Set by the loader; where it is 0 the verifier never
    /// sees the call.
    #[unsafe(no_mangle)]
    static HAS_SET_RETVAL: Global<u8> = Global::new(0);

    /// Denies with EPERM.
    #[inline(always)]
    pub fn deny(why: Denial, by: Caller, attempt: Attempt) -> i32 {
        account::denied(why, by, attempt);
        DENY
    }

    /// Denies a connect or sendmsg with the denial's own errno.
    #[inline(always)]
    pub fn deny_with_errno(why: Denial, by: Caller, attempt: Attempt) -> i32 {
        account::denied(why, by, attempt);
        if HAS_SET_RETVAL.load() != 0 && why.errno() != EPERM {
            // SAFETY: a helper without preconditions; when it fails the answer is EPERM.
            unsafe { bpf_set_retval(-why.errno()) };
        }
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
