//! Questions to resolvers: they reach the gateway's, which knows who asks, and answers in the other's name.

use std::net::SocketAddr;

use gateway::intercept::{Denial, FlowKind};

use super::instance::{Instance, NOBODY};

#[test]
fn whatever_resolver_is_asked_the_gateway_answers() {
    let instance = Instance::start();
    let rows = [
        (
            "sendto",
            "AF_INET",
            "s.sendto(b'?', to)",
            "192.0.2.53",
            "192.0.2.53",
        ),
        (
            "connect and send",
            "AF_INET",
            "s.connect(to); s.send(b'?')",
            "192.0.2.53",
            "192.0.2.53",
        ),
        (
            "on loopback",
            "AF_INET",
            "s.sendto(b'?', to)",
            "127.0.0.53",
            "127.0.0.53",
        ),
        (
            "IPv6 sendto",
            "AF_INET6",
            "s.sendto(b'?', to)",
            "2001:db8::53",
            "2001:db8::53",
        ),
        (
            "IPv6 connect",
            "AF_INET6",
            "s.connect(to); s.send(b'?')",
            "2001:db8::53",
            "2001:db8::53",
        ),
        (
            "mapped sendto",
            "AF_INET6",
            "s.sendto(b'?', to)",
            "::ffff:192.0.2.53",
            "192.0.2.53",
        ),
        (
            "mapped connect",
            "AF_INET6",
            "s.connect(to); s.send(b'?')",
            "::ffff:192.0.2.53",
            "192.0.2.53",
        ),
    ];
    for (name, family, call, host, expected) in rows {
        let script = format!(
            "
s = socket.socket(socket.{family}, socket.SOCK_DGRAM)
s.settimeout(8)
to = ('{host}', 53)
{call}
data, source = s.recvfrom(100)
say([data.decode(), source[0], source[1]])
attempt(lambda: say(s.getpeername()[0]))"
        );
        let mut agent = instance.agent(&script);
        let is_v6 = expected.contains(':');
        let resolver = &instance.udp.as_ref().expect("bound")[usize::from(is_v6)];
        let mut buffer = [0; 100];
        let (length, source) = resolver.recv_from(&mut buffer).expect(name);
        assert_eq!(&buffer[..length], b"?", "{name}");
        let table = &instance.maps.datagrams;
        let flow = table
            .flow_of(instance.netns_cookie, source)
            .expect(name)
            .expect(name);
        let original = SocketAddr::new(expected.parse().expect(name), 53);
        assert_eq!(
            (flow.kind, flow.original),
            (FlowKind::Dns, original),
            "{name}"
        );
        assert_eq!((flow.uid, flow.tgid), (NOBODY, agent.child.id()), "{name}");
        assert_eq!(flow.cgroup_id, agent.cgroup_id, "{name}");
        assert_eq!(flow.subtree, agent.cgroup_id, "{name}");
        resolver.send_to(b"!", source).expect(name);
        let answer = agent.says();
        assert_eq!(answer, serde_json::json!(["!", host, 53]), "{name}");
        if call.contains("connect") {
            assert_eq!(agent.says(), host, "{name}: getpeername");
        }
        let stranger = table.flow_of(instance.netns_cookie, (source.ip(), 1).into());
        assert_eq!(stranger.expect(name), None, "{name}");
    }
    let counters = instance.counters("bot");
    // With a mapped peer the kernel names it with every datagram, so that one is seen twice.
    assert_eq!(counters.dns, rows.len() as u64 + 1);
    assert_eq!(counters.packets_out, rows.len() as u64);
    assert_eq!(counters.packets_in, rows.len() as u64);
}

/// DNS over TCP is a connection like any other, to any address.
#[test]
fn tcp_to_port_53_is_redirected() {
    let instance = Instance::start();
    let mut agent = instance.agent("s = connect('192.0.2.53', 53)\nwait()");
    agent.says();
    let flow = instance.flow_of(&instance.accept()).expect("a flow");
    assert_eq!(
        (flow.kind, flow.original.port()),
        (FlowKind::Redirected, 53)
    );
}

/// The hook on sending does not run for a socket that has a peer; what it sends must go there all the same.
#[test]
fn a_connected_socket_cannot_turn_elsewhere() {
    let instance = Instance::start();
    let script = "
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('192.0.2.53', 53))
attempt(lambda: s.sendto(b'x', ('192.0.2.9', 9)))
attempt(lambda: s.connect(('192.0.2.9', 9)))
attempt(lambda: s.send(b'x'))";
    let said = instance.agent(script).says_at_the_end();
    assert_eq!(said, ["EPERM", "EPERM", "ok"], "the first peer stays");
    assert_eq!(instance.denials(Denial::Datagram), 2);
}
