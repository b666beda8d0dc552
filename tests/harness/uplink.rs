//! A host's way out, made for one test: two network namespaces with a cable between them.
//!
//! ```text
//!   the host's namespace                          the peer's namespace
//!   lo, uplink (10.77.0.1, fd00:77::1, fe80::1)  ═══  out (10.77.0.2 and whatever is reached by the default route)
//! ```
//!
//! What a test is about happens in the host's namespace; the machine's own interfaces see none of it. Whatever
//! leaves that namespace goes over `uplink`, and [`Capture`] counts it there, frame by frame.
//!
//! Neighbours are permanent and the namespace does not configure itself, so the kernel has no reason to send
//! anything by itself: an ARP request or a neighbour solicitation is a packet on its way out as well. The only
//! frames that are not counted are the kernel's own reports of multicast groups below `ff02::`, which belong to
//! having an IPv6 address.

use std::fmt;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Command, id};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use super::program::run;

/// The host's end of the cable.
pub const DEVICE: &str = "uplink";
/// The peer, on the cable.
pub const PEER: &str = "10.77.0.2";
pub const PEER6: &str = "fd00:77::2";
/// The host, on the cable.
pub const HOST: &str = "10.77.0.1";
pub const HOST6: &str = "fd00:77::1";
/// Addresses of the peer that the default route leads to: a server, a metadata service, a public resolver.
pub const PEERS_OTHERS: [&str; 5] = [
    "192.0.2.7",
    "169.254.169.254",
    "198.51.100.53",
    "2001:db8::7",
    "2001:db8::53",
];

/// A network namespace that exists as long as this does.
#[derive(Clone)]
pub struct Netns {
    file: Arc<File>,
}

impl Netns {
    /// An empty one, its loopback interface up.
    pub fn new() -> Netns {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
            File::open("/proc/thread-self/ns/net").expect("/proc is mounted")
        });
        let file = made.join().expect("the thread does not panic");
        let netns = Netns {
            file: Arc::new(file),
        };
        netns.ip("link set lo up");
        netns
    }

    /// Does something in it, on a thread of its own.
    pub fn within<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter it");
                task()
            });
            match inside.join() {
                Ok(answer) => answer,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that runs in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Where other processes find it, as long as this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.file.as_raw_fd())
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    #[track_caller]
    fn ip(&self, words: &str) {
        let mut command = self.command("ip");
        command.args(words.split(' '));
        run(command).succeeds();
    }

    /// Sets `net/…` of this namespace.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.within(|| fs::write(format!("/proc/sys/net/{name}"), value))
            .unwrap_or_else(|error| panic!("{name} cannot be set: {error}"));
    }
}

/// The two namespaces and what the peer listens on.
pub struct Uplink {
    pub host: Netns,
    pub peer: Netns,
    _listening: Vec<(TcpListener, UdpSocket)>,
}

impl Uplink {
    /// A peer that answers on these ports, TCP and UDP, on all of its addresses.
    pub fn with_peer_on(ports: &[u16]) -> Uplink {
        let (host, peer) = (Netns::new(), Netns::new());
        let cable = format!(
            "link add name {DEVICE} address 02:00:00:77:00:01 type veth peer name out address 02:00:00:77:00:02 netns {}",
            peer.path()
        );
        host.ip(&cable);
        silence(&host, DEVICE);
        silence(&peer, "out");
        for (netns, device, addresses) in [
            (&host, DEVICE, [HOST, HOST6, "fe80::1"]),
            (&peer, "out", [PEER, PEER6, "fe80::2"]),
        ] {
            for address in addresses {
                let (length, option) = match address.contains(':') {
                    true => (64, " nodad"),
                    false => (24, ""),
                };
                netns.ip(&format!("addr add {address}/{length} dev {device}{option}"));
            }
            netns.ip(&format!("link set {device} up"));
        }
        for (netns, device, [v4, v6, local], mac) in [
            (&host, DEVICE, [PEER, PEER6, "fe80::2"], "02:00:00:77:00:02"),
            (&peer, "out", [HOST, HOST6, "fe80::1"], "02:00:00:77:00:01"),
        ] {
            for neighbour in [v4, v6, local] {
                netns.ip(&format!(
                    "neigh add {neighbour} lladdr {mac} dev {device} nud permanent"
                ));
            }
            netns.ip(&format!("route add default via {v4}"));
            netns.ip(&format!("-6 route add default via {v6}"));
        }
        for address in PEERS_OTHERS {
            netns_address(&peer, address);
        }
        let listening = peer.within(|| {
            let listen = |port: &u16| {
                let tcp = TcpListener::bind(("::", *port)).expect("the namespace is new");
                let udp = UdpSocket::bind(("::", *port)).expect("the namespace is new");
                (tcp, udp)
            };
            ports.iter().map(listen).collect()
        });
        Uplink {
            host,
            peer,
            _listening: listening,
        }
    }

    /// Counts from now on what passes the host's end of the cable, once it is quiet there.
    pub fn capture(&self) -> Capture {
        let mut capture = self.host.within(Capture::open);
        let started = Instant::now();
        while !capture.frames_until_quiet().is_empty() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "the cable does not become quiet"
            );
        }
        capture
    }
}

fn netns_address(peer: &Netns, address: &str) {
    let option = if address.contains(':') { " nodad" } else { "" };
    let length = if address.contains(':') { 128 } else { 32 };
    peer.ip(&format!("addr add {address}/{length} dev lo{option}"));
}

/// Nothing is configured by itself on the device, and nobody is asked.
fn silence(netns: &Netns, device: &str) {
    for (name, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("router_solicitations", "0"),
        ("dad_transmits", "0"),
        // Joining a group is told several times, at this distance (ms): it is over soon.
        ("mldv1_unsolicited_report_interval", "10"),
        ("mldv2_unsolicited_report_interval", "10"),
    ] {
        netns.sysctl(&format!("ipv6/conf/{device}/{name}"), value);
    }
    netns.sysctl(
        &format!("ipv4/conf/{device}/igmpv3_unsolicited_report_interval"),
        "10",
    );
}

/// A packet socket on the host's end of the cable.
pub struct Capture {
    socket: OwnedFd,
}

/// One frame that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Leaves the host.
    pub outgoing: bool,
    bytes: Vec<u8>,
}

impl Capture {
    /// In the namespace of the calling thread.
    fn open() -> Capture {
        // SAFETY: no pointers; the descriptor is checked before it is owned.
        let socket = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                i32::from((libc::ETH_P_ALL as u16).to_be()),
            )
        };
        assert!(socket >= 0, "root may make packet sockets");
        // SAFETY: just made, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))
            .expect("root may have a large buffer");
        let index = nix::net::if_::if_nametoindex(DEVICE).expect("the cable is there");
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the address lives through the call and its size is right.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        assert_eq!(bound, 0, "the capture is bound to the cable");
        Capture { socket }
    }

    /// What has passed since it was asked last. Fails when the kernel had no room to keep them all.
    #[track_caller]
    pub fn frames(&mut self) -> Vec<Frame> {
        let frames = std::iter::from_fn(|| self.next())
            .filter(|frame| !frame.is_the_kernels_own())
            .collect();
        assert_eq!(self.lost(), 0, "the capture lost frames");
        frames
    }

    /// The same, waiting until nothing has passed for a fifth of a second.
    pub fn frames_until_quiet(&mut self) -> Vec<Frame> {
        let mut all = self.frames();
        loop {
            thread::sleep(Duration::from_millis(200));
            let more = self.frames();
            if more.is_empty() {
                return all;
            }
            all.extend(more);
        }
    }

    fn next(&mut self) -> Option<Frame> {
        let mut bytes = vec![0; 65_536 + 64];
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&from) as u32;
        // SAFETY: both buffers live through the call and their sizes are right.
        let got = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        bytes.truncate(usize::try_from(got).ok()?);
        Some(Frame {
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
            bytes,
        })
    }

    /// Frames that did not fit into the socket's buffer; reading it sets it back.
    fn lost(&self) -> u32 {
        let mut statistics = [0u32; 2];
        let mut length = size_of_val(&statistics) as u32;
        // SAFETY: struct tpacket_stats is two unsigned ints.
        let asked = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        assert_eq!(asked, 0, "a packet socket has statistics");
        statistics[1]
    }
}

/// Those that leave the host.
pub fn outgoing(frames: &[Frame]) -> Vec<&Frame> {
    frames.iter().filter(|frame| frame.outgoing).collect()
}

const ETHERNET: usize = 14;

impl Frame {
    fn at(&self, offset: usize) -> u8 {
        self.bytes.get(offset).copied().unwrap_or(0)
    }

    fn word(&self, offset: usize) -> u16 {
        u16::from_be_bytes([self.at(offset), self.at(offset + 1)])
    }

    /// A multicast listener report (RFC 3810) that names nothing but link-local groups.
    fn is_the_kernels_own(&self) -> bool {
        let Some(report) = self.icmp6() else {
            return false;
        };
        const MLD1_REPORT: u8 = 131;
        const MLD1_DONE: u8 = 132;
        const MLD2_REPORT: u8 = 143;
        match report.first() {
            Some(&(MLD1_REPORT | MLD1_DONE)) => {
                report.get(8..10).is_some_and(|group| group == [0xff, 2])
            }
            Some(&MLD2_REPORT) => {
                let mut records = report.get(8..).unwrap_or_default();
                while let Some(group) = records.get(4..6) {
                    if group != [0xff, 2] {
                        return false;
                    }
                    let sources = usize::from(records[3]) + 256 * usize::from(records[2]);
                    let length = 20 + 16 * sources + 4 * usize::from(records[1]);
                    records = records.get(length..).unwrap_or_default();
                }
                true
            }
            _ => false,
        }
    }

    /// The ICMPv6 message, past a hop-by-hop header if there is one.
    fn icmp6(&self) -> Option<&[u8]> {
        if self.word(12) != 0x86dd {
            return None;
        }
        let payload = ETHERNET + 40;
        match self.at(ETHERNET + 6) {
            58 => self.bytes.get(payload..),
            0 if self.at(payload) == 58 => {
                let header = 8 + 8 * usize::from(self.at(payload + 1));
                self.bytes.get(payload + header..)
            }
            _ => None,
        }
    }

    fn address(&self, offset: usize, length: usize) -> Option<IpAddr> {
        let bytes = self.bytes.get(offset..offset + length)?;
        match length {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    }
}

/// One line that says what it is: `udp 10.77.0.1:33211 > 10.77.0.2:443`.
impl fmt::Display for Frame {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, from, to, header) = match self.word(12) {
            0x0800 => (
                self.at(ETHERNET + 9),
                self.address(ETHERNET + 12, 4),
                self.address(ETHERNET + 16, 4),
                4 * usize::from(self.at(ETHERNET) & 15),
            ),
            0x86dd => (
                self.at(ETHERNET + 6),
                self.address(ETHERNET + 8, 16),
                self.address(ETHERNET + 24, 16),
                40,
            ),
            0x0806 => return write!(out, "arp for {:?}", self.address(ETHERNET + 24, 4)),
            other => return write!(out, "ethertype {other:#06x}"),
        };
        let (Some(from), Some(to)) = (from, to) else {
            return write!(out, "{} bytes, cut short", self.bytes.len());
        };
        let ports = ETHERNET + header;
        match protocol {
            6 | 17 => write!(
                out,
                "{} {} > {}",
                if protocol == 6 { "tcp" } else { "udp" },
                SocketAddr::new(from, self.word(ports)),
                SocketAddr::new(to, self.word(ports + 2)),
            ),
            2 => write!(out, "igmp {from} > {to}"),
            58 | 0 => write!(
                out,
                "icmp6 type {:?} {from} > {to}",
                self.icmp6().and_then(<[u8]>::first)
            ),
            other => write!(out, "protocol {other} {from} > {to}"),
        }
    }
}
