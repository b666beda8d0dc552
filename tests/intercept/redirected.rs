//! connect(2): where it went, and what the gateway is told of it.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use gateway::intercept::FlowKind;

use super::instance::{Instance, NOBODY, PATIENCE, uptime};

#[test]
fn a_connect_is_redirected_and_its_flow_is_exact() {
    let instance = Instance::start();
    instance.target("192.0.2.7:1");
    instance.target(&format!("192.0.2.7:{}", instance.port));
    for target in ["127.0.0.1:5433", "[::1]:5433"] {
        instance.target(target);
    }
    let rows = [
        (
            "IPv4",
            "connect('192.0.2.7', 5432)",
            "192.0.2.7:5432",
            "192.0.2.7:5432",
        ),
        (
            "IPv6",
            "connect('2001:db8::7', 5432)",
            "[2001:db8::7]:5432",
            "[2001:db8::7]:5432",
        ),
        (
            "v4-mapped",
            "connect('::ffff:192.0.2.7', 5432)",
            "192.0.2.7:5432",
            "[::ffff:192.0.2.7]:5432",
        ),
        (
            "loopback",
            "connect('127.0.0.1', 5433)",
            "127.0.0.1:5433",
            "127.0.0.1:5433",
        ),
        (
            "loopback IPv6",
            "connect('::1', 5433)",
            "[::1]:5433",
            "[::1]:5433",
        ),
        (
            "unspecified",
            "connect('0.0.0.0', 5433)",
            "127.0.0.1:5433",
            "127.0.0.1:5433",
        ),
        (
            "bound source",
            "connect('192.0.2.7', 1, bind='127.0.0.9')",
            "192.0.2.7:1",
            "192.0.2.7:1",
        ),
        (
            "the gateway's port elsewhere",
            &format!("connect('192.0.2.7', {})", instance.port),
            &format!("192.0.2.7:{}", instance.port),
            &format!("192.0.2.7:{}", instance.port),
        ),
    ];
    for (name, call, original, peer) in rows {
        let before = uptime();
        let mut agent = instance.agent(&format!("s = {call}\nwait()"));
        let said = agent.says();
        let stream = instance.accept();
        let flow = instance
            .flow_of(&stream)
            .unwrap_or_else(|| panic!("{name}: no flow"));
        assert_eq!(
            flow.original,
            original.parse::<SocketAddr>().expect(name),
            "{name}: original"
        );
        assert_eq!(said["peer"], peer, "{name}: getpeername");
        assert_eq!(said["cookie"], flow.socket_cookie, "{name}: socket cookie");
        assert_eq!((flow.uid, flow.gid), (NOBODY, NOBODY), "{name}: user");
        assert_eq!(
            (flow.tgid, flow.pid),
            (agent.child.id(), agent.child.id()),
            "{name}: process"
        );
        assert_eq!(flow.cgroup_id, agent.cgroup_id, "{name}: cgroup");
        assert_eq!(flow.subtree, agent.cgroup_id, "{name}: agent");
        assert_eq!(flow.kind, FlowKind::Redirected, "{name}: kind");
        assert!(
            flow.comm.starts_with("python3"),
            "{name}: comm {:?}",
            flow.comm
        );
        assert!(
            (before..=uptime()).contains(&(flow.boot_ns / 10_000_000)),
            "{name}: time"
        );
        assert_eq!(
            flow.netns_cookie, instance.netns_cookie,
            "{name}: network namespace"
        );
    }
    assert_eq!(instance.handshakes(), 0, "every entry was claimed");
}

/// The cookie stays the same; keyed by it, the two streams would share one flow.
#[test]
fn a_socket_that_connects_again_has_a_flow_for_each_connection() {
    let instance = Instance::start();
    instance.target("192.0.2.1:1001");
    instance.target("192.0.2.2:1002");
    let script = "
s = connect('192.0.2.1', 1001)
libc = __import__('ctypes').CDLL(None)
assert libc.connect(s.fileno(), struct.pack('HHIQ', 0, 0, 0, 0), 16) == 0
connect('192.0.2.2', 1002, socket_=s)
wait()";
    let mut agent = instance.agent(script);
    let said = [agent.says(), agent.says()];
    let flows = [instance.accept(), instance.accept()]
        .map(|stream| instance.flow_of(&stream).expect("both have a flow"));
    let originals = flows.map(|flow| flow.original.to_string());
    assert_eq!(said[0]["cookie"], said[1]["cookie"], "it is one socket");
    assert_eq!(said[1]["peer"], "192.0.2.2:1002");
    assert_eq!(originals, ["192.0.2.1:1001", "192.0.2.2:1002"]);
}

#[test]
fn many_at_once_are_not_mixed_up() {
    const COUNT: usize = 120;
    let instance = Instance::start();
    for port in (10_000..).take(COUNT) {
        instance.target(&format!("192.0.2.9:{port}"));
    }
    let script = format!(
        "
import threading
held = []
def one(n):
    s = socket.socket()
    s.settimeout(8)
    s.connect(('192.0.2.9', 10000 + n))
    s.send(struct.pack('H', 10000 + n))
    held.append(s)
threads = [threading.Thread(target=one, args=(n,)) for n in range({COUNT})]
[t.start() for t in threads]
[t.join() for t in threads]
say(len(held))
wait()"
    );
    let mut agent = instance.agent(&script);
    for _ in 0..COUNT {
        let mut stream = instance.accept();
        let flow = instance.flow_of(&stream).expect("each has a flow");
        stream.set_nonblocking(false).expect("a stream can block");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a stream can have a timeout");
        let mut port = [0; 2];
        stream
            .read_exact(&mut port)
            .expect("the agent sends its port");
        assert_eq!(flow.original.port(), u16::from_ne_bytes(port));
    }
    assert_eq!(agent.says(), COUNT);
    assert_eq!(instance.handshakes(), 0);
}

#[test]
fn who_was_not_redirected_has_no_flow() {
    let instance = Instance::start();
    for host in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(host.parse::<IpAddr>().expect(host), instance.port);
        let _client = TcpStream::connect(address).expect("the listener is there");
        assert_eq!(instance.flow_of(&instance.accept()), None, "{host}");
    }
}

#[test]
fn a_process_outside_is_untouched() {
    let instance = Instance::start();
    for host in ["127.0.0.1", "::1"] {
        let elsewhere = TcpListener::bind((host, 0)).expect("a free port");
        let address = elsewhere.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("a direct connection");
        assert_eq!(client.peer_addr().expect("connected"), address);
        let (accepted, from) = elsewhere.accept().expect("it arrives");
        assert_eq!(from, client.local_addr().expect("connected"));
        assert_eq!(instance.flow_of(&accepted), None);
    }
}

#[test]
fn refused_connects_leave_nothing_behind() {
    let mut instance = Instance::start();
    instance.close_listeners();
    let script = "
for n in range(50):
    attempt(lambda: socket.socket().connect(('192.0.2.7', 5432)))
    attempt(lambda: socket.socket(socket.AF_INET6).connect(('2001:db8::7', 5432)))
    attempt(lambda: socket.socket(socket.AF_INET6).connect(('::ffff:192.0.2.7', 5432)))";
    let started = Instant::now();
    let said = instance.agent(script).says_at_the_end();
    assert_eq!(said.len(), 150);
    assert!(said.iter().all(|word| word == "ECONNREFUSED"), "{said:?}");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "refused at once"
    );
    assert_eq!(instance.handshakes(), 0);
}

#[test]
fn two_instances_work_side_by_side() {
    let instances = [Instance::start(), Instance::start()];
    let mut agents = instances
        .each_ref()
        .map(|instance| instance.agent("s = connect('192.0.2.7', 5432)\nwait()"));
    for (instance, agent) in instances.iter().zip(&mut agents) {
        let stream = instance.accept();
        let flow = instance.flow_of(&stream).expect("its own agent's flow");
        assert_eq!(flow.cgroup_id, agent.cgroup_id);
        agent.says();
    }
    // One's table knows nothing of the other's connections.
    instances[0].target("192.0.2.8:5432");
    let mut agent = instances[0].agent("s = connect('192.0.2.8', 5432)\nwait()");
    let stream = instances[0].accept();
    assert_eq!(instances[1].flow_of(&stream), None);
    agent.says();
}

/// The address a client logs as its own; the truth is loopback.
#[test]
fn a_local_address_can_be_given() {
    let instance = Instance::start_with(|kernel| {
        kernel.local_address = Some([192, 0, 2, 200].into());
        kernel.local_address6 = Some("2001:db8::200".parse().expect("an address"));
    });
    let rows = [
        ("192.0.2.7", "192.0.2.200"),
        ("2001:db8::7", "2001:db8::200"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.200"),
    ];
    for (to, expected) in rows {
        let script = format!("s = connect('{to}', 5432)\nsay(s.getsockname()[0])");
        let said = instance.agent(&script).says_at_the_end();
        assert_eq!(said[1], expected, "{to}");
    }
}

#[test]
fn without_one_the_local_address_is_the_truth() {
    let instance = Instance::start();
    let script = "s = connect('192.0.2.7', 5432)\nsay(s.getsockname()[0])";
    assert_eq!(instance.agent(script).says_at_the_end()[1], "127.0.0.1");
}

/// What is made inside stays intercepted wherever it goes.
#[test]
fn a_socket_made_inside_and_used_outside_is_redirected() {
    let instance = Instance::start();
    let outside = instance
        .scratch
        .path(&instance.kernel().guard_cgroup)
        .join("outside");
    gateway::intercept::cgroup::create(&outside).expect("cgroups can be made");
    let script = format!(
        "
s = socket.socket()
open('{}/cgroup.procs', 'w').write('0')
connect('192.0.2.7', 5432, socket_=s)
wait()",
        outside.display()
    );
    let mut agent = instance.agent_in("bot", &[], &script);
    agent.says();
    let flow = instance.flow_of(&instance.accept()).expect("a flow");
    assert_eq!(flow.subtree, agent.cgroup_id, "the agent that made it");
    assert_ne!(flow.cgroup_id, agent.cgroup_id, "the process that used it");
}
