//! The broker: what it does for the gateway's user, and for nobody else.
//!
//! Here the test is the gateway, on threads that have its user and no capabilities.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use gateway::broker::{BrokerError, Client, GuardState, Listeners};
use gateway::identity::process::Process;
use gateway::intercept::{Flow, FlowKind, Maps, netns};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use sha2::{Digest as _, Sha256};

use crate::harness::gateway::USER;
use crate::harness::program::{eventually, run};
use crate::harness::{Gateway, Setup};

const NOBODY: u32 = 65534;
const PATIENCE: Duration = Duration::from_secs(30);

/// Where agents want to go. Nobody is there (RFC 5737, RFC 3849): only the redirected get anywhere.
const TARGETS: [&str; 2] = ["192.0.2.7:5432", "[2001:db8::7]:5432"];

/// Waits for a line, connects to each argument, says who is there, and lives until its input ends.
const AGENT: &str = r#"
import socket, sys
print("ready", flush=True)
sys.stdin.readline()
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    host = host.strip("[]")
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.settimeout(5)
    try:
        s.connect((host, int(port)))
        print(s.recv(64).decode(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
sys.stdin.read()
"#;

fn broker() -> Gateway {
    Setup::in_front_of_port(9).start_broker()
}

/// Runs `work` on a thread of this user: no groups, no capabilities. The other threads stay root.
fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: plain numbers. These are the bare system calls, which change the calling thread only.
            let results = unsafe {
                [
                    libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                    libc::syscall(libc::SYS_setresgid, uid, uid, uid),
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                ]
            };
            assert_eq!(results, [0; 3], "root may become anybody");
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn as_gateway<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    as_user(USER, work)
}

/// A process in the agents' control group.
struct Agent {
    child: Child,
    said: Vec<u8>,
}

impl Agent {
    /// `wrapper`: words before the program, such as `unshare --net`.
    fn start(group: &Path, wrapper: &[&str]) -> Agent {
        fs::create_dir_all(group).expect("root may make control groups");
        let child = Command::new("sh")
            .args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#])
            .arg(group)
            .args(wrapper)
            .args([
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ])
            .args(["/usr/bin/python3", "-c", AGENT])
            .args(TARGETS)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let said = Vec::new();
        let mut agent = Agent { child, said };
        assert_eq!(agent.line(), "ready");
        agent
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn go(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        stdin.write_all(b"go\n").expect("it reads");
    }

    fn line(&mut self) -> String {
        let stdout = self.child.stdout.as_mut().expect("it is piped");
        self.said.clear();
        loop {
            let mut byte = [0];
            stdout.read_exact(&mut byte).expect("it says a line");
            match byte {
                [b'\n'] => return String::from_utf8_lossy(&self.said).into_owned(),
                [byte] => self.said.push(byte),
            }
        }
    }

    /// Which network namespace it is in.
    fn netns_cookie(&self) -> u64 {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("it runs");
        let visitor = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter");
            let probe = TcpListener::bind("0.0.0.0:0").expect("a free port");
            netns::cookie(probe.as_fd()).expect("since Linux 5.14")
        });
        visitor.join().expect("it does not panic")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Accepts one connection on each listener, greets it, and answers the flows.
fn serve(listeners: &Listeners, maps: &Maps) -> Vec<Flow> {
    let accept = |listener: &TcpListener| {
        let (mut stream, _) = eventually("a connection", PATIENCE, || listener.accept().ok());
        stream
            .write_all(b"hello from the gateway")
            .expect("it is open");
        let flow = maps.flows.flow_of(stream.as_fd());
        flow.expect("it can be read").expect("it was redirected")
    };
    listeners.tcp.iter().map(accept).collect()
}

/// What a gateway does while it is well.
fn be_alive(maps: &Maps) {
    maps.heartbeat.beat().expect("the map is writable");
    let targets = TARGETS.map(|target| target.parse::<SocketAddr>().expect("an address"));
    maps.targets
        .replace(&targets.into_iter().collect())
        .expect("the map is writable");
}

#[track_caller]
fn refusal<T>(outcome: Result<T, BrokerError>) -> String {
    match outcome {
        Err(BrokerError::Refused(reason)) => reason,
        Err(error) => panic!("not refused but {error}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn only_the_gateways_user_is_answered() {
    let installation = broker();
    let socket = installation.broker_socket();
    let ask = || Client::new(&socket).state();
    for uid in [0, NOBODY] {
        let error = as_user(uid, ask).expect_err("it is not the gateway");
        assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
    }
    let state = as_gateway(ask).expect("it is the gateway");
    assert!(state.maps.is_some(), "{state:?}");
    let well = GuardState {
        problems: Vec::new(),
        frozen: false,
        abandoned: Vec::new(),
        maps: state.maps,
    };
    assert_eq!(state, well);
}

#[test]
fn hello_gives_listeners_and_maps_that_need_no_privileges() {
    let installation = broker();
    let client = Client::new(&installation.broker_socket());
    let mut agent = Agent::start(&installation.agents_group().join("bot"), &[]);
    let port = installation.port();
    as_gateway(|| {
        let endowment = client.hello().expect("the guard is loaded, the port free");
        assert_eq!(endowment.maps.len(), Maps::NAMES.len());
        assert_eq!(endowment.listeners.tcp.len(), 2);
        assert_eq!(endowment.listeners.udp.len(), 2);
        for (listener, host) in endowment.listeners.tcp.iter().zip(["127.0.0.1", "::1"]) {
            let address = listener.local_addr().expect("it is bound");
            assert_eq!(
                (address.ip().to_string().as_str(), address.port()),
                (host, port)
            );
            let nobody = listener.accept().expect_err("nobody connects");
            assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
        }
        let maps = in_a_runtime(|| Maps::from_fds(endowment.maps).expect("they are the maps"));
        be_alive(&maps);
        agent.go();
        let flows = serve(&endowment.listeners, &maps);
        for (flow, target) in flows.iter().zip(TARGETS) {
            assert_eq!(flow.original.to_string(), target);
            assert_eq!((flow.tgid, flow.uid), (agent.pid(), NOBODY));
            assert_eq!(flow.netns_cookie, endowment.listeners.netns_cookie);
        }
        assert_eq!(agent.line(), "hello from the gateway");

        let busy = refusal(client.hello());
        assert!(
            busy.contains(&format!("127.0.0.1:{port} is taken")),
            "{busy}"
        );
        // The broker has kept none: when the gateway is gone, its port is closed.
        drop(endowment.listeners);
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("it is closed");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        client.hello().expect("the port is free again");
    });
}

/// The ring of events wants one.
fn in_a_runtime<T>(work: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    work()
}

#[test]
fn listeners_inside_another_namespace() {
    let installation = broker();
    let client = Client::new(&installation.broker_socket());
    let group = installation.agents_group().join("bot");
    let mut agent = Agent::start(&group, &["unshare", "--net"]);
    let cookie = agent.netns_cookie();
    as_gateway(|| {
        let endowment = client.hello().expect("the guard is loaded");
        let maps = in_a_runtime(|| Maps::from_fds(endowment.maps).expect("they are the maps"));
        let began = Instant::now();
        let there = client.listen(agent.pid(), cookie).expect("an agent's");
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        assert_eq!(there.netns_cookie, cookie);
        assert_ne!(endowment.listeners.netns_cookie, cookie);
        be_alive(&maps);
        agent.go();
        for (flow, target) in serve(&there, &maps).iter().zip(TARGETS) {
            assert_eq!(flow.original.to_string(), target);
            assert_eq!((flow.tgid, flow.netns_cookie), (agent.pid(), cookie));
        }
        assert_eq!(agent.line(), "hello from the gateway");
        assert_eq!(agent.line(), "hello from the gateway");

        let again = refusal(client.listen(agent.pid(), cookie));
        assert!(again.contains("is taken"), "{again}");
        drop(there);
        client
            .listen(agent.pid(), cookie)
            .expect("it is free again");
    });
}

#[test]
fn namespaces_of_others_are_left_alone() {
    let installation = broker();
    let client = Client::new(&installation.broker_socket());
    let agent = Agent::start(
        &installation.agents_group().join("bot"),
        &["unshare", "--net"],
    );
    // Beside the agents, with a name that begins alike.
    let beside = installation.agents_group().with_extension("slice2");
    let stranger = Agent::start(&beside, &["unshare", "--net"]);
    let dead = {
        let short = Agent::start(&installation.agents_group().join("bot"), &[]);
        short.pid()
    };
    let (cookie, strange) = (agent.netns_cookie(), stranger.netns_cookie());
    as_gateway(|| {
        for (what, tgid, cookie, expected) in [
            ("a stranger's", stranger.pid(), strange, "not an agent's"),
            (
                "by another's name",
                agent.pid(),
                strange,
                "in network namespace",
            ),
            (
                "a made-up one",
                agent.pid(),
                cookie + 1_000_000,
                "in network namespace",
            ),
            ("a dead process", dead, cookie, "is gone"),
            ("no process", 0, cookie, "is gone"),
            ("no process at all", u32::MAX, cookie, "is gone"),
            (
                "this very test",
                std::process::id(),
                cookie,
                "not an agent's",
            ),
        ] {
            let reason = refusal(client.listen(tgid, cookie));
            assert!(reason.contains(expected), "{what}: {reason}");
        }
    });
    cgroup_is_removed(&beside, stranger);
}

fn cgroup_is_removed(group: &Path, last: Agent) {
    drop(last);
    eventually("an empty group", PATIENCE, || fs::remove_dir(group).ok());
}

#[test]
fn a_namespace_that_its_agents_left_is_given_up() {
    let installation = broker();
    let client = Client::new(&installation.broker_socket());
    let agent = Agent::start(
        &installation.agents_group().join("bot"),
        &["unshare", "--net"],
    );
    let cookie = agent.netns_cookie();
    let listeners = as_gateway(|| client.listen(agent.pid(), cookie).expect("an agent's"));
    drop(agent);
    as_gateway(|| {
        eventually("the namespace is abandoned", PATIENCE, || {
            let state = client.state().expect("the broker answers");
            state.abandoned.contains(&cookie).then_some(())
        });
    });
    drop(listeners);
}

#[test]
fn programs_of_agents_and_of_nobody_else() {
    let installation = broker();
    let client = Client::new(&installation.broker_socket());
    let agent = Agent::start(&installation.agents_group().join("bot"), &[]);
    let outside = {
        let own = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        own.expect("cgroup v2 is mounted").to_owned()
    };
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", agent.pid())).expect("it runs");
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::/"));
    let cgroup = cgroup.expect("cgroup v2 is mounted");
    let program = fs::canonicalize("/usr/bin/python3").expect("Debian has it");
    let digest = hex::encode(Sha256::digest(fs::read(&program).expect("it is a file")));
    as_gateway(|| {
        let known = client.inspect(&flow(agent.pid(), u64::MAX), cgroup);
        assert_eq!(known.exe.as_deref(), program.to_str());
        assert_eq!(known.exe_sha256, Some(digest));
        assert!(known.started_boot_ns.is_some());
        for (what, tgid, boot_ns, cgroup) in [
            ("started later", agent.pid(), 1, cgroup),
            ("in another group", agent.pid(), u64::MAX, "elsewhere"),
            ("outside", std::process::id(), u64::MAX, outside.as_str()),
            ("outside, as an agent", std::process::id(), u64::MAX, cgroup),
        ] {
            let Process {
                exe, exe_sha256, ..
            } = client.inspect(&flow(tgid, boot_ns), cgroup);
            assert_eq!((exe, exe_sha256), (None, None), "{what}");
        }
        // Nor when there is nobody to ask.
        let nobody = Client::new(Path::new("/nonexistent")).inspect(&flow(1, 1), cgroup);
        assert_eq!((nobody.exe, nobody.cgroup.as_str()), (None, cgroup));
    });
}

fn flow(tgid: u32, boot_ns: u64) -> Flow {
    Flow {
        original: ([192, 0, 2, 7], 5432).into(),
        cgroup_id: 1,
        subtree: 1,
        netns_cookie: 1,
        socket_cookie: 1,
        tgid,
        pid: tgid,
        uid: NOBODY,
        gid: NOBODY,
        comm: "python3".to_owned(),
        boot_ns,
        kind: FlowKind::Redirected,
    }
}

#[test]
fn agents_are_frozen_while_a_link_is_missing() {
    let installation = broker();
    let client = Client::new(&installation.broker_socket());
    let _agent = Agent::start(&installation.agents_group().join("bot"), &[]);
    fs::remove_file(installation.pins().join("links/connect4")).expect("it is pinned");
    let state = until(&client, |state| !state.problems.is_empty() && state.frozen);
    assert!(state.problems.join(" ").contains("connect4"), "{state:?}");
    eventually("the agent stands still", PATIENCE, || {
        is_frozen(&installation.agents_group()).then_some(())
    });
    let reason = as_gateway(|| refusal(client.hello()));
    assert!(
        reason.contains("connect4") && reason.contains("guard load"),
        "{reason}"
    );

    installation.sluice(["guard", "load"]).succeeds();
    until(&client, |state| state.problems.is_empty() && !state.frozen);
    eventually("the agent goes on", PATIENCE, || {
        (!is_frozen(&installation.agents_group())).then_some(())
    });
}

#[test]
fn a_recreated_agents_group_is_frozen_at_once() {
    let installation = broker();
    let client = Client::new(&installation.broker_socket());
    let group = installation.agents_group();
    eventually("an empty group", PATIENCE, || fs::remove_dir(&group).ok());
    let agent = Agent::start(&group, &[]);
    let began = Instant::now();
    until(&client, |state| !state.problems.is_empty() && state.frozen);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    installation.sluice(["guard", "load"]).succeeds();
    until(&client, |state| state.problems.is_empty() && !state.frozen);
    drop(agent);
}

/// Also without a broker, as when it was restarted meanwhile and does not know who froze them.
#[test]
fn guard_load_thaws() {
    let mut installation = broker();
    fs::remove_file(installation.pins().join("links/connect4")).expect("it is pinned");
    let group = installation.agents_group();
    let freezer = group.join("cgroup.freeze");
    let frozen = || fs::read_to_string(&freezer).expect("the group is there") == "1\n";
    eventually("the agents are frozen", PATIENCE, || frozen().then_some(()));
    // It freezes before it says so; whoever asks is answered when the round is over.
    let client = Client::new(&installation.broker_socket());
    until(&client, |state| !state.problems.is_empty() && state.frozen);
    let log = installation.end_broker(Signal::SIGKILL);
    assert!(log.contains("ALARM") && log.contains("connect4"), "{log}");
    installation.sluice(["guard", "load"]).succeeds();
    assert!(!frozen());
}

fn until(client: &Client, condition: impl Fn(&GuardState) -> bool + Sync) -> GuardState {
    as_gateway(|| {
        eventually("the state", PATIENCE, || {
            let state = client.state().expect("the broker answers");
            condition(&state).then_some(state)
        })
    })
}

fn is_frozen(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "frozen 1")
}

/// A bare connection, for what the client would never send.
fn raw(path: &Path) -> UnixStream {
    let made = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    let made = UnixStream::from(made.expect("a socket"));
    let address = UnixAddr::new(path).expect("it is short");
    connect(made.as_raw_fd(), &address).expect("the broker listens");
    let timeout = Some(Duration::from_secs(5));
    made.set_read_timeout(timeout).expect("it is ours");
    made.set_write_timeout(timeout).expect("it is ours");
    made
}

#[test]
fn messages_that_make_no_sense() {
    let mut installation = broker();
    let path = installation.broker_socket();
    let client = Client::new(&path);
    let nested = "[".repeat(60_000);
    let large = format!(r#"{{"request":"hello","x":"{}"}}"#, "x".repeat(80_000));
    let name = format!(
        r#"{{"request":"inspect","tgid":1,"boot_ns":1,"cgroup":"{}"}}"#,
        "x".repeat(60_000)
    );
    as_gateway(|| {
        for message in [
            "{",
            "\0",
            "null",
            r#"{"request":"exec","command":"id"}"#,
            r#"{"request":"listen","tgid":1e99,"netns_cookie":1}"#,
            nested.as_str(),
            large.as_str(),
            name.as_str(),
        ] {
            let mut connection = raw(&path);
            connection.write_all(message.as_bytes()).expect("it fits");
            let mut answer = vec![0; 70_000];
            let length = connection.read(&mut answer).expect("there is an answer");
            let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
            let message: String = message.chars().take(60).collect();
            assert!(answer.contains("refused"), "{message}: {answer}");
        }
        // Nothing, and gone; a message, and gone; descriptors, which are not wanted.
        let mut silent = raw(&path);
        silent.write_all(b"").expect("it fits");
        drop(silent);
        raw(&path)
            .write_all(br#"{"request":"hello"}"#)
            .expect("it fits");
        let generous = raw(&path);
        let gifts = [generous.as_raw_fd(); 100];
        let rights = [ControlMessage::ScmRights(&gifts)];
        let text = [std::io::IoSlice::new(br#"{"request":"state"}"#)];
        let socket = generous.as_raw_fd();
        sendmsg::<()>(socket, &text, &rights, MsgFlags::empty(), None).expect("it fits");
        eventually("a hello that reaches somebody", PATIENCE, || {
            client.hello().ok()
        });
    });
    let open = fs::read_dir(format!("/proc/{}/fd", installation.broker_pid()));
    let open = open.expect("it runs").count();
    assert!(open < 40, "{open} descriptors are open");
    installation.end_broker(Signal::SIGTERM);
    assert!(!path.exists(), "the socket goes with the broker");
}

#[test]
fn the_slow_and_the_many_keep_nobody_waiting() {
    let installation = broker();
    let path = installation.broker_socket();
    as_gateway(|| {
        let client = Client::new(&path);
        client.state().expect("the broker answers");
        let mut deaf = raw(&path);
        deaf.set_nonblocking(true).expect("it is ours");
        // It never reads; its answers fill the way back, then its requests the way there.
        while deaf.write_all(br#"{"request":"state"}"#).is_ok() {}
        let idle: Vec<UnixStream> = (0..20).map(|_| raw(&path)).collect();
        let began = Instant::now();
        for _ in 0..20 {
            Client::new(&path).state().expect("the broker answers");
        }
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        // Too many: the latest are closed, those that are kept go on.
        let many: Vec<UnixStream> = (0..60).map(|_| raw(&path)).collect();
        client.state().expect("its connection is kept");
        let error = Client::new(&path).state().expect_err("there is no room");
        assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
        drop((idle, many));
        eventually("there is room again", PATIENCE, || {
            Client::new(&path).state().ok()
        });
    });
}

#[test]
fn before_the_guard_is_loaded() {
    let mut installation = Setup::in_front_of_port(9).install();
    installation.start_broker();
    let client = Client::new(&installation.broker_socket());
    let (reason, state) = as_gateway(|| (refusal(client.hello()), client.state()));
    assert!(reason.contains("sluice guard load"), "{reason}");
    let state = state.expect("the broker answers");
    assert!(!state.problems.is_empty() && !state.frozen, "{state:?}");
    installation.sluice(["guard", "load"]).succeeds();
    as_gateway(|| client.hello().map(drop).expect("all is well"));
}

#[test]
fn a_restarted_broker_is_found_again_and_a_second_one_refused() {
    let mut installation = broker();
    let client = Client::new(&installation.broker_socket());
    as_gateway(|| client.state().map(drop).expect("the broker answers"));
    run(installation.sluice_command(["broker"]))
        .fails()
        .complains("another broker answers");
    installation.end_broker(Signal::SIGKILL);
    assert!(
        installation.broker_socket().exists(),
        "it could not clear away"
    );
    let error = as_gateway(|| client.state().expect_err("nobody is there"));
    assert!(error.to_string().contains("sluice broker"), "{error}");
    installation.start_broker();
    as_gateway(|| client.state().map(drop).expect("the new one answers"));
}

#[test]
fn only_root_can_be_the_broker() {
    let installation = Setup::in_front_of_port(9).install();
    let mut broker = Command::new("setpriv");
    broker.args(["--reuid=64023", "--regid=64023", "--clear-groups"]);
    let sluice = installation.sluice_command(["broker"]);
    broker.arg(sluice.get_program()).args(sluice.get_args());
    run(broker).fails().complains("run it as root");
}
