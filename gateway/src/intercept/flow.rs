//! From an accepted socket to where it wanted to go and who connected it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use aya::maps::{Map, MapData, MapError, SkStorage};
use gateway_ebpf::flow::Flow as KernelFlow;

use super::{InterceptError, pins};

/// What the kernel noted in the connecting process' own context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The destination the agent named. v4-mapped is IPv4, the unspecified address is loopback.
    pub original: SocketAddr,
    /// Inode of the agent's cgroup directory.
    pub cgroup_id: u64,
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

/// The flows of accepted sockets, read by file descriptor. Needs privileges to open, none to use.
#[derive(Debug)]
pub struct FlowTable {
    accepted: SkStorage<MapData, KernelFlow>,
}

impl FlowTable {
    /// Opens the table that the guard pinned.
    pub fn open(pins: &Path) -> Result<Self, InterceptError> {
        let path = pins::map(pins, pins::SK_ACC);
        let failed = |error: MapError| {
            InterceptError::bpf(
                format!(
                    "opening {} (is the guard loaded? `sluice guard load`)",
                    path.display()
                ),
                error,
            )
        };
        let data = MapData::from_pin(&path).map_err(failed)?;
        let accepted = Map::from_map_data(data)
            .and_then(SkStorage::try_from)
            .map_err(failed)?;
        Ok(Self { accepted })
    }

    /// The flow of a socket that accept(2) returned. `None`: it was not redirected here, nobody vouches for it.
    pub fn flow_of(&self, socket: BorrowedFd<'_>) -> Result<Option<Flow>, InterceptError> {
        match self.accepted.get(&socket, 0) {
            Ok(flow) => Ok(Some(Flow::from(flow))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(InterceptError::bpf(
                "reading an accepted socket's flow",
                error,
            )),
        }
    }
}

impl From<KernelFlow> for Flow {
    fn from(flow: KernelFlow) -> Self {
        Self {
            original: SocketAddr::new(flow.destination.to_ip(), flow.port),
            cgroup_id: flow.cgroup_id,
            netns_cookie: flow.netns_cookie,
            socket_cookie: flow.socket_cookie,
            tgid: flow.tgid,
            pid: flow.pid,
            uid: flow.uid,
            gid: flow.gid,
            comm: until_zero(&flow.comm).into_owned(),
            boot_ns: flow.boot_ns,
        }
    }
}

fn until_zero(bytes: &[u8]) -> Cow<'_, str> {
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
