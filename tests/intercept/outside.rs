//! Sockets from outside, and processes outside.

use std::fs::File;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use gateway::intercept::{Denial, attach_lookup, register_netns, registered_netns};

use super::instance::{Agent, Instance, sockets_in};

/// A socket keeps its maker's cgroup, so the agents' own hooks never see this one.
#[test]
fn a_socket_made_outside_is_of_no_use_inside() {
    let instance = Instance::start();
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a free port");
    elsewhere
        .set_nonblocking(true)
        .expect("it can be non-blocking");
    let receiver = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("it can have a timeout");
    let tcp_port = elsewhere.local_addr().expect("bound").port();
    let udp_port = receiver.local_addr().expect("bound").port();
    let outside = instance
        .scratch
        .path(&instance.kernel().guard_cgroup)
        .join("outside");
    let inside = instance.agents().join("bot");
    gateway::intercept::cgroup::create(&inside).expect("cgroups can be made");
    let script = format!(
        "
make = lambda family, kind: socket.socket(getattr(socket, family), getattr(socket, kind))
tcp, tcp6 = make('AF_INET', 'SOCK_STREAM'), make('AF_INET6', 'SOCK_STREAM')
udp, udp6 = make('AF_INET', 'SOCK_DGRAM'), make('AF_INET6', 'SOCK_DGRAM')
open('{}/cgroup.procs', 'w').write('0')
os.setresuid(65534, 65534, 65534)
attempt(lambda: tcp.connect(('127.0.0.1', {tcp_port})))
attempt(lambda: tcp6.connect(('::ffff:127.0.0.1', {tcp_port})))
attempt(lambda: udp.sendto(b'x', ('127.0.0.1', {udp_port})))
attempt(lambda: udp.connect(('127.0.0.1', {udp_port})))
attempt(lambda: udp6.sendto(b'x', ('::1', {udp_port})))",
        inside.display()
    );
    let said = Agent::start(&outside, &[], &[], &script).says_at_the_end();
    assert_eq!(said, ["EPERM"; 5]);
    assert_eq!(
        instance.counters("bot").denied[Denial::Inherited as usize],
        5
    );
    elsewhere.accept().expect_err("nobody came");
    receiver.recv(&mut [0; 8]).expect_err("nothing came");
}

/// The guard runs for them too, and lets them be.
#[test]
fn processes_below_the_guard_that_are_no_agents_are_untouched() {
    let instance = Instance::start();
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = elsewhere.local_addr().expect("bound").port();
    let group = instance
        .scratch
        .path(&instance.kernel().guard_cgroup)
        .join("service");
    let script = format!(
        "
attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 5))
attempt(lambda: socket.create_connection(('::ffff:127.0.0.1', {port}), 5))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9)))
attempt(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'x', ('::1', 9)))
attempt(lambda: os.open('/dev/kmsg', os.O_RDONLY))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))"
    );
    let said = Agent::start(&group, &[], &[], &script).says_at_the_end();
    assert_eq!(said, ["ok"; 6]);
}

/// While the gateway is down, its port leads nowhere: who binds it gets no connections.
#[test]
fn the_gateways_port_cannot_be_taken_over() {
    let mut instance = Instance::start();
    let addresses = [
        format!("127.0.0.1:{}", instance.port),
        format!("[::1]:{}", instance.port),
    ];
    for address in &addresses {
        TcpStream::connect(address).expect("the gateway's listener answers");
        instance.accept();
    }
    instance.close_listeners();
    for address in &addresses {
        let squatter = TcpListener::bind(address).expect("the port is free");
        squatter
            .set_nonblocking(true)
            .expect("it can be non-blocking");
        let refused = TcpStream::connect(address).expect_err("not to the squatter");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        squatter.accept().expect_err("nobody came");
        let squatter = UdpSocket::bind(address).expect("the port is free");
        squatter
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("it can have a timeout");
        let sender = UdpSocket::bind(if address.starts_with('[') {
            "[::1]:0"
        } else {
            "127.0.0.1:0"
        });
        let _ = sender.expect("a free port").send_to(b"?", address);
        squatter.recv(&mut [0; 8]).expect_err("nothing came");
    }
    let said = instance
        .agent("attempt(lambda: socket.create_connection(('192.0.2.7', 5432), 5))")
        .says_at_the_end();
    assert_eq!(said, ["ECONNREFUSED"]);
}

/// What the broker does for an agent in a network namespace of its own.
#[test]
fn an_agent_in_its_own_network_namespace_reaches_the_gateways_listeners_there() {
    let instance = Instance::start();
    let script = "
import subprocess
subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
say(netns(socket.socket()))
told()
s = connect('192.0.2.7', 5432)
say(s.recv(10).decode())
told()
attempt(lambda: socket.create_connection(('192.0.2.7', 5432), 5))";
    let group = instance.agents().join("bot");
    let mut agent = Agent::start(&group, &[], &["unshare", "--net"], script);
    let cookie_there = agent.says().as_u64().expect("a cookie");
    assert_ne!(cookie_there, instance.netns_cookie);
    let path = format!("/proc/{}/ns/net", agent.child.id());
    let netns = File::open(&path).expect("it lives");
    let enter = format!("--net={path}");
    let gateway = instance
        .scratch
        .path(&instance.kernel().gateway_cgroup)
        .join("gateway");
    let sockets = sockets_in(&gateway, &["nsenter", &enter], instance.port);
    let pins = &instance.kernel().pins;
    let all = sockets.each_ref().map(|socket| Some(socket.as_fd()));
    let lookup = attach_lookup(pins, netns.as_fd(), all).expect("it can be attached");
    instance.register(cookie_there, 1, 1);
    let registered = registered_netns(pins).expect("they can be read");
    assert!(registered.contains(&cookie_there) && registered.contains(&instance.netns_cookie));
    agent.tell("go");
    let [tcp4, ..] = sockets;
    let tcp4 = TcpListener::from(tcp4);
    let (mut stream, _) = tcp4.accept().expect("it comes");
    agent.says();
    let flow = instance.flow_of(&stream).expect("a flow");
    assert_eq!(flow.netns_cookie, cookie_there);
    assert_eq!(flow.original.to_string(), "192.0.2.7:5432");
    stream.write_all(b"hello").expect("it is connected");
    assert_eq!(agent.says(), "hello");
    // Without listeners the namespace's port leads nowhere, and without registration nobody is sent there.
    drop((tcp4, lookup));
    register_netns(pins, cookie_there, None).expect("it can be removed");
    agent.tell("go");
    assert_eq!(agent.says(), "ECONNREFUSED");
    assert_eq!(instance.denials(Denial::Netns), 1);
}
