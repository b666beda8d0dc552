//! The kernel's part, alone: what the programs do to real sockets of real processes in real cgroups.
//!
//! Here the test is the gateway: it accepts on listeners that a helper made inside the gateway's cgroup (a
//! socket keeps its creator's cgroup), and reads the flows. The agents are Python as user nobody.

use std::fs;
use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use gateway::config::Kernel;
use gateway::intercept::guard::{self, RunningAgents};
use gateway::intercept::{Flow, FlowTable, InterceptError, cgroup};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;

const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(10);

/// Functions the agents' scripts are written with. Each prints one JSON value per line.
const PRELUDE: &str = r#"
import errno, json, os, socket, struct, sys

def say(value):
    print(json.dumps(value), flush=True)

def name(address):
    return "[%s]:%d" % address[:2] if ":" in address[0] else "%s:%d" % address[:2]

def connect(host, port, bind=None, socket_=None):
    s = socket_ or socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.settimeout(8)
    if bind:
        s.bind((bind, 0))
    s.connect((host, port))
    say({"peer": name(s.getpeername()), "cookie": struct.unpack("Q", s.getsockopt(socket.SOL_SOCKET, 57, 8))[0]})
    return s

def attempt(call):
    try:
        call()
        say("ok")
    except OSError as error:
        say(errno.errorcode[error.errno])

def wait():
    sys.stdin.read()
"#;

/// Makes the listeners inside the gateway's cgroup and hands them over.
const LISTENERS: &str = r#"
import socket, sys
parent = socket.socket(fileno=0)
while True:
    v4 = socket.socket(socket.AF_INET)
    v4.bind(("127.0.0.1", 0))
    v6 = socket.socket(socket.AF_INET6)
    try:
        v6.bind(("::1", v4.getsockname()[1]))
        break
    except OSError:
        pass
v4.listen(256)
v6.listen(256)
socket.send_fds(parent, [b"!"], [v4.fileno(), v6.fileno()])
"#;

/// One guard with cgroups, pins and listeners of its own.
struct Instance {
    kernel: Kernel,
    port: u16,
    v4: Option<TcpListener>,
    v6: Option<TcpListener>,
    flows: FlowTable,
}

impl Instance {
    fn start() -> Instance {
        assert!(
            nix::unistd::geteuid().is_root(),
            "run as root: sudo -E env \"PATH=$PATH\" cargo xtask test"
        );
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "sluice-intercept-{}-{}",
            id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let kernel = Kernel {
            agents_cgroup: format!("{name}-agents.slice"),
            gateway_cgroup: format!("{name}-gateway.slice"),
            pins: PathBuf::from("/sys/fs/bpf").join(&name),
            ..Kernel::default()
        };
        let mount = cgroup::cgroup2_mount().expect("cgroup v2 is mounted");
        let (v4, v6) = listeners_in(&mount.join(&kernel.gateway_cgroup).join("gateway"));
        let port = v4.local_addr().expect("bound").port();
        guard::load(&kernel, port).expect("the guard loads");
        let flows = FlowTable::open(&kernel.pins).expect("the flow table is pinned");
        Instance {
            kernel,
            port,
            v4: Some(v4),
            v6: Some(v6),
            flows,
        }
    }

    fn agents(&self) -> PathBuf {
        cgroup::cgroup2_mount()
            .expect("cgroup v2 is mounted")
            .join(&self.kernel.agents_cgroup)
    }

    /// Starts a script as nobody in a cgroup of its own below the agents'.
    fn agent(&self, script: &str) -> Agent {
        self.agent_in(
            "bot",
            &[
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--no-new-privs",
            ],
            script,
        )
    }

    fn agent_in(&self, name: &str, privileges: &[&str], script: &str) -> Agent {
        let group = self.agents().join(name);
        cgroup::create(&group).expect("cgroups can be made");
        let mut child = in_cgroup(&group)
            .arg("setpriv")
            .args(privileges)
            .args(["/usr/bin/python3", "-c"])
            .arg(format!("{PRELUDE}\n{script}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Agent {
            cgroup_id: fs::metadata(&group).expect("made above").ino(),
            child,
            out,
        }
    }

    /// Accepts one connection of either family.
    #[track_caller]
    fn accept(&self) -> TcpStream {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for listener in [&self.v4, &self.v6].into_iter().flatten() {
                if let Ok((stream, _)) = listener.accept() {
                    return stream;
                }
            }
            sleep(Duration::from_millis(2));
        }
        panic!("nobody connected within {PATIENCE:?}");
    }

    fn flow_of(&self, stream: &TcpStream) -> Option<Flow> {
        self.flows
            .flow_of(stream.as_fd())
            .expect("flows can be read")
    }

    fn handshakes(&self) -> usize {
        guard::verify(&self.kernel)
            .expect("the guard is in place")
            .handshakes
    }

    fn denials(&self, reason: &str) -> u64 {
        let report = guard::verify(&self.kernel).expect("the guard is in place");
        report
            .denials
            .iter()
            .find(|denials| denials.reason == reason)
            .expect(reason)
            .count
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = fs::write(self.agents().join("cgroup.kill"), "1");
        let _ = guard::unload(&self.kernel, RunningAgents::LeaveUnwatched);
        // Processes just killed hold their cgroup for a moment.
        for _ in 0..100 {
            cgroup::remove_if_empty(&self.agents());
            if !self.agents().exists() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

struct Agent {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    cgroup_id: u64,
}

impl Agent {
    /// The next line it prints.
    #[track_caller]
    fn says(&mut self) -> Value {
        let mut line = String::new();
        self.out
            .read_line(&mut line)
            .expect("its output can be read");
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the agent said {line:?}: {error}"))
    }

    /// Everything else it prints until it ends.
    fn says_at_the_end(mut self) -> Vec<Value> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.out
            .read_to_string(&mut text)
            .expect("its output can be read");
        self.child.wait().expect("it can be waited for");
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that enters `group` before its program's first instruction. Its pid is the program's.
fn in_cgroup(group: &std::path::Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo 0 > "$0/cgroup.procs" && exec "$@""#])
        .arg(group);
    command
}

fn listeners_in(group: &std::path::Path) -> (TcpListener, TcpListener) {
    cgroup::create(group).expect("cgroups can be made");
    let (here, there) = UnixStream::pair().expect("socket pairs can be made");
    let mut child = in_cgroup(group)
        .args(["/usr/bin/python3", "-c", LISTENERS])
        .stdin(Stdio::from(OwnedFd::from(there)))
        .spawn()
        .expect("sh starts");
    let descriptors = receive_descriptors(&here);
    assert!(
        child.wait().expect("it can be waited for").success(),
        "the listeners were made"
    );
    let [v4, v6] = descriptors[..] else {
        panic!("two listeners, not {descriptors:?}")
    };
    // SAFETY: both were just received and belong to nobody else.
    let listeners =
        unsafe { [v4, v6].map(|descriptor| TcpListener::from(OwnedFd::from_raw_fd(descriptor))) };
    for listener in &listeners {
        listener
            .set_nonblocking(true)
            .expect("a listener can be made non-blocking");
    }
    let [v4, v6] = listeners;
    (v4, v6)
}

fn receive_descriptors(from: &UnixStream) -> Vec<RawFd> {
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        from.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    );
    let message = message.expect("the helper sends the listeners");
    message
        .cmsgs()
        .expect("the control message is whole")
        .flat_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors,
            _ => Vec::new(),
        })
        .collect()
}

/// Hundredths of a second since boot (`CLOCK_BOOTTIME`).
fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").expect("/proc is mounted");
    let seconds = text.split(' ').next().expect("two numbers");
    seconds.replace('.', "").parse().expect("two decimals")
}

#[test]
fn a_connect_is_redirected_and_its_flow_is_exact() {
    let instance = Instance::start();
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
        assert!(
            flow.comm.starts_with("python3"),
            "{name}: comm {:?}",
            flow.comm
        );
        assert!(
            (before..=uptime()).contains(&(flow.boot_ns / 10_000_000)),
            "{name}: time"
        );
        assert_ne!(flow.netns_cookie, 0, "{name}: network namespace");
    }
    assert_eq!(instance.handshakes(), 0, "every entry was claimed");
}

/// The cookie stays the same; keyed by it, the two streams would share one flow.
#[test]
fn a_socket_that_connects_again_has_a_flow_for_each_connection() {
    let instance = Instance::start();
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
fn everything_else_is_denied() {
    let instance = Instance::start();
    let udp = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)";
    let udp6 = "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)";
    let own = instance.port;
    let rows = [
        (
            "UDP sendto",
            format!("{udp}.sendto(b'x', ('127.0.0.1', 9))"),
            "EPERM",
        ),
        (
            "UDP sendto v6",
            format!("{udp6}.sendto(b'x', ('::1', 9))"),
            "EPERM",
        ),
        (
            "UDP sendto mapped",
            format!("{udp6}.sendto(b'x', ('::ffff:127.0.0.1', 9))"),
            "EPERM",
        ),
        (
            "UDP connect, as QUIC does",
            format!("{udp}.connect(('127.0.0.1', 443))"),
            "EPERM",
        ),
        (
            "UDP connect v6",
            format!("{udp6}.connect(('::1', 443))"),
            "EPERM",
        ),
        (
            "DNS sendto",
            format!("{udp}.sendto(b'x', ('127.0.0.1', 53))"),
            "ok",
        ),
        (
            "DNS connect",
            format!("{udp}.connect(('127.0.0.1', 53))"),
            "ok",
        ),
        (
            "the gateway itself",
            format!("socket.socket().connect(('127.0.0.1', {own}))"),
            "EPERM",
        ),
        (
            "the gateway by 127/8",
            format!("socket.socket().connect(('127.1.2.3', {own}))"),
            "EPERM",
        ),
        (
            "the gateway by any",
            format!("socket.socket().connect(('0.0.0.0', {own}))"),
            "EPERM",
        ),
        (
            "the gateway v6",
            format!("socket.socket(socket.AF_INET6).connect(('::1', {own}))"),
            "EPERM",
        ),
        (
            "the gateway mapped",
            format!("socket.socket(socket.AF_INET6).connect(('::ffff:127.0.0.1', {own}))"),
            "EPERM",
        ),
        (
            "metadata service",
            "socket.socket().connect(('169.254.169.254', 80))".into(),
            "EPERM",
        ),
        (
            "link-local v6",
            "socket.socket(socket.AF_INET6).connect(('fe80::1', 80, 0, 1))".into(),
            "EPERM",
        ),
        (
            "multicast",
            "socket.socket().connect(('224.0.0.1', 80))".into(),
            "EPERM",
        ),
        (
            "MPTCP",
            "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)".into(),
            "EPERM",
        ),
        (
            "UDP-Lite",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)".into(),
            "EPERM",
        ),
        (
            "raw, without privileges",
            "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)".into(),
            "EPERM",
        ),
    ];
    for (name, call, expected) in rows {
        let said = instance
            .agent(&format!("attempt(lambda: {call})"))
            .says_at_the_end();
        assert_eq!(said, [expected], "{name}");
    }
    assert_eq!(instance.denials("datagram"), 5);
    assert_eq!(instance.denials("gateway-itself"), 5);
    assert_eq!(instance.denials("link-local"), 2);
    assert_eq!(instance.denials("multicast-or-broadcast"), 1);
    assert_eq!(instance.handshakes(), 0);
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
        let agent = instance.agent_in(
            "root",
            &[],
            &format!("attempt(lambda: socket.socket({kind}))"),
        );
        assert_eq!(agent.says_at_the_end(), ["EPERM"], "{kind}");
    }
    assert_eq!(instance.denials("socket-kind"), 4);
}

/// A SYN to 127.0.0.1 of a socket bound to a device really leaves through that device.
#[test]
fn a_socket_bound_to_a_device_is_denied() {
    let instance = Instance::start();
    // As root in a network namespace of its own, where a bridge can be made to bind to.
    let script = "
import fcntl
SIOCBRADDBR = 0x89a0
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), SIOCBRADDBR, b'sluice0\\0')
def bound(device):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, 25, device)
    s.settimeout(2)
    s.connect(('192.0.2.7', 5432))
attempt(lambda: bound(b'sluice0'))";
    let group = instance.agents().join("bound");
    cgroup::create(&group).expect("cgroups can be made");
    let output = in_cgroup(&group)
        .args(["unshare", "--net", "/usr/bin/python3", "-c"])
        .arg(format!("{PRELUDE}\n{script}"))
        .output()
        .expect("sh starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        said,
        "\"EPERM\"\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(instance.denials("bound-device"), 1);
}

#[test]
fn refused_connects_leave_nothing_behind() {
    let mut instance = Instance::start();
    instance.v4 = None;
    instance.v6 = None;
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
    let mut agent = instances[0].agent("s = connect('192.0.2.8', 5432)\nwait()");
    let stream = instances[0].accept();
    assert_eq!(instances[1].flow_of(&stream), None);
    agent.says();
}

#[test]
fn loading_again_changes_nothing_for_those_who_are_connected() {
    let instance = Instance::start();
    let before = guard::verify(&instance.kernel).expect("in place");
    guard::load(&instance.kernel, instance.port).expect("loads again");
    let after = guard::verify(&instance.kernel).expect("still in place");
    let links = |report: &guard::Report| {
        report
            .links
            .iter()
            .map(|link| link.link_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        links(&before),
        links(&after),
        "the links stay, their programs are replaced"
    );
    let mut agent = instance.agent("s = connect('192.0.2.7', 5432)\nwait()");
    agent.says();
    assert!(
        instance.flow_of(&instance.accept()).is_some(),
        "the table opened before goes on"
    );
}

/// A pin survives its cgroup; trusting it would call an unwatched cgroup watched.
#[test]
fn verify_sees_that_the_cgroup_was_made_anew() {
    let instance = Instance::start();
    fs::remove_dir(instance.agents()).expect("it is empty");
    let missing = guard::verify(&instance.kernel).expect_err("there is no agents' cgroup");
    assert!(missing.to_string().contains("connect4"), "{missing}");
    fs::create_dir(instance.agents()).expect("made anew");
    let stale = guard::verify(&instance.kernel).expect_err("attached to the one that is gone");
    let InterceptError::NotEnforced(problems) = &stale else {
        panic!("{stale}")
    };
    assert_eq!(problems.len(), 1, "one line per cause: {problems:?}");
    assert!(
        !problems[0].contains("gateway_sock_ops"),
        "that one is well: {problems:?}"
    );
    guard::load(&instance.kernel, instance.port).expect("loading repairs");
    guard::verify(&instance.kernel).expect("in place again");
}

#[test]
fn the_guard_is_not_unloaded_under_running_agents() {
    let instance = Instance::start();
    let mut agent = instance.agent("say('here')\nwait()");
    agent.says();
    let refused =
        guard::unload(&instance.kernel, RunningAgents::Refuse).expect_err("an agent runs");
    assert!(
        matches!(refused, InterceptError::AgentsRunning(_)),
        "{refused}"
    );
    guard::verify(&instance.kernel).expect("still in place");
    agent.says_at_the_end();
}
