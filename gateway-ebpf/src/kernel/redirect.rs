//! What connect and sendmsg have in common: is the gateway there, and noting the flow.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_netns_cookie,
    bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_ktime_get_ns,
};
use gateway_ebpf::decide::{self, Denial};
use gateway_ebpf::flow::COMM_LEN;
use gateway_ebpf::{Address, Flow, Settings};

use super::account::Attempt;
use super::call;
use super::caller::Caller;
use super::maps::{self, LISTENERS, SK_ORIG};

/// A call with everything known of it.
#[derive(Clone, Copy)]
pub struct Asked {
    pub call: *mut bpf_sock_addr,
    pub by: Caller,
    pub attempt: Attempt,
}

impl Asked {
    #[inline(always)]
    pub fn new(
        call: *mut bpf_sock_addr,
        settings: &Settings,
        destination: Address,
        port: u16,
        protocol: u32,
    ) -> Self {
        // SAFETY: a helper on the context.
        let netns_cookie = unsafe { bpf_get_netns_cookie(call.cast()) };
        Self {
            call,
            by: Caller::of_socket(settings, call::socket(call)),
            attempt: Attempt {
                netns_cookie,
                destination,
                port,
                protocol,
            },
        }
    }

    /// Whether the gateway can take it: it is alive, it listens here, and the socket leads to it.
    #[inline(always)]
    pub fn gateway_is_there(&self, settings: &Settings) -> Result<(), Denial> {
        let gateway = decide::Gateway {
            port: settings.gateway_port as u16,
            heartbeat: maps::heartbeat(),
            // SAFETY: a helper without preconditions.
            now: unsafe { bpf_ktime_get_ns() },
            heartbeat_max: settings.heartbeat_max_ns,
        };
        gateway.alive()?;
        // SAFETY: the broker replaces entries whole.
        let listener = unsafe { LISTENERS.get(self.attempt.netns_cookie) };
        decide::listens(listener.copied(), self.attempt.destination)?;
        decide::bound_device(call::bound_device(self.call))
    }

    /// Writes the flow into the socket's storage in place: a struct literal would become a call to memset,
    /// which does not exist here.
    #[inline(always)]
    pub fn note(&self, kind: u8) -> Result<(), Denial> {
        let socket = call::socket(self.call);
        let flow: &mut Flow = maps::stored_or_new(&SK_ORIG, socket).ok_or(Denial::NoStorage)?;
        // SAFETY: helpers without preconditions; `comm` is COMM_LEN writable bytes of a map value.
        unsafe {
            let pid_tgid = bpf_get_current_pid_tgid();
            let uid_gid = bpf_get_current_uid_gid();
            flow.destination = self.attempt.destination;
            flow.port = self.attempt.port;
            flow.kind = kind;
            flow.cgroup_id = self.by.cgroup_id;
            flow.subtree = self.by.subtree;
            flow.netns_cookie = self.attempt.netns_cookie;
            flow.socket_cookie = bpf_get_socket_cookie(self.call.cast());
            flow.boot_ns = bpf_ktime_get_boot_ns();
            flow.tgid = (pid_tgid >> 32) as u32;
            flow.pid = pid_tgid as u32;
            flow.uid = uid_gid as u32;
            flow.gid = (uid_gid >> 32) as u32;
            bpf_get_current_comm(flow.comm.as_mut_ptr().cast(), COMM_LEN as u32);
        }
        Ok(())
    }
}
