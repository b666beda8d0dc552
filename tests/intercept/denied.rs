//! What agents get instead: one errno per reason, and one count.

use std::thread::sleep;
use std::time::Duration;

use gateway::config::{Device, DeviceKind, UnixSockets};
use gateway::intercept::Denial;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::instance::{Agent, Instance};

#[test]
fn calls_that_are_denied() {
    let instance = Instance::start();
    let own = instance.port;
    let tcp = |host: &str, port: u16| {
        let family = if host.contains(':') {
            "AF_INET6"
        } else {
            "AF_INET"
        };
        format!("socket.socket(socket.{family}).connect(('{host}', {port}))")
    };
    let udp = |call: &str| format!("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).{call}");
    let udp6 = |call: &str| format!("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).{call}");
    let socket = |kind: &str| format!("socket.socket(socket.AF_INET, {kind})");
    use Denial::*;
    #[rustfmt::skip]
    let rows = [
        // name                         call                                             errno           reason
        ("UDP sendto",                  udp("sendto(b'x', ('127.0.0.1', 9))"),            "EPERM",        Datagram),
        ("UDP sendto v6",               udp6("sendto(b'x', ('::1', 9))"),                 "EPERM",        Datagram),
        ("UDP sendto mapped",           udp6("sendto(b'x', ('::ffff:127.0.0.1', 9))"),    "EPERM",        Datagram),
        ("UDP connect, as QUIC does",   udp("connect(('127.0.0.1', 443))"),               "EPERM",        Datagram),
        ("UDP connect v6",              udp6("connect(('::1', 443))"),                    "EPERM",        Datagram),
        ("the gateway itself",          tcp("127.0.0.1", own),                            "EPERM",        GatewayItself),
        ("the gateway by 127/8",        tcp("127.1.2.3", own),                            "EPERM",        GatewayItself),
        ("the gateway by any",          tcp("0.0.0.0", own),                              "EPERM",        GatewayItself),
        ("the gateway v6",              tcp("::1", own),                                  "EPERM",        GatewayItself),
        ("the gateway mapped",          tcp("::ffff:127.0.0.1", own),                     "EPERM",        GatewayItself),
        ("metadata service",            tcp("169.254.169.254", 80),                       "EPERM",        LinkLocal),
        ("link-local v6",               "socket.socket(socket.AF_INET6).connect(('fe80::1', 80, 0, 1))".into(), "EPERM", LinkLocal),
        ("multicast",                   tcp("224.0.0.1", 80),                             "EPERM",        ManyReceivers),
        ("no target",                   tcp("192.0.2.8", 5432),                           "ECONNREFUSED", NoTarget),
        ("no target, another port",     tcp("192.0.2.7", 5433),                           "ECONNREFUSED", NoTarget),
        ("no target v6",                tcp("2001:db8::8", 5432),                         "ECONNREFUSED", NoTarget),
        ("MPTCP",                       socket("socket.SOCK_STREAM, 262"),                "EPERM",        SocketKind),
        ("UDP-Lite",                    socket("socket.SOCK_DGRAM, 136"),                 "EPERM",        SocketKind),
        ("TCP on the gateway's port",   format!("socket.socket().bind(('127.0.0.2', {own}))"), "EPERM",    Bind),
        ("TCP on the gateway's port v6", format!("socket.socket(socket.AF_INET6).bind(('::', {own}))"), "EPERM", Bind),
        ("UDP on a port of its choice", udp("bind(('127.0.0.1', 5353))"),                 "EPERM",        Bind),
        ("UDP on a port of its choice v6", udp6("bind(('::1', 5353))"),                   "EPERM",        Bind),
    ];
    for (name, call, errno, reason) in rows {
        let before = instance.denials(reason);
        let said = instance
            .agent(&format!("attempt(lambda: {call})"))
            .says_at_the_end();
        assert_eq!(said, [errno], "{name}");
        assert_eq!(instance.denials(reason), before + 1, "{name}: counted once");
    }
    assert_eq!(instance.handshakes(), 0);
}

#[test]
fn ports_below_1024_are_denied_to_root_too() {
    let instance = Instance::start();
    let script = "
attempt(lambda: socket.socket().bind(('127.0.0.1', 1023)))
attempt(lambda: socket.socket(socket.AF_INET6).bind(('::1', 22)))
attempt(lambda: socket.socket().bind(('127.0.0.1', 0)))";
    let said = instance.agent_in("root", &[], script).says_at_the_end();
    assert_eq!(said, ["EPERM", "EPERM", "ok"]);
    assert_eq!(instance.denials(Denial::Bind), 2);
}

/// Nobody may not make raw and ICMP sockets anyway; here it is the kernel programs that refuse.
#[test]
fn raw_sockets_are_denied_to_root_too() {
    let instance = Instance::start();
    for kind in [
        "socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP",
        "socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW",
        "socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP",
        "socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6",
    ] {
        let script = format!("attempt(lambda: socket.socket({kind}))");
        let agent = instance.agent_in("root", &[], &script);
        assert_eq!(agent.says_at_the_end(), ["EPERM"], "{kind}");
    }
    assert_eq!(instance.denials(Denial::SocketKind), 4);
}

/// A SYN to 127.0.0.1 of a socket bound to a device really leaves through that device.
#[test]
fn a_socket_bound_to_a_device_is_denied() {
    let instance = Instance::start();
    // As root in a network namespace of its own, where a bridge can be made to bind to.
    let script = "
import fcntl
SIOCBRADDBR = 0x89a0
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, SIOCBRADDBR, b'sluice0\\0')
say(netns(s))
told()
def bound(device):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, 25, device)
    s.settimeout(2)
    s.connect(('192.0.2.7', 5432))
attempt(lambda: bound(b'sluice0'))";
    let group = instance.agents().join("bound");
    let mut agent = Agent::start(&group, &[], &["unshare", "--net"], script);
    let cookie = agent.says().as_u64().expect("a cookie");
    instance.register(cookie, 1, 1);
    agent.tell("go");
    assert_eq!(agent.says(), "EPERM");
    assert_eq!(instance.denials(Denial::BoundDevice), 1);
}

#[test]
fn a_network_namespace_without_listeners_is_denied() {
    let instance = Instance::start();
    let script = "
attempt(lambda: socket.socket().connect(('192.0.2.7', 5432)))
attempt(lambda: socket.socket(socket.AF_INET6).connect(('2001:db8::7', 5432)))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.53', 53)))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.53', 53)))";
    let group = instance.agents().join("elsewhere");
    let agent = Agent::start(&group, &[], &["unshare", "--net"], script);
    assert_eq!(agent.says_at_the_end(), ["ECONNREFUSED"; 4]);
    assert_eq!(instance.denials(Denial::Netns), 4);
}

#[test]
fn without_an_ipv6_listener_clients_are_told_to_use_ipv4() {
    let instance = Instance::start();
    instance.register(instance.netns_cookie, 1, 0);
    let script = "
attempt(lambda: socket.socket(socket.AF_INET6).connect(('2001:db8::7', 5432)))
attempt(lambda: socket.socket(socket.AF_INET6).connect(('::ffff:192.0.2.7', 5432)))";
    let said = instance.agent(script).says_at_the_end();
    assert_eq!(said, ["ENETUNREACH", "ok"]);
    assert_eq!(instance.denials(Denial::NoIpv6), 1);
}

const TRY: &str = "
while told():
    attempt(lambda: socket.create_connection(('192.0.2.7', 5432), 5))";

#[test]
fn a_gateway_that_says_it_stops_gets_nothing_more() {
    let mut instance = Instance::start();
    let mut agent = instance.agent(TRY);
    agent.tell("go");
    assert_eq!(agent.says(), "ok");
    instance.freeze_heart();
    instance.maps.heartbeat.stop().expect("it can stop");
    agent.tell("go");
    assert_eq!(agent.says(), "ECONNREFUSED");
    instance.beat();
    agent.tell("go");
    assert_eq!(agent.says(), "ok", "and on it goes");
    assert_eq!(instance.denials(Denial::Heartbeat), 1);
}

#[test]
fn a_gateway_that_does_not_beat_is_taken_for_dead_after_three_seconds() {
    let mut instance = Instance::start();
    let mut agent = instance.agent(TRY);
    instance.freeze_heart();
    sleep(Duration::from_millis(2000));
    agent.tell("go");
    assert_eq!(agent.says(), "ok", "not yet");
    sleep(Duration::from_millis(1100));
    agent.tell("go");
    assert_eq!(agent.says(), "ECONNREFUSED");
}

#[test]
fn unix_sockets_of_others_are_denied() {
    let folder = crate::harness::scratch::folder("unix");
    let path = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("it can listen");
    let datagrams = std::os::unix::net::UnixDatagram::bind(folder.path().join("datagrams"));
    let datagrams = datagrams.expect("it can be bound");
    let script = format!(
        "
attempt(lambda: socket.socket(socket.AF_UNIX).connect('{0}/socket'))
attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '{0}/datagrams'))
attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).connect('{0}/datagrams'))
socket.socketpair()[0].send(b'x')",
        folder.path().display()
    );
    let instance = Instance::start();
    let said = instance.agent_in("bot", &[], &script).says_at_the_end();
    assert_eq!(said, ["EPERM"; 3]);
    assert_eq!(instance.denials(Denial::UnixSocket), 3);
    let lenient = Instance::start_with(|kernel| kernel.unix_sockets = UnixSockets::Allow);
    let said = lenient.agent_in("bot", &[], &script).says_at_the_end();
    assert_eq!(said, ["ok"; 3]);
    drop((listener, datagrams));
}

#[test]
fn devices_that_are_not_listed_are_denied() {
    let folder = crate::harness::scratch::folder("devices");
    let all = Mode::from_bits_truncate(0o666);
    for (name, minor) in [("loop-control", 237), ("listed", 229)] {
        let path = folder.path().join(name);
        mknod(&path, SFlag::S_IFCHR, all, makedev(10, minor)).expect("root may make nodes");
    }
    let script = format!(
        "
attempt(lambda: os.open('{0}/loop-control', os.O_RDONLY))
attempt(lambda: os.open('{0}/listed', os.O_RDONLY))
attempt(lambda: os.mknod('{0}/disk', 0o60600, os.makedev(7, 0)))
for standard in ('null', 'zero', 'full', 'random', 'urandom', 'ptmx'):
    attempt(lambda: os.open('/dev/' + standard, os.O_RDONLY))",
        folder.path().display()
    );
    let instance = Instance::start_with(|kernel| {
        kernel.devices.push(Device {
            kind: DeviceKind::Character,
            major: 10,
            minor: Some(229),
        });
    });
    let said = instance.agent_in("bot", &[], &script).says_at_the_end();
    assert_eq!(said[0], "EPERM");
    assert_ne!(said[1], "EPERM", "whether the kernel has it or not");
    assert_eq!(said[2], "EPERM");
    assert_eq!(said[3..], ["ok"; 6]);
    assert_eq!(instance.denials(Denial::Device), 2);
    assert_eq!(instance.counters("bot").denied[Denial::Device as usize], 2);
}
