use core::net::IpAddr;

use proptest::prelude::*;

use super::*;

const PORT: u16 = 15001;
const AGENTS: u64 = 77;

fn address(text: &str) -> Address {
    match text.parse::<IpAddr>().expect(text) {
        IpAddr::V4(v4) => Address::v4(u32::from(v4).to_be()),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let word =
                |at: usize| u32::from_ne_bytes(octets[at..at + 4].try_into().expect("four bytes"));
            Address([word(0), word(4), word(8), word(12)])
        }
    }
}

#[test]
fn only_tcp_and_questions_to_resolvers() {
    use Denial::*;
    let rows = [
        ("tcp", IPPROTO_TCP, 5432, Ok(Call::Tcp)),
        ("dns over tcp", IPPROTO_TCP, 53, Ok(Call::Tcp)),
        ("dns", IPPROTO_UDP, 53, Ok(Call::Dns)),
        ("quic", IPPROTO_UDP, 443, Err(Datagram)),
        ("dns over tls", IPPROTO_UDP, 853, Err(Datagram)),
        ("sctp", 132, 53, Err(SocketKind)),
        ("mptcp", 262, 5432, Err(SocketKind)),
        ("icmp", 1, 53, Err(SocketKind)),
    ];
    for (name, protocol, port, expected) in rows {
        assert_eq!(call(protocol, port), expected, "{name}");
    }
}

#[test]
fn the_gateway_is_alive_for_as_long_as_it_beats() {
    const SECOND: u64 = 1_000_000_000;
    let rows = [
        ("fresh", PORT, 10 * SECOND, 10 * SECOND, Ok(())),
        ("just in time", PORT, 7 * SECOND, 10 * SECOND, Ok(())),
        (
            "stale",
            PORT,
            7 * SECOND - 1,
            10 * SECOND,
            Err(Denial::Heartbeat),
        ),
        ("stopped", PORT, 0, SECOND, Err(Denial::Heartbeat)),
        (
            "beaten on another CPU after now was read",
            PORT,
            11 * SECOND,
            10 * SECOND,
            Ok(()),
        ),
        (
            "not configured",
            0,
            10 * SECOND,
            10 * SECOND,
            Err(Denial::Unconfigured),
        ),
    ];
    for (name, port, heartbeat, now, expected) in rows {
        let gateway = Gateway {
            port,
            heartbeat,
            now,
            heartbeat_max: 3 * SECOND,
        };
        assert_eq!(gateway.alive(), expected, "{name}");
    }
}

#[test]
fn the_gateway_listens_where_it_was_registered() {
    let listener = |v4, v6| {
        Some(Listener {
            v4,
            v6,
            reserved: [0; 6],
        })
    };
    let rows = [
        ("nowhere", None, "192.0.2.7", Err(Denial::Netns)),
        ("both, v4", listener(1, 1), "192.0.2.7", Ok(())),
        ("both, v6", listener(1, 1), "2001:db8::7", Ok(())),
        ("both, mapped", listener(1, 1), "::ffff:192.0.2.7", Ok(())),
        ("only v4, v4", listener(1, 0), "192.0.2.7", Ok(())),
        (
            "only v4, mapped",
            listener(1, 0),
            "::ffff:192.0.2.7",
            Ok(()),
        ),
        (
            "only v4, v6",
            listener(1, 0),
            "2001:db8::7",
            Err(Denial::NoIpv6),
        ),
        (
            "only v6, v4",
            listener(0, 1),
            "192.0.2.7",
            Err(Denial::Netns),
        ),
    ];
    for (name, listener, to, expected) in rows {
        assert_eq!(listens(listener, address(to)), expected, "{name}");
    }
}

#[test]
fn destinations_that_are_denied_whatever_the_tables_say() {
    use Denial::*;
    let rows = [
        ("the gateway, v4", "127.0.0.1", PORT, Err(GatewayItself)),
        (
            "the gateway, other 127/8",
            "127.9.9.9",
            PORT,
            Err(GatewayItself),
        ),
        ("the gateway, v6", "::1", PORT, Err(GatewayItself)),
        (
            "the gateway, mapped",
            "::ffff:127.0.0.1",
            PORT,
            Err(GatewayItself),
        ),
        ("the gateway, any", "0.0.0.0", PORT, Err(GatewayItself)),
        ("the gateway, any v6", "::", PORT, Err(GatewayItself)),
        ("the gateway's port elsewhere", "192.0.2.7", PORT, Ok(())),
        ("multicast", "224.0.0.1", 5432, Err(ManyReceivers)),
        ("broadcast", "255.255.255.255", 5432, Err(ManyReceivers)),
        ("multicast v6", "ff02::1", 5432, Err(ManyReceivers)),
        ("metadata service", "169.254.169.254", 80, Err(LinkLocal)),
        (
            "metadata service, mapped",
            "::ffff:169.254.169.254",
            80,
            Err(LinkLocal),
        ),
        ("link-local v6", "fe80::1", 5432, Err(LinkLocal)),
        ("a resolver there", "169.254.169.253", 53, Ok(())),
        ("a database", "192.0.2.7", 5432, Ok(())),
        ("on loopback", "127.0.0.1", 5432, Ok(())),
    ];
    for (name, to, port, expected) in rows {
        assert_eq!(destination(address(to), port, PORT), expected, "{name}");
    }
}

#[test]
fn a_redirected_datagram_socket_may_go_on() {
    let rows = [
        ("its gateway", kind::DNS, "127.0.0.1", PORT, true),
        ("without a flow", kind::NONE, "127.0.0.1", PORT, false),
        ("another port", kind::DNS, "127.0.0.1", 9, false),
        ("another host", kind::DNS, "192.0.2.7", PORT, false),
    ];
    for (name, kind, to, port, expected) in rows {
        assert_eq!(is_asking(kind, address(to), port, PORT), expected, "{name}");
    }
}

#[test]
fn routes() {
    let rows = [
        ("own listener", 8080, true, false, Ok(Route::Local)),
        (
            "own listener in front of a target",
            5432,
            true,
            true,
            Ok(Route::Local),
        ),
        ("target", 5432, false, true, Ok(Route::Gateway)),
        ("resolver", 53, false, false, Ok(Route::Gateway)),
        ("anything else", 5432, false, false, Err(Denial::NoTarget)),
    ];
    for (name, port, own, target, expected) in rows {
        assert_eq!(route(port, own, target), expected, "{name}");
    }
}

#[test]
fn agents_are_told_apart() {
    assert!(same_agent(5, 5, AGENTS));
    assert!(!same_agent(5, 6, AGENTS));
    assert!(!same_agent(AGENTS, AGENTS, AGENTS), "no agent");
    assert!(!same_agent(0, 0, AGENTS), "outside");
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
fn ports_that_may_be_bound() {
    let rows = [
        ("tcp, any", IPPROTO_TCP, 0, true),
        ("tcp, free", IPPROTO_TCP, 8080, true),
        ("tcp, first free", IPPROTO_TCP, 1024, true),
        ("tcp, privileged", IPPROTO_TCP, 1023, false),
        ("tcp, the gateway's", IPPROTO_TCP, PORT, false),
        ("udp, any", IPPROTO_UDP, 0, true),
        ("udp, free", IPPROTO_UDP, 8080, false),
        ("udp, the gateway's", IPPROTO_UDP, PORT, false),
        ("other", 132, 8080, false),
    ];
    for (name, protocol, port, allowed) in rows {
        assert_eq!(bind(protocol, port, PORT).is_ok(), allowed, "{name}");
    }
}

#[test]
fn standard_devices() {
    let character = |major, minor| DeviceKey {
        kind: DeviceKey::CHARACTER,
        major,
        minor,
    };
    for (major, minor) in [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 2),
        (136, 0),
        (143, 9),
    ] {
        assert!(
            standard_device(character(major, minor)),
            "c {major}:{minor}"
        );
    }
    // mem, port, kmsg, console, uinput, tun, kvm, loop-control, fuse, vsock
    for (major, minor) in [
        (1, 1),
        (1, 4),
        (1, 11),
        (5, 1),
        (10, 223),
        (10, 200),
        (10, 232),
        (10, 237),
        (10, 229),
        (135, 0),
        (144, 0),
    ] {
        assert!(
            !standard_device(character(major, minor)),
            "c {major}:{minor}"
        );
    }
    assert!(!standard_device(DeviceKey {
        kind: DeviceKey::BLOCK,
        major: 1,
        minor: 3
    }));
}

fn packet(kind: u8, protocol: u32, to: &str, port: u16) -> Packet {
    Packet {
        interface: 1,
        protocol,
        destination: address(to),
        destination_port: port,
        flags: TCP_ACK,
        kind,
    }
}

#[test]
fn what_leaves_a_socket() {
    let rows = [
        (
            "to the gateway",
            packet(kind::REDIRECTED, IPPROTO_TCP, "127.0.0.1", PORT),
            true,
        ),
        (
            "to the gateway v6",
            packet(kind::REDIRECTED, IPPROTO_TCP, "::1", PORT),
            true,
        ),
        (
            "to the gateway, out of eth0",
            Packet {
                interface: 2,
                ..packet(kind::REDIRECTED, IPPROTO_TCP, "127.0.0.1", PORT)
            },
            false,
        ),
        (
            "to the gateway's port elsewhere",
            packet(kind::REDIRECTED, IPPROTO_TCP, "192.0.2.7", PORT),
            false,
        ),
        (
            "to another port",
            packet(kind::REDIRECTED, IPPROTO_TCP, "127.0.0.1", 22),
            false,
        ),
        (
            "to the resolver",
            packet(kind::DNS, IPPROTO_UDP, "127.0.0.1", PORT),
            true,
        ),
        (
            "to another resolver",
            packet(kind::DNS, IPPROTO_UDP, "127.0.0.1", 53),
            false,
        ),
        (
            "a datagram over a TCP flow",
            packet(kind::REDIRECTED, IPPROTO_UDP, "127.0.0.1", PORT),
            false,
        ),
        (
            "a socket without a flow",
            packet(kind::NONE, IPPROTO_TCP, "127.0.0.1", PORT),
            false,
        ),
        (
            "a datagram without a flow",
            packet(kind::NONE, IPPROTO_UDP, "127.0.0.1", PORT),
            false,
        ),
        (
            "a question to an own listener",
            Packet {
                flags: TCP_SYN,
                ..packet(kind::LOCAL, IPPROTO_TCP, "127.0.0.1", 8080)
            },
            true,
        ),
        (
            "data before it has answered",
            packet(kind::LOCAL, IPPROTO_TCP, "127.0.0.1", 8080),
            false,
        ),
        (
            "data after it has answered",
            packet(kind::LOCAL_OPEN, IPPROTO_TCP, "127.0.0.1", 8080),
            true,
        ),
        (
            "local, out of eth0",
            Packet {
                interface: 2,
                ..packet(kind::LOCAL_OPEN, IPPROTO_TCP, "192.0.2.7", 8080)
            },
            false,
        ),
        (
            "icmp",
            packet(kind::REDIRECTED, 1, "127.0.0.1", PORT),
            false,
        ),
    ];
    for (name, packet, passes) in rows {
        assert_eq!(egress(packet, PORT).is_ok(), passes, "{name}");
    }
}

#[test]
fn listeners_answer_their_own_agent() {
    let rows = [
        ("own", 1, kind::LOCAL, 5, 5, true),
        ("own, again", 1, kind::LOCAL_OPEN, 5, 5, true),
        ("another agent", 1, kind::LOCAL, 5, 6, false),
        ("nobody", 1, kind::NONE, 0, 5, false),
        ("out of eth0", 2, kind::LOCAL, 5, 5, false),
        ("no agent", 1, kind::LOCAL, AGENTS, AGENTS, false),
    ];
    for (name, interface, kind, from, listener, expected) in rows {
        let answer = answers(interface, kind, from, listener, AGENTS);
        assert_eq!(answer.is_ok(), expected, "{name}");
    }
}

#[test]
fn the_gateways_port_belongs_to_its_sockets() {
    let rows = [
        ("tcp", IPPROTO_TCP, "127.0.0.1", PORT, Some(0)),
        ("tcp v6", IPPROTO_TCP, "::1", PORT, Some(1)),
        ("udp", IPPROTO_UDP, "127.0.0.1", PORT, Some(2)),
        ("udp v6", IPPROTO_UDP, "::1", PORT, Some(3)),
        ("another port", IPPROTO_TCP, "127.0.0.1", 22, None),
        ("another address", IPPROTO_TCP, "192.0.2.7", PORT, None),
        ("other 127/8", IPPROTO_TCP, "127.0.0.2", PORT, None),
    ];
    for (name, protocol, to, port, expected) in rows {
        assert_eq!(
            gateway_socket(protocol, address(to), port, PORT),
            expected,
            "{name}"
        );
    }
    assert_eq!(
        gateway_socket(IPPROTO_TCP, address("127.0.0.1"), 0, 0),
        None
    );
}

proptest! {
    /// What is attached to the root cgroup runs for every process of the host: it denies nobody who is not
    /// below the agents' cgroup, nothing that has an owner, and nobody at all before there are settings.
    #[test]
    fn the_root_guard_denies_only_foreign_sockets_of_agents(
        ancestor: u64,
        agents_id: u64,
        has_owner: bool,
    ) {
        for ancestor in [ancestor, agents_id, 0] {
            let denied = inherited(ancestor, agents_id, has_owner).is_err();
            prop_assert_eq!(denied, agents_id != 0 && ancestor == agents_id && !has_owner);
        }
    }

    /// Whatever a packet says of itself, it does not leave the host.
    #[test]
    fn nothing_leaves_through_another_interface(
        interface in 2_u32..,
        protocol: u32,
        words: [u32; 4],
        destination_port: u16,
        flags: u8,
        kind: u8,
    ) {
        let packet = Packet {
            interface,
            protocol,
            destination: Address(words),
            destination_port,
            flags,
            kind,
        };
        prop_assert_eq!(egress(packet, PORT), Err(Denial::Egress));
    }
}

#[test]
fn every_denial_has_its_own_counter_and_name() {
    for (index, denial) in Denial::ALL.iter().enumerate() {
        assert_eq!(*denial as usize, index, "{denial:?}");
        let same = Denial::ALL
            .iter()
            .filter(|other| other.name() == denial.name());
        assert!(same.count() == 1);
    }
}

#[test]
fn options() {
    for (name, level, option_name, allowed) in [
        ("SO_REUSEADDR", 1, 2, true),
        ("TCP_NODELAY", 6, 1, true),
        ("IP_TOS", 0, 1, true),
        ("IPV6_V6ONLY", 41, 26, true),
        ("IP_DROP_MEMBERSHIP", 0, 36, true),
        (
            "a level of neither family with the same number",
            17,
            35,
            true,
        ),
        ("IP_ADD_MEMBERSHIP", 0, 35, false),
        ("IP_ADD_SOURCE_MEMBERSHIP", 0, 39, false),
        ("MCAST_JOIN_GROUP", 0, 42, false),
        ("MCAST_JOIN_SOURCE_GROUP", 0, 46, false),
        ("IPV6_ADD_MEMBERSHIP", 41, 20, false),
        ("IPV6_JOIN_ANYCAST", 41, 27, false),
        ("MCAST_JOIN_GROUP, IPv6", 41, 42, false),
        ("MCAST_JOIN_SOURCE_GROUP, IPv6", 41, 46, false),
    ] {
        assert_eq!(option(level, option_name).is_ok(), allowed, "{name}");
    }
}
