//! What belongs to the gateway itself: its port, its directories, its place in the kernel.

use std::path::PathBuf;

use super::errors::Problem;
use super::section::Section;
use super::values::{self, Root};

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Loopback port, IPv4 and IPv6, that the kernel redirects agents to.
    pub listen_port: u16,
    pub max_sessions: usize,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Directory of the evidence log.
    pub log: PathBuf,
    /// Directory of the session recordings.
    pub recordings: PathBuf,
}

/// `[kernel]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Parent of all agents' cgroups, relative to the cgroup v2 mount.
    pub agents_cgroup: String,
    /// The gateway's own cgroup, relative to the cgroup v2 mount.
    pub gateway_cgroup: String,
    /// Directory on a bpffs; never moved by a root.
    pub pins: PathBuf,
}

pub(super) fn read_gateway(mut section: Section<'_>) -> Gateway {
    let listen_port = section.take("listen_port", |value| values::number(value, 1, 65535));
    let max_sessions = section.take("max_sessions", |value| values::number(value, 1, 1_000_000));
    section.finish();
    Gateway {
        listen_port: listen_port.unwrap_or(15001),
        max_sessions: max_sessions.unwrap_or(1000),
    }
}

pub(super) fn read_storage(mut section: Section<'_>, root: Root<'_>) -> Storage {
    let mut directory = |key, default| {
        let path = section.take(key, |value| root.path(value));
        path.unwrap_or_else(|| root.place(default))
    };
    let storage = Storage {
        log: directory("log", "/var/lib/sluice/log"),
        recordings: directory("recordings", "/var/lib/sluice/recordings"),
    };
    if storage.log == storage.recordings {
        let problem = Problem::new("must not be the directory of the log");
        section.refuse(section.offset_of("recordings"), "recordings", problem);
    }
    section.finish();
    storage
}

pub(super) fn read_policies(mut section: Section<'_>, root: Root<'_>) -> PathBuf {
    let path = section.take("path", |value| root.path(value));
    section.finish();
    path.unwrap_or_else(|| root.place("/etc/sluice/policies"))
}

pub(super) fn read_kernel(mut section: Section<'_>) -> Kernel {
    let agents = section.take("agents_cgroup", values::cgroup);
    let gateway = section.take("gateway_cgroup", values::cgroup);
    let pins = section.take("pins", values::absolute);
    let kernel = Kernel {
        agents_cgroup: agents.unwrap_or_else(|| "agents.slice".to_owned()),
        gateway_cgroup: gateway.unwrap_or_else(|| "sluice.slice".to_owned()),
        pins: PathBuf::from(pins.unwrap_or("/sys/fs/bpf/sluice")),
    };
    if is_within(&kernel.gateway_cgroup, &kernel.agents_cgroup)
        || is_within(&kernel.agents_cgroup, &kernel.gateway_cgroup)
    {
        let problem = Problem::new(format!(
            "{:?} and the agents' cgroup {:?} contain each other",
            kernel.gateway_cgroup, kernel.agents_cgroup
        ))
        .hint("the gateway's own connections would be redirected to itself; keep the two apart");
        section.refuse(
            section.offset_of("gateway_cgroup"),
            "gateway_cgroup",
            problem,
        );
    }
    section.finish();
    kernel
}

fn is_within(inner: &str, outer: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
