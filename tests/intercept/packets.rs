//! The last line: packets of sockets that are older than the guard, and packets from other interfaces.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use gateway::intercept::{Denial, guard};

use super::instance::{Agent, Instance, Scratch};

/// Sockets that were there before the guard have no flow; what they send goes nowhere.
#[test]
fn sockets_older_than_the_guard_are_cut_off() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let receiver = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("it can have a timeout");
    let script = format!(
        "
tcp = socket.create_connection(('127.0.0.1', {}), 5)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(('127.0.0.1', {}))
fresh = socket.socket()
tcp.send(b'before')
udp.send(b'before')
say('connected')
told()
attempt(lambda: udp.send(b'after'))
tcp.send(b'after')
attempt(lambda: fresh.connect(('192.0.2.7', 5432)))
say('sent')
wait()",
        listener.local_addr().expect("bound").port(),
        receiver.local_addr().expect("bound").port(),
    );
    let group = scratch.path(&scratch.kernel.agents_cgroup).join("bot");
    let mut agent = Agent::start(&group, &[], &[], &script);
    assert_eq!(agent.says(), "connected");
    let (stream, _) = listener.accept().expect("it is connected");
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("it can have a timeout");
    let mut buffer = [0; 100];
    assert_eq!(receiver.recv(&mut buffer).expect("it came"), 6);
    guard::load(&scratch.kernel, 15001).expect("the guard loads");
    agent.tell("go");
    assert_eq!(agent.says(), "EPERM", "the datagram is refused");
    assert_ne!(
        agent.says(),
        "ok",
        "the socket has no owner, and the gateway is not there"
    );
    assert_eq!(agent.says(), "sent");
    receiver
        .recv(&mut buffer)
        .expect_err("nothing came after it");
    let read = std::io::Read::read(&mut &stream, &mut buffer).expect("what was sent before");
    assert_eq!(&buffer[..read], b"before");
    std::io::Read::read(&mut &stream, &mut buffer).expect_err("nothing came after it");
    let report = guard::inspect(&scratch.kernel).expect("it is loaded");
    let egress = report
        .denials
        .iter()
        .find(|denials| denials.reason == Denial::Egress.name());
    assert!(egress.expect("known").count >= 2, "{egress:?}");
}

/// In a namespace of its own with a veth to another, whose host dials in.
#[test]
fn packets_from_other_interfaces_do_not_come_in() {
    let instance = Instance::start();
    let script = "
import subprocess, threading
def run(line):
    subprocess.run(line.split(), check=True)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(netns(u))
told()
run('ip link set lo up')
run('ip link add inner type veth peer name outer netns 1')
run('ip addr add 10.213.77.2/24 dev inner')
run('ip link set inner up')";
    // The peer stands in a second namespace, so that nothing of it shows on the host.
    let script = script.replace("netns 1", "netns ' + str(peer.pid) + '");
    let script = script.replace(
        "say(netns(u))",
        "peer = subprocess.Popen(['unshare', '--net', 'sleep', '60'])
while os.readlink('/proc/%d/ns/net' % peer.pid) == os.readlink('/proc/self/ns/net'):
    pass
say(netns(u))",
    );
    let script = format!(
        "{script}
enter = 'nsenter --net=/proc/%d/ns/net ' % peer.pid
run(enter + 'ip addr add 10.213.77.1/24 dev outer')
run(enter + 'ip link set outer up')
u.bind(('0.0.0.0', 0))
u.settimeout(1)
send = \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); [s.sendto(b'in', ('10.213.77.2', %d)) for n in range(3)]\"
outside = told()
subprocess.run(['sh', '-c', 'echo 0 > \"$0/cgroup.procs\" && exec \"$@\"', outside] + enter.split() + ['/usr/bin/python3', '-c', send % u.getsockname()[1]], check=True)
attempt(lambda: u.recv(100))
peer.kill()"
    );
    let group = instance.agents().join("bot");
    let mut agent = Agent::start(&group, &[], &["unshare", "--net"], &script);
    let cookie = agent.says().as_u64().expect("a cookie");
    instance.register(cookie, 1, 1);
    agent.tell("go");
    let outside = instance
        .scratch
        .path(&instance.kernel().guard_cgroup)
        .join("sender");
    gateway::intercept::cgroup::create(&outside).expect("cgroups can be made");
    agent.tell(&outside.display().to_string());
    assert_eq!(agent.says(), "TimeoutError");
    assert!(instance.denials(Denial::Ingress) >= 3);
}
