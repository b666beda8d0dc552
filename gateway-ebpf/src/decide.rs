//! What happens to a socket call of an agent. Deny is what is left when nothing else fits.

use crate::Address;

pub const SOCK_STREAM: u32 = 1;
pub const SOCK_DGRAM: u32 = 2;
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;

const LOOPBACK_IFINDEX: u32 = 1;
const DNS_PORT: u16 = 53;

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

/// A connect(2) as the hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    pub protocol: u32,
    pub destination: Address,
    /// Host byte order.
    pub port: u16,
    /// Interface index the socket is bound to, 0 for none.
    pub bound_device: u32,
    pub gateway_port: u16,
}

/// What happens to a connect(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// TCP: note `original`, then go to the gateway at `gateway`.
    Redirect {
        original: Address,
        gateway: Address,
    },
    /// A resolver, left as it is.
    Dns,
    Deny(Denial),
}

#[inline(always)]
pub const fn connect(call: Connect) -> Verdict {
    match call.protocol {
        IPPROTO_TCP => connect_tcp(call),
        IPPROTO_UDP => match datagram(call.port) {
            Ok(()) => Verdict::Dns,
            Err(denial) => Verdict::Deny(denial),
        },
        _ => Verdict::Deny(Denial::SocketKind),
    }
}

#[inline(always)]
const fn connect_tcp(call: Connect) -> Verdict {
    let original = call.destination.effective();
    if call.gateway_port == 0 {
        return Verdict::Deny(Denial::Unconfigured);
    }
    if call.bound_device != 0 && call.bound_device != LOOPBACK_IFINDEX {
        return Verdict::Deny(Denial::BoundDevice);
    }
    if original.is_loopback() && call.port == call.gateway_port {
        return Verdict::Deny(Denial::GatewayItself);
    }
    if original.is_many() {
        return Verdict::Deny(Denial::ManyReceivers);
    }
    if original.is_link_local() {
        return Verdict::Deny(Denial::LinkLocal);
    }
    Verdict::Redirect {
        original,
        gateway: original.gateway(),
    }
}

/// A datagram's destination port (host byte order): only resolvers may be asked.
#[inline(always)]
pub const fn datagram(port: u16) -> Result<(), Denial> {
    if port == DNS_PORT {
        Ok(())
    } else {
        Err(Denial::Datagram)
    }
}

/// Which inet sockets may exist at all. Protocol 0 never reaches the hook: the kernel has resolved it.
#[inline(always)]
pub const fn socket(kind: u32, protocol: u32) -> Result<(), Denial> {
    match (kind, protocol) {
        (SOCK_STREAM, IPPROTO_TCP) | (SOCK_DGRAM, IPPROTO_UDP) => Ok(()),
        _ => Err(Denial::SocketKind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    const PORT: u16 = 15001;

    fn address(text: &str) -> Address {
        match text.parse::<IpAddr>().expect(text) {
            IpAddr::V4(v4) => Address::v4(u32::from(v4).to_be()),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                let word = |at: usize| {
                    u32::from_ne_bytes(octets[at..at + 4].try_into().expect("four bytes"))
                };
                Address([word(0), word(4), word(8), word(12)])
            }
        }
    }

    fn verdict(
        protocol: u32,
        to: &str,
        port: u16,
        bound_device: u32,
        gateway_port: u16,
    ) -> Verdict {
        connect(Connect {
            protocol,
            destination: address(to),
            port,
            bound_device,
            gateway_port,
        })
    }

    #[test]
    fn tcp_goes_to_the_gateway_of_its_family() {
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let rows = [
            ("v4", "192.0.2.7", "192.0.2.7", v4),
            ("v4-mapped", "::ffff:192.0.2.7", "192.0.2.7", v4),
            ("v6", "2001:db8::7", "2001:db8::7", v6),
            ("loopback v4", "127.0.0.1", "127.0.0.1", v4),
            ("loopback v6", "::1", "::1", v6),
            ("any v4 is loopback", "0.0.0.0", "127.0.0.1", v4),
            ("any v6 is loopback", "::", "::1", v6),
        ];
        for (name, to, expected_original, expected_gateway) in rows {
            match verdict(IPPROTO_TCP, to, 5432, 0, PORT) {
                Verdict::Redirect { original, gateway } => {
                    assert_eq!(
                        original.to_ip(),
                        expected_original.parse::<IpAddr>().expect(name),
                        "{name}"
                    );
                    assert_eq!(gateway.to_ip(), expected_gateway, "{name}");
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_denied_and_why() {
        use Denial::*;
        #[rustfmt::skip]
        let rows = [
            // name                        protocol     to                 port   device gateway denial
            ("bound to another device",    IPPROTO_TCP, "192.0.2.7",       5432,  4,     PORT,   BoundDevice),
            ("the gateway, v4",            IPPROTO_TCP, "127.0.0.1",       PORT,  0,     PORT,   GatewayItself),
            ("the gateway, other 127/8",   IPPROTO_TCP, "127.9.9.9",       PORT,  0,     PORT,   GatewayItself),
            ("the gateway, v6",            IPPROTO_TCP, "::1",             PORT,  0,     PORT,   GatewayItself),
            ("the gateway, mapped",        IPPROTO_TCP, "::ffff:127.0.0.1",PORT,  0,     PORT,   GatewayItself),
            ("the gateway, any",           IPPROTO_TCP, "0.0.0.0",         PORT,  0,     PORT,   GatewayItself),
            ("the gateway, any v6",        IPPROTO_TCP, "::",              PORT,  0,     PORT,   GatewayItself),
            ("multicast",                  IPPROTO_TCP, "224.0.0.1",       5432,  0,     PORT,   ManyReceivers),
            ("broadcast",                  IPPROTO_TCP, "255.255.255.255", 5432,  0,     PORT,   ManyReceivers),
            ("multicast v6",               IPPROTO_TCP, "ff02::1",         5432,  0,     PORT,   ManyReceivers),
            ("metadata service",           IPPROTO_TCP, "169.254.169.254", 80,    0,     PORT,   LinkLocal),
            ("metadata service, mapped",   IPPROTO_TCP, "::ffff:169.254.169.254", 80, 0, PORT,   LinkLocal),
            ("link-local v6",              IPPROTO_TCP, "fe80::1",         5432,  0,     PORT,   LinkLocal),
            ("before the port is set",     IPPROTO_TCP, "192.0.2.7",       5432,  0,     0,      Unconfigured),
            ("QUIC",                       IPPROTO_UDP, "192.0.2.7",       443,   0,     PORT,   Datagram),
            ("SCTP",                       132,         "192.0.2.7",       5432,  0,     PORT,   SocketKind),
            ("MPTCP",                      262,         "192.0.2.7",       5432,  0,     PORT,   SocketKind),
            ("ICMP",                       1,           "192.0.2.7",       0,     0,     PORT,   SocketKind),
        ];
        for (name, protocol, to, port, device, gateway, denial) in rows {
            assert_eq!(
                verdict(protocol, to, port, device, gateway),
                Verdict::Deny(denial),
                "{name}"
            );
        }
    }

    #[test]
    fn what_else_passes() {
        assert_eq!(
            verdict(IPPROTO_UDP, "192.0.2.53", 53, 0, PORT),
            Verdict::Dns
        );
        assert!(
            matches!(
                verdict(IPPROTO_TCP, "192.0.2.7", 5432, 1, PORT),
                Verdict::Redirect { .. }
            ),
            "bound to lo"
        );
        assert!(
            matches!(
                verdict(IPPROTO_TCP, "192.0.2.7", PORT, 0, PORT),
                Verdict::Redirect { .. }
            ),
            "the gateway's port elsewhere"
        );
    }

    #[test]
    fn only_plain_tcp_and_udp_sockets_exist() {
        const SOCK_RAW: u32 = 3;
        let rows = [
            ("tcp", SOCK_STREAM, IPPROTO_TCP, true),
            ("udp", SOCK_DGRAM, IPPROTO_UDP, true),
            ("ping", SOCK_DGRAM, 1, false),
            ("ping v6", SOCK_DGRAM, 58, false),
            ("raw icmp", SOCK_RAW, 1, false),
            ("raw tcp", SOCK_RAW, IPPROTO_TCP, false),
            ("mptcp", SOCK_STREAM, 262, false),
            ("sctp", SOCK_STREAM, 132, false),
            ("udp-lite", SOCK_DGRAM, 136, false),
            ("datagram tcp", SOCK_DGRAM, IPPROTO_TCP, false),
        ];
        for (name, kind, protocol, allowed) in rows {
            assert_eq!(socket(kind, protocol).is_ok(), allowed, "{name}");
        }
    }

    #[test]
    fn every_denial_has_its_own_counter_and_name() {
        for (index, denial) in Denial::ALL.iter().enumerate() {
            assert_eq!(*denial as usize, index, "{denial:?}");
            assert!(
                Denial::ALL
                    .iter()
                    .filter(|other| other.name() == denial.name())
                    .count()
                    == 1
            );
        }
    }
}
