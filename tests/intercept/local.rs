//! Loopback is not exempt: an agent reaches its own listeners, nobody else's, and nobody else reaches them.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use gateway::intercept::Denial;

use super::instance::Instance;

const LISTEN: &str = "
l = socket.socket(socket.FAMILY)
l.bind((HOST, 0))
l.listen()
say(l.getsockname()[1])
l.settimeout(8)
c, peer = l.accept()
c.send(c.recv(100))
say(name(c.getpeername()) == name(peer))
wait()";

fn listener(family: &str, host: &str) -> String {
    LISTEN
        .replace("FAMILY", family)
        .replace("HOST", &format!("'{host}'"))
}

#[test]
fn an_agent_reaches_its_own_listeners() {
    let instance = Instance::start();
    let rows = [
        ("IPv4", "AF_INET", "127.0.0.1", "127.0.0.1"),
        ("any", "AF_INET", "0.0.0.0", "127.0.0.7"),
        ("by any", "AF_INET", "127.0.0.1", "0.0.0.0"),
        ("IPv6", "AF_INET6", "::1", "::1"),
        ("both families", "AF_INET6", "::", "127.0.0.1"),
        ("mapped", "AF_INET", "127.0.0.1", "::ffff:127.0.0.1"),
    ];
    for (name, family, at, to) in rows {
        let mut server = instance.agent(&listener(family, at));
        let port = server.says();
        let script = format!(
            "
s = socket.create_connection(('{to}', {port}), 8)
s.send(b'hello')
say(s.recv(100).decode())
say(s.getpeername()[1])"
        );
        // A cgroup further down belongs to the same agent.
        let said = instance.agent_named("bot/task", &script).says_at_the_end();
        assert_eq!(said[0], "hello", "{name}");
        assert_eq!(said[1], port, "{name}");
        assert_eq!(server.says(), true, "{name}");
    }
    let counters = instance.counters("bot");
    assert_eq!(
        (counters.connects, counters.local, counters.redirected),
        (6, 6, 0)
    );
    for reason in [Denial::NoTarget, Denial::Egress, Denial::Ingress] {
        assert_eq!(counters.denied[reason as usize], 0, "{reason:?}");
    }
    assert_eq!(instance.handshakes(), 0, "every entry was claimed");
}

#[test]
fn other_listeners_on_loopback_are_refused() {
    let instance = Instance::start();
    let outside = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = outside.local_addr().expect("bound").port();
    let mut other = instance.agent_named("other", &listener("AF_INET", "127.0.0.1"));
    let others_port = other.says();
    for port in [port.to_string(), others_port.to_string()] {
        let script = format!("attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 8))");
        assert_eq!(instance.agent(&script).says_at_the_end(), ["ECONNREFUSED"]);
    }
    assert_eq!(
        instance.counters("bot").denied[Denial::NoTarget as usize],
        2
    );
}

/// What runs in the agents' cgroup itself is no agent, so it has no listeners of its own.
#[test]
fn processes_directly_in_the_agents_cgroup_are_not_one_agent() {
    let instance = Instance::start();
    let mut server = instance.agent_named(".", &listener("AF_INET", "127.0.0.1"));
    let port = server.says();
    let script = format!("attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 8))");
    let said = instance.agent_named(".", &script).says_at_the_end();
    assert_eq!(said, ["ECONNREFUSED"]);
}

#[test]
fn nobody_else_gets_an_answer_from_an_agents_listener() {
    let instance = Instance::start();
    let mut server = instance.agent(&listener("AF_INET", "0.0.0.0"));
    let port = server.says().as_u64().expect("a port") as u16;
    let address = ([127, 0, 0, 1], port).into();
    TcpStream::connect_timeout(&address, Duration::from_millis(1500))
        .expect_err("the listener's answer is dropped");
    assert!(instance.denials(Denial::Egress) > 0);
}
