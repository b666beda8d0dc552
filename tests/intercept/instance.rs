//! A guard with cgroups, pins and listeners of its own, and agents for it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use gateway::config::Kernel;
use gateway::intercept::guard::{self, RunningAgents};
use gateway::intercept::{
    Counters, Denial, Flow, Listener, Maps, cgroup, publish_sockets, register_netns,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::Value;

pub const NOBODY: u32 = 65534;
pub const PATIENCE: Duration = Duration::from_secs(10);
const AS_NOBODY: &[&str] = &[
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--no-new-privs",
];

/// Functions the agents' scripts are written with. Each prints one JSON value per line.
pub const PRELUDE: &str = r#"
import ctypes, errno, json, os, socket, struct, sys

def say(value):
    print(json.dumps(value), flush=True)

def name(address):
    return "[%s]:%d" % address[:2] if ":" in address[0] else "%s:%d" % address[:2]

def netns(s):
    return struct.unpack("Q", s.getsockopt(socket.SOL_SOCKET, 71, 8))[0]

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
        say(errno.errorcode[error.errno] if error.errno else type(error).__name__)

def wait():
    sys.stdin.read()

def told():
    return sys.stdin.readline().strip()
"#;

/// Makes the gateway's sockets inside its cgroup and hands them over.
const SOCKETS: &str = r#"
import socket, sys
parent = socket.socket(fileno=0)
def four():
    tcp4 = socket.socket(socket.AF_INET)
    tcp4.bind(("127.0.0.1", int(sys.argv[1])))
    port = tcp4.getsockname()[1]
    made = [tcp4]
    for family, kind, host in (
        (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
        (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
    ):
        s = socket.socket(family, kind)
        made.append(s)
        s.bind((host, port))
    return made
while True:
    try:
        made = four()
        break
    except OSError:
        pass
made[0].listen(256)
made[1].listen(256)
socket.send_fds(parent, [b"!"], [s.fileno() for s in made])
"#;

/// Cgroups and pins that are removed whatever happens.
pub struct Scratch {
    pub kernel: Kernel,
    /// The parent of all, relative to the mount.
    parent: String,
}

impl Scratch {
    pub fn new() -> Scratch {
        crate::harness::require_root();
        let name = crate::harness::scratch::name();
        let parent = format!("{name}.test");
        let kernel = Kernel {
            agents_cgroup: format!("{parent}/agents.slice"),
            gateway_cgroup: format!("{parent}/gateway.slice"),
            guard_cgroup: parent.clone(),
            pins: PathBuf::from("/sys/fs/bpf").join(&name),
            ..Kernel::default()
        };
        Scratch { kernel, parent }
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        let mount = cgroup::cgroup2_mount().expect("cgroup v2 is mounted");
        mount.join(relative)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::write(self.path(&self.parent).join("cgroup.kill"), "1");
        let _ = guard::unload(&self.kernel, RunningAgents::LeaveUnwatched);
        crate::harness::cgroup::remove(&self.path(&self.parent));
    }
}

/// A guard that is loaded and a gateway (this test) that is alive.
pub struct Instance {
    pub port: u16,
    pub tcp: Option<[TcpListener; 2]>,
    pub udp: Option<[UdpSocket; 2]>,
    pub maps: Arc<Maps>,
    pub netns_cookie: u64,
    targets: Mutex<BTreeSet<SocketAddr>>,
    beating: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    pub scratch: Scratch,
}

impl Instance {
    /// The usual targets are there, the gateway is alive and listens.
    pub fn start() -> Instance {
        Self::start_with(|_| {})
    }

    pub fn start_with(configure: impl FnOnce(&mut Kernel)) -> Instance {
        let mut scratch = Scratch::new();
        configure(&mut scratch.kernel);
        let kernel = &scratch.kernel;
        let group = scratch.path(&kernel.gateway_cgroup).join("gateway");
        let sockets = sockets_in(&group, &[], 0);
        let [tcp4, tcp6, udp4, udp6] = sockets;
        let tcp = [tcp4, tcp6].map(TcpListener::from);
        let udp = [udp4, udp6].map(UdpSocket::from);
        for listener in &tcp {
            listener
                .set_nonblocking(true)
                .expect("a listener can be made non-blocking");
        }
        for socket in &udp {
            socket
                .set_read_timeout(Some(PATIENCE))
                .expect("a socket can have a timeout");
        }
        let port = tcp[0].local_addr().expect("bound").port();
        guard::load(kernel, port).expect("the guard loads");
        let descriptors = Maps::open_pins(&kernel.pins).expect("the maps are pinned");
        let maps = Arc::new(Maps::from_fds(descriptors).expect("they are what they should be"));
        let netns_cookie = cookie(&tcp[0]);
        let mut instance = Instance {
            port,
            tcp: Some(tcp),
            udp: Some(udp),
            maps,
            netns_cookie,
            targets: Mutex::default(),
            beating: None,
            scratch,
        };
        instance.publish();
        instance.register(netns_cookie, 1, 1);
        for target in ["192.0.2.7:5432", "[2001:db8::7]:5432"] {
            instance.target(target);
        }
        instance.beat();
        instance
    }

    pub fn kernel(&self) -> &Kernel {
        &self.scratch.kernel
    }

    /// Makes the present sockets those of the gateway's port.
    pub fn publish(&self) {
        let tcp = self.tcp.as_ref().expect("listening");
        let udp = self.udp.as_ref().expect("listening");
        let sockets = [
            tcp[0].as_fd(),
            tcp[1].as_fd(),
            udp[0].as_fd(),
            udp[1].as_fd(),
        ];
        publish_sockets(&self.kernel().pins, sockets.map(Some)).expect("sockets can be published");
    }

    pub fn register(&self, cookie: u64, v4: u8, v6: u8) {
        let listener = Listener {
            v4,
            v6,
            reserved: [0; 6],
        };
        register_netns(&self.kernel().pins, cookie, Some(listener)).expect("it can be registered");
    }

    /// Adds a destination that is worth redirecting.
    pub fn target(&self, address: &str) {
        let mut targets = self.targets.lock().expect("no test panicked with it");
        targets.insert(address.parse().expect(address));
        self.maps
            .targets
            .replace(&targets)
            .expect("targets can be set");
    }

    pub fn beat(&mut self) {
        self.maps.heartbeat.beat().expect("the gateway can beat");
        let going = Arc::new(AtomicBool::new(true));
        let thread = thread::spawn({
            let (going, maps) = (Arc::clone(&going), Arc::clone(&self.maps));
            move || {
                while going.load(Ordering::Relaxed) {
                    maps.heartbeat.beat().expect("the gateway can beat");
                    sleep(Duration::from_millis(100));
                }
            }
        });
        self.beating = Some((going, thread));
    }

    /// The last beat stays where it is.
    pub fn freeze_heart(&mut self) {
        if let Some((going, thread)) = self.beating.take() {
            going.store(false, Ordering::Relaxed);
            thread.join().expect("it ends");
        }
    }

    pub fn close_listeners(&mut self) {
        self.tcp = None;
        self.udp = None;
    }

    pub fn agents(&self) -> PathBuf {
        self.scratch.path(&self.kernel().agents_cgroup)
    }

    /// Starts a script as nobody in a cgroup of its own below the agents'.
    pub fn agent(&self, script: &str) -> Agent {
        self.agent_in("bot", AS_NOBODY, script)
    }

    /// The same in a cgroup of this name.
    pub fn agent_named(&self, name: &str, script: &str) -> Agent {
        self.agent_in(name, AS_NOBODY, script)
    }

    pub fn agent_in(&self, name: &str, privileges: &[&str], script: &str) -> Agent {
        Agent::start(&self.agents().join(name), privileges, &[], script)
    }

    /// Accepts one connection of either family.
    #[track_caller]
    pub fn accept(&self) -> TcpStream {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for listener in self.tcp.iter().flatten() {
                if let Ok((stream, _)) = listener.accept() {
                    return stream;
                }
            }
            sleep(Duration::from_millis(2));
        }
        panic!("nobody connected within {PATIENCE:?}");
    }

    pub fn flow_of(&self, stream: &TcpStream) -> Option<Flow> {
        self.maps
            .flows
            .flow_of(stream.as_fd())
            .expect("flows can be read")
    }

    pub fn handshakes(&self) -> usize {
        guard::verify(self.kernel())
            .expect("the guard is in place")
            .handshakes
    }

    /// What one agent did.
    #[track_caller]
    pub fn counters(&self, agent: &str) -> Counters {
        let subtree = fs::metadata(self.agents().join(agent))
            .expect("it has run")
            .ino();
        let all = self.maps.counters.read().expect("counters can be read");
        let of_agent = all.iter().find(|(other, _)| *other == subtree);
        of_agent
            .map(|(_, counters)| *counters)
            .expect("it was counted")
    }

    /// How often something was denied, to whomever.
    pub fn denials(&self, reason: Denial) -> u64 {
        let all = self.maps.counters.read().expect("counters can be read");
        all.iter()
            .map(|(_, counters)| counters.denied[reason as usize])
            .sum()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.freeze_heart();
    }
}

/// The cookie of a socket's network namespace.
pub fn cookie(socket: &impl AsFd) -> u64 {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is as long as is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    assert_eq!(result, 0, "every socket has a namespace");
    cookie
}

pub struct Agent {
    pub child: Child,
    out: BufReader<std::process::ChildStdout>,
    pub cgroup_id: u64,
}

impl Agent {
    /// Starts a script in a cgroup. `before` is put in front of the interpreter.
    pub fn start(group: &Path, privileges: &[&str], before: &[&str], script: &str) -> Agent {
        cgroup::create(group).expect("cgroups can be made");
        let mut command = in_cgroup(group);
        command.args(before);
        if !privileges.is_empty() {
            command.arg("setpriv").args(privileges);
        }
        let mut child = command
            .args(["/usr/bin/python3", "-c"])
            .arg(format!("{PRELUDE}\n{script}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Agent {
            cgroup_id: fs::metadata(group).expect("made above").ino(),
            child,
            out,
        }
    }

    /// The next line it prints.
    #[track_caller]
    pub fn says(&mut self) -> Value {
        let mut line = String::new();
        self.out
            .read_line(&mut line)
            .expect("its output can be read");
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the agent said {line:?}: {error}"))
    }

    /// A line for its `told()`.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").expect("it listens");
    }

    /// Everything else it prints until it ends.
    pub fn says_at_the_end(mut self) -> Vec<Value> {
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
pub fn in_cgroup(group: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo 0 > "$0/cgroup.procs" && exec "$@""#])
        .arg(group);
    command
}

/// The gateway's sockets on a port (0: any), made in its cgroup. `before` is put in front of the interpreter.
pub fn sockets_in(group: &Path, before: &[&str], port: u16) -> [OwnedFd; 4] {
    cgroup::create(group).expect("cgroups can be made");
    let (here, there) = UnixStream::pair().expect("socket pairs can be made");
    let mut child = in_cgroup(group)
        .args(before)
        .args(["/usr/bin/python3", "-c", SOCKETS, &port.to_string()])
        .stdin(Stdio::from(OwnedFd::from(there)))
        .spawn()
        .expect("sh starts");
    let sockets = receive_descriptors(here.as_fd());
    assert!(
        child.wait().expect("it can be waited for").success(),
        "the sockets were made"
    );
    sockets.try_into().expect("four sockets")
}

fn receive_descriptors(from: BorrowedFd<'_>) -> Vec<OwnedFd> {
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        from.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    );
    let message = message.expect("the helper sends the sockets");
    message
        .cmsgs()
        .expect("the control message is whole")
        .flat_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors,
            _ => Vec::new(),
        })
        // SAFETY: just received, and nobody else's.
        .map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
        .collect()
}

/// Hundredths of a second since boot (`CLOCK_BOOTTIME`).
pub fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").expect("/proc is mounted");
    let seconds = text.split(' ').next().expect("two numbers");
    seconds.replace('.', "").parse().expect("two decimals")
}
