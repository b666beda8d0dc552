//! What `sluice exec` takes from an agent before its first instruction, with `--isolate` and without.
//!
//! Every test runs the real binary as root and looks from inside. No gateway runs in most of them, to show
//! that nothing here depends on it; [`Registrar`] then says in its place that it listens in a new namespace.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::gateway::AGENT;
use crate::harness::gateway::psql_words;
use crate::harness::program::{Ended, eventually, run, run_with_input};
use crate::harness::{Gateway, Postgres, Setup, scratch};

use registrar::Registrar;

mod registrar;

const PATIENCE: Duration = Duration::from_secs(10);
const PYTHON: &str = "/usr/bin/python3";

/// An installation with a guard and, instead of a gateway, a registrar.
struct Host {
    // Dropped first: it has the pins open.
    _registrar: Registrar,
    gateway: Gateway,
}

impl Host {
    #[track_caller]
    fn new() -> Host {
        let gateway = guarded();
        Host {
            _registrar: Registrar::start(gateway.agents_group(), gateway.pins().to_owned()),
            gateway,
        }
    }

    /// `sluice exec` with these options.
    fn command(&self, options: &[&str], words: &[&str]) -> Command {
        exec(&self.gateway, options, words)
    }

    #[track_caller]
    fn isolated(&self, words: &[&str]) -> Ended {
        run(self.command(&["--isolate"], words))
    }

    #[track_caller]
    fn python(&self, options: &[&str], script: &str) -> Ended {
        run(self.command(options, &[PYTHON, "-I", "-c", script])).succeeds()
    }
}

fn guarded() -> Gateway {
    let gateway = Setup::in_front_of_port(1).install();
    gateway.sluice(["guard", "load"]).succeeds();
    gateway
}

fn exec(gateway: &Gateway, options: &[&str], words: &[&str]) -> Command {
    let mut command = gateway.sluice_command(["exec", "--agent", AGENT]);
    command.args(options).arg("--").args(words).current_dir("/");
    command
}

/// With namespaces and without.
const BOTH: [&[&str]; 2] = [&[], &["--isolate"]];

#[test]
fn no_capability_and_no_way_to_get_one() {
    let host = Host::new();
    for options in BOTH {
        for user in ["nobody", "root"] {
            let options = [options, &["--user", user]].concat();
            let status = run(host.command(&options, &["cat", "/proc/self/status"])).succeeds();
            for (field, value) in [
                ("CapInh", "0000000000000000"),
                ("CapPrm", "0000000000000000"),
                ("CapEff", "0000000000000000"),
                ("CapBnd", "0000000000000000"),
                ("CapAmb", "0000000000000000"),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
            ] {
                let line = format!("{field}:\t{value}");
                let found = status.lines().contains(&line);
                assert!(found, "{options:?} lacks {line:?}: {status}");
            }
        }
    }
}

#[test]
fn the_network_is_loopback_and_a_dummy() {
    let host = Host::new();
    let interfaces = "import socket\nprint(sorted(name for _, name in socket.if_nameindex()))";
    host.python(&["--isolate"], interfaces)
        .prints("['dummy0', 'lo']");
    let routes = host.isolated(&["cat", "/proc/net/route"]).succeeds();
    let devices = |ended: &Ended, column: usize| -> Vec<String> {
        let lines = ended.lines();
        let words = lines.iter().map(|line| line.split_whitespace().nth(column));
        words
            .map(|word| word.unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(devices(&routes, 0), ["Iface", "dummy0"], "{routes}");
    let routes6 = host.isolated(&["cat", "/proc/net/ipv6_route"]).succeeds();
    let only = |device: &String| ["lo", "dummy0"].contains(&device.as_str());
    assert!(devices(&routes6, 9).iter().all(only), "{routes6}");
    // Programs that ask which families the host has are told both.
    let script = "
import socket
for name in ('192.0.2.9', '2001:db8::9'):
    print(socket.getaddrinfo(name, 5432, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)[0][4][0])";
    host.python(&["--isolate"], script)
        .prints("192.0.2.9\n2001:db8::9\n");
}

#[test]
fn listeners_of_the_host_are_in_another_network() {
    let host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener
        .set_nonblocking(true)
        .expect("a listener can be non-blocking");
    let port = listener.local_addr().expect("it is bound").port();
    let name = scratch::name();
    let address = SocketAddr::from_abstract_name(&name).expect("the name is short");
    let local = UnixListener::bind_addr(&address).expect("the name is new");
    local
        .set_nonblocking(true)
        .expect("a listener can be non-blocking");
    let script = format!(
        "
import socket
for family, address in ((socket.AF_INET, ('127.0.0.1', {port})), (socket.AF_UNIX, b'\\0{name}')):
    client = socket.socket(family)
    client.settimeout(2)
    try:
        client.connect(address)
        print('REACHED', address)
    except OSError as error:
        print(error)"
    );
    let seen = host.python(&["--isolate"], &script);
    assert!(!seen.text().contains("REACHED"), "{seen}");
    assert!(listener.accept().is_err() && local.accept().is_err());
}

/// The sockets that container daemons, buses and terminals multiplexers listen on are in these folders.
#[test]
fn sockets_of_the_hosts_services_are_not_there() {
    let host = Host::new();
    for folder in ["/run", "/tmp", "/var/tmp", "/dev/shm"] {
        let path = PathBuf::from(folder).join(scratch::name() + ".sock");
        let listener = UnixListener::bind(&path).expect("root may write there");
        listener
            .set_nonblocking(true)
            .expect("a listener can be non-blocking");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("it is ours");
        let script = format!(
            "
import os, socket
print(os.listdir('{folder}'))
try:
    socket.socket(socket.AF_UNIX).connect('{path}')
    print('REACHED')
except OSError as error:
    print(error)",
            path = path.display()
        );
        let seen = run(host.command(&["--isolate"], &[PYTHON, "-I", "-c", &script]));
        fs::remove_file(&path).expect("it is ours");
        assert!(!seen.text().contains("REACHED"), "{folder}: {seen}");
        assert_eq!(seen.lines()[0], "[]", "{folder}: {seen}");
        assert!(listener.accept().is_err(), "{folder}");
    }
}

/// The folder the caller stands in may be one that is hidden, and leads to the rest of it.
#[test]
fn the_working_folder_is_kept_where_it_can_be_seen() {
    let host = Host::new();
    let mut kept = host.command(&["--isolate"], &["pwd"]);
    kept.current_dir("/usr/bin");
    assert_eq!(run(kept).succeeds().text(), "/usr/bin\n");
    let mut hidden = host.command(&["--isolate"], &["sh", "-c", "pwd; ls ..; ls /tmp"]);
    hidden.current_dir(host.gateway.public_folder("somewhere"));
    let seen = run(hidden).succeeds();
    assert_eq!(seen.lines()[0], "/", "{seen}");
    assert!(!seen.text().contains("sluice-test-"), "{seen}");
}

#[test]
fn a_folder_as_standard_input_is_refused() {
    let host = Host::new();
    let mut command = host.command(&["--isolate"], &["true"]);
    command.stdin(fs::File::open("/run").expect("every host has it"));
    let refused = command.output().expect("sluice starts");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && stderr.contains("is a directory"),
        "{stderr}"
    );
}

#[test]
fn only_harmless_families_of_sockets() {
    let host = Host::new();
    let script = "
import socket
made = set()
for family in range(47):
    for kind in (1, 2, 3, 4, 5, 6, 10):
        for protocol in range(23):
            try:
                socket.socket(family, kind, protocol).close()
                made.add((family, kind, protocol if family == 16 else None))
            except OSError:
                pass
print(sorted({family for family, _, _ in made}))
print(sorted({protocol for family, _, protocol in made if family == 16}))
print(sorted({kind for family, kind, _ in made if family in (2, 10)}))
for family in range(47):
    try:
        socket.socketpair(family)
        print('pair', family)
    except OSError:
        pass";
    for options in BOTH {
        let seen = host.python(options, script);
        assert_eq!(
            seen.lines(),
            ["[1, 2, 10, 16]", "[0]", "[1, 2]", "pair 1"],
            "{options:?}: {seen}"
        );
    }
}

/// Number, arguments and the errno it must give; 0 where it must work.
type Call = (&'static str, i64, [u64; 3], i32);

#[test]
fn system_calls_that_lead_out_are_closed() {
    const SIGCHLD: u64 = 17;
    let new_user = libc::CLONE_NEWUSER as u64;
    let new_network = libc::CLONE_NEWNET as u64;
    let terminal_input = libc::TIOCSTI;
    let calls: Vec<Call> = vec![
        (
            "io_uring_setup",
            libc::SYS_io_uring_setup,
            [8, 0, 0],
            libc::ENOSYS,
        ),
        (
            "io_uring_enter",
            libc::SYS_io_uring_enter,
            [0; 3],
            libc::ENOSYS,
        ),
        (
            "io_uring_register",
            libc::SYS_io_uring_register,
            [0; 3],
            libc::ENOSYS,
        ),
        ("clone3", libc::SYS_clone3, [0; 3], libc::ENOSYS),
        (
            "clone user",
            libc::SYS_clone,
            [new_user | SIGCHLD, 0, 0],
            libc::EPERM,
        ),
        (
            "clone net",
            libc::SYS_clone,
            [new_network | SIGCHLD, 0, 0],
            libc::EPERM,
        ),
        (
            "unshare user",
            libc::SYS_unshare,
            [new_user, 0, 0],
            libc::EPERM,
        ),
        (
            "unshare user and files",
            libc::SYS_unshare,
            [new_user | 0x400, 0, 0],
            libc::EPERM,
        ),
        ("unshare time", libc::SYS_unshare, [0x80, 0, 0], libc::EPERM),
        ("unshare files", libc::SYS_unshare, [0x400, 0, 0], 0),
        ("setns", libc::SYS_setns, [0; 3], libc::EPERM),
        ("mount", libc::SYS_mount, [0; 3], libc::EPERM),
        ("umount2", libc::SYS_umount2, [0; 3], libc::EPERM),
        ("pivot_root", libc::SYS_pivot_root, [0; 3], libc::EPERM),
        ("chroot", libc::SYS_chroot, [0; 3], libc::EPERM),
        ("fsopen", libc::SYS_fsopen, [0; 3], libc::EPERM),
        ("open_tree", libc::SYS_open_tree, [0; 3], libc::EPERM),
        ("move_mount", libc::SYS_move_mount, [0; 3], libc::EPERM),
        (
            "mount_setattr",
            libc::SYS_mount_setattr,
            [0; 3],
            libc::EPERM,
        ),
        ("open_tree_attr", 467, [0; 3], libc::ENOSYS),
        (
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            [0; 3],
            libc::EPERM,
        ),
        ("bpf", libc::SYS_bpf, [0; 3], libc::EPERM),
        (
            "perf_event_open",
            libc::SYS_perf_event_open,
            [0; 3],
            libc::EPERM,
        ),
        ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0], libc::EPERM),
        ("keyctl", libc::SYS_keyctl, [0; 3], libc::EPERM),
        ("add_key", libc::SYS_add_key, [0; 3], libc::EPERM),
        ("request_key", libc::SYS_request_key, [0; 3], libc::EPERM),
        ("ptrace TRACEME", libc::SYS_ptrace, [0; 3], libc::EPERM),
        (
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            [1, 0, 0],
            libc::EPERM,
        ),
        (
            "process_vm_writev",
            libc::SYS_process_vm_writev,
            [1, 0, 0],
            libc::EPERM,
        ),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [0; 3], libc::EPERM),
        ("kexec_load", libc::SYS_kexec_load, [0; 3], libc::EPERM),
        ("init_module", libc::SYS_init_module, [0; 3], libc::EPERM),
        ("finit_module", libc::SYS_finit_module, [0; 3], libc::EPERM),
        (
            "personality",
            libc::SYS_personality,
            [0x0004_0000, 0, 0],
            libc::EPERM,
        ),
        (
            "personality?",
            libc::SYS_personality,
            [0xffff_ffff, 0, 0],
            0,
        ),
        (
            "TIOCSTI",
            libc::SYS_ioctl,
            [0, terminal_input, 0],
            libc::EPERM,
        ),
        (
            "TIOCSTI, high bits",
            libc::SYS_ioctl,
            [0, terminal_input | 1 << 32, 0],
            libc::EPERM,
        ),
        (
            "packet in disguise",
            libc::SYS_socket,
            [2, 10, 0],
            libc::EAFNOSUPPORT,
        ),
        ("vsock", libc::SYS_socket, [40, 1, 0], libc::EAFNOSUPPORT),
        (
            "vsock, high bits",
            libc::SYS_socket,
            [40 | 1 << 32, 1, 0],
            libc::EAFNOSUPPORT,
        ),
        #[cfg(target_arch = "x86_64")]
        (
            "getppid of the x32 ABI",
            libc::SYS_getppid | 0x4000_0000,
            [0; 3],
            libc::ENOSYS,
        ),
    ];
    let host = Host::new();
    let asked: Vec<String> = calls
        .iter()
        .map(|(_, number, [a, b, c], _)| format!("({number}, {a}, {b}, {c})"))
        .collect();
    let script = format!(
        "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for number, *arguments in [{}]:
    ctypes.set_errno(0)
    result = libc.syscall(number, *map(ctypes.c_ulong, arguments), 0, 0, 0)
    print(ctypes.get_errno() if result == -1 else 0)",
        asked.join(", ")
    );
    for options in BOTH {
        let seen = host.python(options, &script).lines();
        for ((name, .., expected), errno) in calls.iter().zip(&seen) {
            assert_eq!(*errno, expected.to_string(), "{options:?}: {name}");
        }
        assert_eq!(seen.len(), calls.len());
        run(host.command(options, &["unshare", "--user", "--map-root-user", "true"])).fails();
    }
}

/// A program for 32 bits has other numbers for the same calls, so it may not run at all.
#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_the_32_bit_abi_end_the_process() {
    let host = Host::new();
    let script = "
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, getpid; int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print('ANSWERED', call())";
    let ended = run(host.command(&[], &[PYTHON, "-I", "-c", script]));
    assert_eq!(ended.status.signal(), Some(libc::SIGSYS), "{ended}");
    let ended = host.isolated(&[PYTHON, "-I", "-c", script]);
    assert_eq!(ended.status.code(), Some(128 + libc::SIGSYS), "{ended}");
}

#[test]
fn control_groups_and_kernel_programs_are_out_of_sight() {
    let host = Host::new();
    let script = r"
grep ^0:: /proc/self/cgroup
find /sys/fs/cgroup /sys/fs/bpf -mindepth 1
touch /sys/x /proc/sys/kernel/core_pattern 2> /dev/null && echo WRITTEN
grep -E ' - (cgroup|cgroup2|bpf|debugfs|tracefs|securityfs) ' /proc/self/mountinfo
grep ' - devtmpfs ' /proc/self/mountinfo | cut -d ' ' -f 5 | grep -v '^/dev/\|^/proc/'
echo $(ls /dev)";
    for user in ["nobody", "root"] {
        let seen = run(host.command(&["--isolate", "--user", user], &["sh", "-c", script]));
        let devices =
            "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero".to_owned();
        assert_eq!(seen.lines(), ["0::/".to_owned(), devices], "{seen}");
    }
}

#[test]
fn other_processes_do_not_exist() {
    let host = Host::new();
    let outside = std::process::id();
    let script = format!(
        "
import os
print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))
try:
    os.kill({outside}, 0)
    print('SIGNALLED')
except OSError as error:
    print(error)
# Process 1 is the same user, but closed.
for name in ('mem', 'environ', 'root', 'fd'):
    try:
        os.listdir('/proc/1/' + name) if name in ('root', 'fd') else open('/proc/1/' + name)
        print('OPENED', name)
    except OSError as error:
        print(error)"
    );
    let seen = host.python(&["--isolate"], &script);
    assert_eq!(seen.lines()[0], "[1, 2]", "{seen}");
    assert!(!seen.text().contains("SIGNALLED"), "{seen}");
    assert!(!seen.text().contains("OPENED"), "{seen}");
}

/// System V memory and the host's name are namespaces too.
#[test]
fn nothing_is_shared_by_number() {
    let host = Host::new();
    let links = "for kind in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$kind; done";
    let own = run(shell(links)).succeeds().lines();
    let inside = host.isolated(&["sh", "-c", links]).succeeds().lines();
    for (own, inside) in own.iter().zip(&inside) {
        assert_ne!(own, inside);
    }
    assert_eq!(inside.len(), 6);
}

#[test]
fn exit_codes_come_through() {
    let host = Host::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + libc::SIGTERM),
        ("kill -KILL $$", 128 + libc::SIGKILL),
        ("kill -SEGV $$", 128 + libc::SIGSEGV),
    ] {
        let ended = host.isolated(&["sh", "-c", script]);
        assert_eq!(ended.status.code(), Some(code), "{ended}");
    }
}

#[test]
fn signals_come_through() {
    let host = Host::new();
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        // Not a shell's trap: some lose a signal that comes while they start a child.
        let script = format!(
            "import os, signal, time
def got(*_):
    os.write(1, b'got it\\n')
    os._exit(9)
signal.signal(signal.SIG{name}, got)
print('set', flush=True)
while True:
    time.sleep(0.05)"
        );
        let mut child = host
            .command(&["--isolate"], &[PYTHON, "-I", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sluice starts");
        let mut stdout = std::io::BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stdout, &mut line).expect("the script prints a line");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it runs");
        let status = child.wait().expect("it ends");
        std::io::Read::read_to_string(&mut stdout, &mut line).expect("what it printed is text");
        assert_eq!(line, "set\ngot it\n", "{name}");
        assert_eq!(status.code(), Some(9), "{name}");
    }
}

#[test]
fn input_and_output_come_through() {
    let host = Host::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let seen = run_with_input(host.command(&["--isolate"], &["cat"]), &bytes).succeeds();
    assert!(seen.stdout == bytes);
    host.isolated(&["sh", "-c", "echo out; echo err >&2"])
        .succeeds()
        .prints("out")
        .complains("err");
}

/// Orphans are the first process's, which must collect them.
#[test]
fn no_zombies_are_left() {
    let host = Host::new();
    let script = "
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    os.wait()
time.sleep(0.5)
states = {}
for name in os.listdir('/proc'):
    if name.isdigit():
        states[int(name)] = open(f'/proc/{name}/stat').read().rsplit(')', 1)[1].split()[0]
print(sorted(states))";
    let seen = host.python(&["--isolate"], script);
    assert_eq!(seen.text(), "[1, 2]\n", "{seen}");
}

#[test]
fn all_ends_with_the_command_or_with_the_caller() {
    let host = Host::new();
    let group = host.gateway.agents_group();
    // In a session of its own it is not reached by signals for the command's.
    host.isolated(&["sh", "-c", "setsid sleep 60 > /dev/null 2>&1 & sleep 0.2"])
        .succeeds();
    wait_until_empty(&group);
    let mut child = host
        .command(&["--isolate"], &["sh", "-c", "echo up; sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("sluice starts");
    let mut first = [0];
    let stdout = child.stdout.as_mut().expect("it is piped");
    std::io::Read::read_exact(stdout, &mut first).expect("the command runs");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    wait_until_empty(&group);
}

#[track_caller]
fn wait_until_empty(group: &std::path::Path) {
    eventually("an empty control group", PATIENCE, || {
        let events = fs::read_to_string(group.join("cgroup.events")).expect("it is there");
        events.contains("populated 0").then_some(())
    });
}

/// Nothing runs in a namespace that the gateway does not listen in.
#[test]
fn without_a_gateway_the_command_does_not_start() {
    let gateway = guarded();
    let group = gateway.agents_group();
    let ended = run(exec(&gateway, &["--isolate"], &["echo", "RUNS"]))
        .fails()
        .complains("the gateway does not answer");
    assert!(!ended.text().contains("RUNS"), "{ended}");
    assert!(ended.took > Duration::from_secs(4), "{ended}");
    wait_until_empty(&group);
}

/// The folder root's PATH begins with may be closed to agents, which is not the program's fault.
#[test]
fn a_program_that_is_not_there_is_not_found() {
    let host = Host::new();
    let closed = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in("/var")
        .expect("root may write there");
    let path = format!("{}:/usr/bin:/bin", closed.path().display());
    for options in BOTH {
        for (program, code) in [
            ("no-such-program", 127),
            ("/no/such", 127),
            ("/etc/passwd", 126),
        ] {
            let mut command = host.command(options, &[program]);
            command.env("PATH", &path);
            let ended = run(command);
            assert_eq!(ended.status.code(), Some(code), "{options:?}: {ended}");
            let word = if code == 127 { "not found" } else { "denied" };
            ended.complains(word);
        }
        let mut command = host.command(options, &["true"]);
        command.env("PATH", &path);
        run(command).succeeds();
    }
}

/// Kernels and containers without clone3(2): the caller enters the control group before it makes anything.
#[test]
fn without_clone3_the_namespaces_are_made_step_by_step() {
    let host = Host::new();
    // Load the number; if it is clone3, ENOSYS; else allow.
    let filter = format!(
        "
import ctypes, os, struct, sys
code = b''.join(struct.pack('HBBI', *one) for one in (
    (0x20, 0, 0, 0), (0x15, 0, 1, {clone3}), (0x06, 0, 0, 0x00050000 | {enosys}), (0x06, 0, 0, 0x7fff0000)))
buffer = ctypes.create_string_buffer(code)
program = struct.pack('HxxxxxxQ', 4, ctypes.addressof(buffer))
ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0 or sys.exit('no filter')
os.execvp(sys.argv[1], sys.argv[1:])",
        clone3 = libc::SYS_clone3,
        enosys = libc::ENOSYS
    );
    let inner = host.command(&["--isolate"], &["sh", "-c", "echo $$; id -un; ls /run"]);
    let mut command = Command::new(PYTHON);
    command
        .args(["-I", "-c", &filter])
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir("/");
    let seen = run(command).succeeds();
    assert_eq!(seen.text(), "2\nnobody\n", "{seen}");
}

/// The filter must not be felt: processes, threads, event loops and terminals as programs use them.
#[test]
fn programs_work_inside() {
    let host = Host::new();
    let script = "
import asyncio, multiprocessing, os, pty, socket, subprocess, tempfile, threading
print(subprocess.run(['id', '-un'], capture_output=True, text=True).stdout.strip())
with multiprocessing.Pool(2) as pool:
    print(pool.map(abs, [-1, 2]))
async def child():
    process = await asyncio.create_subprocess_exec('true')
    return await process.wait()
print(asyncio.run(child()))
thread = threading.Thread(target=print, args=('thread',))
thread.start(); thread.join()
with tempfile.NamedTemporaryFile() as file:
    file.write(b'x'); file.flush()
    print(os.path.getsize(file.name))
master, slave = os.openpty()
print(os.isatty(slave))
one, other = socket.socketpair()
one.send(b'pair'); print(other.recv(9).decode())
server = socket.socket(); server.bind(('127.0.0.1', 0)); print('bound')";
    for options in BOTH {
        let seen = host.python(options, script);
        let expected = [
            "nobody", "[1, 2]", "0", "thread", "1", "True", "pair", "bound",
        ];
        assert_eq!(seen.lines(), expected, "{options:?}");
    }
    let mut bash = host.command(&["--isolate"], &["bash", "-s"]);
    bash.env("LC_ALL", "C.UTF-8");
    run_with_input(bash, b"cat <<< here | tr a-z A-Z; echo <(true); wait")
        .succeeds()
        .prints("HERE");
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// The whole way: the namespace is reported, listeners are put there, and the agent's connection is a
/// session like any other.
#[test]
fn an_isolated_agent_reaches_its_database_and_nothing_else() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let address = gateway.address("127.0.0.1");
    let words = psql_words(&address, ["SELECT count(*) FROM products"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let direct = server.admin("SELECT count(*) FROM products");
    run(exec(&gateway, &["--isolate"], &words))
        .succeeds()
        .prints(&direct);
    gateway.event("netns.registered");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("agent"), AGENT, "{opened}");
    let elsewhere = "
import socket
for address in ('192.0.2.9', '127.0.0.1', '2001:db8::9', '::1'):
    try:
        socket.create_connection((address, 9), timeout=5)
        print('REACHED', address)
    except OSError as error:
        print(error)";
    let words = [PYTHON, "-I", "-c", elsewhere];
    let seen = run(exec(&gateway, &["--isolate"], &words)).succeeds();
    assert!(!seen.text().contains("REACHED"), "{seen}");
}
