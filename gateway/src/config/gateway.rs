//! What belongs to the gateway itself: its port, its directories, its place in the kernel.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::errors::Problem;
use super::section::Section;
use super::values::{self, Root};

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Loopback port, IPv4 and IPv6, that the kernel redirects agents to.
    pub listen_port: u16,
    pub max_sessions: usize,
    /// The user that `sluice run` is, or becomes when root starts it: a name, or a numeric user id.
    pub user: String,
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// The socket on which the broker answers the gateway.
    pub socket: PathBuf,
}

/// `[dns]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    pub mode: DnsMode,
    /// How long an answer may be kept, and at least how long a synthetic address keeps its meaning.
    pub ttl: Duration,
    /// Queries that one agent may ask in a second, on average.
    pub queries_per_second: u32,
    /// The longest label that is looked at; longer ones carry data out.
    pub max_label: usize,
}

/// What agents are told when they ask for a target's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsMode {
    /// An address that means this name for this agent, and nothing anywhere else.
    Synthetic,
    /// The target's real addresses.
    Pass,
}

/// `[tls]`: the side that faces the agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Where the local certificate authority is kept: `ca.key`, which only the gateway's user can read,
    /// `ca.pem`, and `bundle.pem`, which is the system's authorities with ours.
    pub directory: PathBuf,
}

impl Tls {
    /// The certificate that agents trust for targets.
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The same among the system's.
    pub fn bundle(&self) -> PathBuf {
        self.directory.join("bundle.pem")
    }
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
    /// Where the guard against sockets from outside is attached, relative to the cgroup v2 mount; empty for
    /// the mount itself. It runs for every process below, and denies only those below `agents_cgroup`.
    pub guard_cgroup: String,
    /// Devices that agents may open besides the harmless standard ones.
    pub devices: Vec<Device>,
    /// What agents see as their own address on a redirected socket (getsockname(2)); loopback if absent.
    pub local_address: Option<Ipv4Addr>,
    pub local_address6: Option<Ipv6Addr>,
    /// Whether agents may connect to Unix sockets, where the kernel can tell (6.7 and later).
    pub unix_sockets: UnixSockets,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            agents_cgroup: "agents.slice".to_owned(),
            gateway_cgroup: "sluice.slice".to_owned(),
            pins: PathBuf::from("/sys/fs/bpf/sluice"),
            guard_cgroup: String::new(),
            devices: Vec::new(),
            local_address: None,
            local_address6: None,
            unix_sockets: UnixSockets::Deny,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnixSockets {
    Deny,
    Allow,
}

/// A device, or all of a major number: `c 195:*`, `c 10:229`, `b 7:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    pub kind: DeviceKind,
    pub major: u32,
    /// `None`: every minor.
    pub minor: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
}

impl std::str::FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (kind, numbers) = text.split_once(' ').ok_or(DeviceError)?;
        let (major, minor) = numbers.split_once(':').ok_or(DeviceError)?;
        let kind = match kind {
            "c" => DeviceKind::Character,
            "b" => DeviceKind::Block,
            _ => return Err(DeviceError),
        };
        let minor = match minor {
            "*" => None,
            minor => Some(minor.parse().map_err(|_| DeviceError)?),
        };
        let major = major.parse().map_err(|_| DeviceError)?;
        Ok(Self { kind, major, minor })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write it as \"c MAJOR:MINOR\" or \"b MAJOR:MINOR\", with * for every minor")]
pub struct DeviceError;

pub(super) fn read_gateway(mut section: Section<'_>) -> Gateway {
    let listen_port = section.take("listen_port", |value| values::number(value, 1, 65535));
    let max_sessions = section.take("max_sessions", |value| values::number(value, 1, 1_000_000));
    let user = section.take("user", values::user);
    section.finish();
    Gateway {
        listen_port: listen_port.unwrap_or(15001),
        max_sessions: max_sessions.unwrap_or(1000),
        user: user.unwrap_or_else(|| "sluice".to_owned()),
    }
}

pub(super) fn read_broker(mut section: Section<'_>, root: Root<'_>) -> Broker {
    let socket = section.take("socket", |value| root.path(value));
    section.finish();
    Broker {
        socket: socket.unwrap_or_else(|| root.place("/run/sluice/broker.sock")),
    }
}

pub(super) fn read_dns(mut section: Section<'_>) -> Dns {
    let mode = section.take("mode", |value| {
        values::choice(
            value,
            &[("synthetic", DnsMode::Synthetic), ("pass", DnsMode::Pass)],
        )
    });
    let ttl = section.take("ttl_seconds", |value| values::number(value, 1, 86_400));
    let queries = section.take("queries_per_second", |value| {
        values::number(value, 1, 100_000)
    });
    let max_label = section.take("max_label", |value| values::number(value, 1, 63));
    section.finish();
    Dns {
        mode: mode.unwrap_or(DnsMode::Synthetic),
        ttl: Duration::from_secs(ttl.unwrap_or(60)),
        queries_per_second: queries.unwrap_or(50),
        max_label: max_label.unwrap_or(40),
    }
}

pub(super) fn read_tls(mut section: Section<'_>, root: Root<'_>) -> Tls {
    let directory = section.take("directory", |value| root.path(value));
    section.finish();
    Tls {
        directory: directory.unwrap_or_else(|| root.place("/var/lib/sluice/tls")),
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
    let guard = section.take("guard_cgroup", guard_cgroup);
    let devices = section.list("devices", values::parsed).unwrap_or_default();
    let local_address = section.take("local_address", values::parsed);
    let local_address6 = section.take("local_address6", values::parsed);
    let unix_sockets = section.take("unix_sockets", |value| {
        values::choice(
            value,
            &[("deny", UnixSockets::Deny), ("allow", UnixSockets::Allow)],
        )
    });
    let defaults = Kernel::default();
    let kernel = Kernel {
        agents_cgroup: agents.unwrap_or(defaults.agents_cgroup),
        gateway_cgroup: gateway.unwrap_or(defaults.gateway_cgroup),
        pins: pins.map_or(defaults.pins, PathBuf::from),
        guard_cgroup: guard.unwrap_or(defaults.guard_cgroup),
        devices: devices.into_iter().map(|entry| entry.value).collect(),
        local_address,
        local_address6,
        unix_sockets: unix_sockets.unwrap_or(defaults.unix_sockets),
    };
    if !kernel.guard_cgroup.is_empty()
        && (kernel.agents_cgroup == kernel.guard_cgroup
            || !is_within(&kernel.agents_cgroup, &kernel.guard_cgroup))
    {
        let problem = Problem::new(format!(
            "{:?} is not above the agents' cgroup {:?}",
            kernel.guard_cgroup, kernel.agents_cgroup
        ))
        .hint("sockets that come from outside are only seen from above; \"/\" is the whole host");
        section.refuse(section.offset_of("guard_cgroup"), "guard_cgroup", problem);
    }
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

/// `/`, or a cgroup like any other.
fn guard_cgroup(value: &DeValue<'_>) -> Result<String, Problem> {
    match values::text(value)? {
        "/" => Ok(String::new()),
        _ => values::cgroup(value),
    }
}

fn is_within(inner: &str, outer: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
