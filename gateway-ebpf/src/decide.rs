//! What happens to a socket call of an agent. Deny is what is left when nothing else fits.

use crate::flow::{Listener, kind};
use crate::{Address, DeviceKey};

pub const SOCK_STREAM: u32 = 1;
pub const SOCK_DGRAM: u32 = 2;
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;

const LOOPBACK_IFINDEX: u32 = 1;
const DNS_PORT: u16 = 53;
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// `errno` values of a denial (asm-generic/errno.h).
pub const EPERM: i32 = 1;
pub const ENETUNREACH: i32 = 101;
pub const ECONNREFUSED: i32 = 111;

/// Why a call was denied; its index in [`Counters::denied`](crate::Counters).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A socket that is neither TCP nor UDP: raw, ICMP, MPTCP, SCTP, UDP-Lite …
    SocketKind = 0,
    /// UDP to anything but port 53.
    Datagram = 1,
    /// The socket is bound to a device other than loopback: the rewritten SYN would leave through it.
    BoundDevice = 2,
    /// The gateway's own port, named directly.
    GatewayItself = 3,
    /// Multicast, reserved or broadcast.
    ManyReceivers = 4,
    /// Link-local: the hook cannot see or restore the scope id; the cloud metadata service lives here.
    LinkLocal = 5,
    /// The guard has not told a port yet.
    Unconfigured = 6,
    /// No memory for the socket's flow.
    NoStorage = 7,
    /// No target has this address and port.
    NoTarget = 8,
    /// The gateway has not shown a sign of life for too long.
    Heartbeat = 9,
    /// The gateway does not listen in this network namespace (yet).
    Netns = 10,
    /// The gateway has no IPv6 listener here.
    NoIpv6 = 11,
    /// bind(2) to the gateway's port, to a privileged port, or of a UDP socket to a port of its choice.
    Bind = 12,
    /// A packet that does not go to the gateway or within the subtree.
    Egress = 13,
    /// A socket that was made outside of the agents' cgroup.
    Inherited = 14,
    /// A device that is not on the list.
    Device = 15,
    /// A Unix socket that others listen on.
    UnixSocket = 16,
    /// A packet that came in through another interface than loopback; nobody is told.
    Ingress = 17,
    /// A socket of a family that is not on the list (LSM tier).
    AddressFamily = 18,
    /// A user namespace or another process's memory (LSM tier).
    Privilege = 19,
}

impl Denial {
    pub const COUNT: usize = 20;
    pub const ALL: [Denial; Self::COUNT] = [
        Denial::SocketKind,
        Denial::Datagram,
        Denial::BoundDevice,
        Denial::GatewayItself,
        Denial::ManyReceivers,
        Denial::LinkLocal,
        Denial::Unconfigured,
        Denial::NoStorage,
        Denial::NoTarget,
        Denial::Heartbeat,
        Denial::Netns,
        Denial::NoIpv6,
        Denial::Bind,
        Denial::Egress,
        Denial::Inherited,
        Denial::Device,
        Denial::UnixSocket,
        Denial::Ingress,
        Denial::AddressFamily,
        Denial::Privilege,
    ];

    /// A stable name for people and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Denial::SocketKind => "socket-kind",
            Denial::Datagram => "datagram",
            Denial::BoundDevice => "bound-device",
            Denial::GatewayItself => "gateway-itself",
            Denial::ManyReceivers => "multicast-or-broadcast",
            Denial::LinkLocal => "link-local",
            Denial::Unconfigured => "unconfigured",
            Denial::NoStorage => "no-storage",
            Denial::NoTarget => "no-target",
            Denial::Heartbeat => "gateway-silent",
            Denial::Netns => "netns-unregistered",
            Denial::NoIpv6 => "no-ipv6",
            Denial::Bind => "bind",
            Denial::Egress => "egress",
            Denial::Inherited => "inherited-socket",
            Denial::Device => "device",
            Denial::UnixSocket => "unix-socket",
            Denial::Ingress => "ingress",
            Denial::AddressFamily => "address-family",
            Denial::Privilege => "privilege",
        }
    }

    /// What the caller gets. Denials that say "nothing answers there" look like it, so that clients turn to
    /// their next address at once.
    #[inline(always)]
    pub const fn errno(self) -> i32 {
        match self {
            Denial::NoTarget | Denial::Heartbeat | Denial::Netns => ECONNREFUSED,
            Denial::NoIpv6 => ENETUNREACH,
            _ => EPERM,
        }
    }
}

/// What a socket call is about, by its protocol and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Tcp,
    /// A query to a resolver.
    Dns,
}

/// UDP only ever asks resolvers.
#[inline(always)]
pub const fn call(protocol: u32, port: u16) -> Result<Call, Denial> {
    match protocol {
        IPPROTO_TCP => Ok(Call::Tcp),
        IPPROTO_UDP if port == DNS_PORT => Ok(Call::Dns),
        IPPROTO_UDP => Err(Denial::Datagram),
        _ => Err(Denial::SocketKind),
    }
}

/// The gateway as the kernel side knows it.
#[derive(Clone, Copy, Debug)]
pub struct Gateway {
    /// 0: not configured.
    pub port: u16,
    /// When it last beat, 0 for never, and what time it is (`CLOCK_MONOTONIC`, nanoseconds).
    pub heartbeat: u64,
    pub now: u64,
    pub heartbeat_max: u64,
}

impl Gateway {
    #[inline(always)]
    pub const fn alive(&self) -> Result<(), Denial> {
        if self.port == 0 {
            return Err(Denial::Unconfigured);
        }
        if self.heartbeat == 0 || self.now.saturating_sub(self.heartbeat) > self.heartbeat_max {
            return Err(Denial::Heartbeat);
        }
        Ok(())
    }
}

/// Whether the gateway listens in the caller's network namespace for the destination's family.
#[inline(always)]
pub const fn listens(listener: Option<Listener>, destination: Address) -> Result<(), Denial> {
    match listener {
        None => Err(Denial::Netns),
        Some(listener) => match destination.as_v4() {
            Some(_) if listener.v4 == 0 => Err(Denial::Netns),
            None if listener.v6 == 0 => Err(Denial::NoIpv6),
            _ => Ok(()),
        },
    }
}

/// Whether a datagram is addressed to the gateway's resolver already: the kernel gives a socket's peer with
/// every call where that is a v4-mapped one, and connect's hook has made it the gateway.
#[inline(always)]
pub const fn is_asking(kind: u8, to: Address, port: u16, gateway_port: u16) -> bool {
    kind == kind::DNS && to.is_loopback() && port == gateway_port
}

/// A socket bound to another device than loopback would send the rewritten packets out through it.
#[inline(always)]
pub const fn bound_device(interface: u32) -> Result<(), Denial> {
    match interface {
        0 | LOOPBACK_IFINDEX => Ok(()),
        _ => Err(Denial::BoundDevice),
    }
}

/// Which destinations of TCP are worth a look at the tables.
#[inline(always)]
pub const fn destination(to: Address, port: u16, gateway_port: u16) -> Result<(), Denial> {
    let to = to.effective();
    if to.is_loopback() && port == gateway_port {
        return Err(Denial::GatewayItself);
    }
    // Any resolver's address means the gateway's resolver.
    if port == DNS_PORT {
        return Ok(());
    }
    if to.is_many() {
        return Err(Denial::ManyReceivers);
    }
    if to.is_link_local() {
        return Err(Denial::LinkLocal);
    }
    Ok(())
}

/// What happens to a TCP connect(2) that nothing speaks against so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a listener of the same agent, as it is.
    Local,
    /// To the gateway.
    Gateway,
}

#[inline(always)]
pub const fn route(port: u16, is_own_listener: bool, is_target: bool) -> Result<Route, Denial> {
    if is_own_listener {
        Ok(Route::Local)
    } else if port == DNS_PORT || is_target {
        Ok(Route::Gateway)
    } else {
        Err(Denial::NoTarget)
    }
}

/// Whether two processes belong to one agent. The agents' cgroup itself is no agent: what runs there
/// directly has nobody of its own.
#[inline(always)]
pub const fn same_agent(one: u64, other: u64, agents_id: u64) -> bool {
    one == other && one != 0 && one != agents_id
}

/// Which inet sockets may exist at all. Protocol 0 never reaches the hook: the kernel has resolved it.
#[inline(always)]
pub const fn socket(kind: u32, protocol: u32) -> Result<(), Denial> {
    match (kind, protocol) {
        (SOCK_STREAM, IPPROTO_TCP) | (SOCK_DGRAM, IPPROTO_UDP) => Ok(()),
        _ => Err(Denial::SocketKind),
    }
}

/// Which ports an agent may take: not the gateway's, none that clients trust for needing privileges, and
/// none for UDP, which only asks.
#[inline(always)]
pub const fn bind(protocol: u32, port: u16, gateway_port: u16) -> Result<(), Denial> {
    match (protocol, port) {
        (_, 0) => Ok(()),
        (IPPROTO_TCP, port) if port >= FIRST_UNPRIVILEGED_PORT && port != gateway_port => Ok(()),
        _ => Err(Denial::Bind),
    }
}

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;

/// Which socket options an agent may set: all but those that join a multicast group (linux/in.h, in6.h).
/// Neither family's level is the other's: an IPv6 socket has both.
#[inline(always)]
pub const fn option(level: i32, name: i32) -> Result<(), Denial> {
    const IP_ADD_MEMBERSHIP: i32 = 35;
    const IP_ADD_SOURCE_MEMBERSHIP: i32 = 39;
    const IP_MSFILTER: i32 = 41;
    const IPV6_ADD_MEMBERSHIP: i32 = 20;
    const IPV6_JOIN_ANYCAST: i32 = 27;
    const MCAST_JOIN_GROUP: i32 = 42;
    const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
    const MCAST_MSFILTER: i32 = 48;
    match (level, name) {
        (
            SOL_IP,
            IP_ADD_MEMBERSHIP
            | IP_ADD_SOURCE_MEMBERSHIP
            | IP_MSFILTER
            | MCAST_JOIN_GROUP
            | MCAST_JOIN_SOURCE_GROUP
            | MCAST_MSFILTER,
        )
        | (
            SOL_IPV6,
            IPV6_ADD_MEMBERSHIP
            | IPV6_JOIN_ANYCAST
            | MCAST_JOIN_GROUP
            | MCAST_JOIN_SOURCE_GROUP
            | MCAST_MSFILTER,
        ) => Err(Denial::ManyReceivers),
        _ => Ok(()),
    }
}

/// Whether a socket from outside is used inside. Runs for every process of the host: `ancestor` is the
/// caller's ancestor at the level of the agents' cgroup, and only those below the agents' cgroup can be
/// denied anything. Their own sockets have an owner and are judged by their own hooks.
#[inline(always)]
pub const fn inherited(ancestor: u64, agents_id: u64, has_owner: bool) -> Result<(), Denial> {
    if agents_id != 0 && ancestor == agents_id && !has_owner {
        Err(Denial::Inherited)
    } else {
        Ok(())
    }
}

/// The devices that every program needs and that reach nothing: null, zero, full, random, urandom, tty,
/// ptmx and the pseudo terminals.
#[inline(always)]
pub const fn standard_device(device: DeviceKey) -> bool {
    if device.kind != DeviceKey::CHARACTER {
        return false;
    }
    match (device.major, device.minor) {
        (1, 3 | 5 | 7 | 8 | 9) | (5, 0 | 2) => true,
        (major, _) => major >= 136 && major <= 143,
    }
}

/// A packet on its way out, as its headers and its socket have it.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub interface: u32,
    pub protocol: u32,
    pub destination: Address,
    pub destination_port: u16,
    /// The TCP flags' byte; 0 for UDP.
    pub flags: u8,
    /// [`kind`] of the socket's flow, [`kind::NONE`] without one.
    pub kind: u8,
}

/// What goes out: to the gateway, to its resolver, or within the agent; always over loopback.
///
/// Packets of listening sockets are not judged here, but by the connection they answer ([`answers`]).
#[inline(always)]
pub const fn egress(packet: Packet, gateway_port: u16) -> Result<(), Denial> {
    if packet.interface != LOOPBACK_IFINDEX {
        return Err(Denial::Egress);
    }
    let to_gateway = packet.destination.is_loopback() && packet.destination_port == gateway_port;
    match (packet.kind, packet.protocol) {
        (kind::REDIRECTED, IPPROTO_TCP) | (kind::DNS, IPPROTO_UDP) if to_gateway => Ok(()),
        (kind::LOCAL_OPEN, IPPROTO_TCP) => Ok(()),
        // Until the own listener has answered, nothing but the question leaves: in between, another's may
        // have taken the port.
        (kind::LOCAL, IPPROTO_TCP) if packet.flags & (TCP_SYN | TCP_ACK) == TCP_SYN => Ok(()),
        _ => Err(Denial::Egress),
    }
}

/// Whether a listener may answer the connection noted as `kind` by a process of subtree `from`.
#[inline(always)]
pub const fn answers(
    interface: u32,
    kind: u8,
    from: u64,
    listener: u64,
    agents_id: u64,
) -> Result<(), Denial> {
    let local = matches!(kind, kind::LOCAL | kind::LOCAL_OPEN);
    if interface == LOOPBACK_IFINDEX && local && same_agent(from, listener, agents_id) {
        Ok(())
    } else {
        Err(Denial::Egress)
    }
}

/// Packets come in over loopback only.
#[inline(always)]
pub const fn ingress(interface: u32) -> Result<(), Denial> {
    match interface {
        LOOPBACK_IFINDEX => Ok(()),
        _ => Err(Denial::Ingress),
    }
}

/// Whose sockets a connection to the gateway's port is for, if it is one; the index in `SOCKETS`.
#[inline(always)]
pub const fn gateway_socket(
    protocol: u32,
    to: Address,
    port: u16,
    gateway_port: u16,
) -> Option<u32> {
    let is_v6 = matches!(to, Address::LOOPBACK_V6);
    if gateway_port == 0 || port != gateway_port || !(is_v6 || matches!(to, Address::LOOPBACK_V4)) {
        return None;
    }
    match protocol {
        IPPROTO_TCP => Some(is_v6 as u32),
        IPPROTO_UDP => Some(2 + is_v6 as u32),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
