//! Sockets from outside, and processes outside.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use gateway::intercept::Denial;

use super::instance::{Agent, Instance};

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
