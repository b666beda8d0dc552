//! From an accepted socket to where it wanted to go and who connected it.

use std::borrow::Cow;
use std::net::SocketAddr;

use gateway_ebpf::flow::{Flow as KernelFlow, kind};

/// What the kernel noted in the connecting process' own context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The destination the agent named. v4-mapped is IPv4, the unspecified address is loopback.
    pub original: SocketAddr,
    pub kind: FlowKind,
    /// Inode of the agent's cgroup directory.
    pub cgroup_id: u64,
    /// Inode of the directory directly below the agents' cgroup that the agent is in; of the agents' cgroup
    /// itself when it is in none.
    pub subtree: u64,
    pub netns_cookie: u64,
    /// Of the agent's socket.
    pub socket_cookie: u64,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Chosen by the process itself: for display only.
    pub comm: String,
    /// When it connected, in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub boot_ns: u64,
}

/// What the kernel did with the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowKind {
    /// TCP, sent to the gateway.
    Redirected,
    /// TCP to a listener of the same agent, left alone.
    Local,
    /// UDP to port 53, sent to the gateway's resolver.
    Dns,
}

impl FlowKind {
    fn of(flow: &KernelFlow) -> Option<Self> {
        match flow.kind {
            kind::REDIRECTED => Some(Self::Redirected),
            kind::LOCAL => Some(Self::Local),
            kind::DNS => Some(Self::Dns),
            _ => None,
        }
    }
}

impl Flow {
    /// `None` when the kernel programs are of another version and noted what this one does not know.
    pub(super) fn of(flow: KernelFlow) -> Option<Self> {
        Some(Self {
            original: SocketAddr::new(flow.destination.to_ip(), flow.port),
            kind: FlowKind::of(&flow)?,
            cgroup_id: flow.cgroup_id,
            subtree: flow.subtree,
            netns_cookie: flow.netns_cookie,
            socket_cookie: flow.socket_cookie,
            tgid: flow.tgid,
            pid: flow.pid,
            uid: flow.uid,
            gid: flow.gid,
            comm: until_zero(&flow.comm).into_owned(),
            boot_ns: flow.boot_ns,
        })
    }
}

pub(super) fn until_zero(bytes: &[u8]) -> Cow<'_, str> {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_ends_at_its_zero() {
        let rows: [(&[u8], &str); 4] = [
            (b"psql\0\0\0\0", "psql"),
            (b"sixteen-bytes-ok", "sixteen-bytes-ok"),
            (b"\0hidden", ""),
            (b"\xff\xfe\0", "\u{fffd}\u{fffd}"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(until_zero(bytes), expected);
        }
    }
}
