//! The gateway's sockets, in the host's network namespace or inside another one.
//!
//! An agent in a namespace of its own is redirected to the loopback of *that* namespace, so the gateway needs
//! sockets there. A socket belongs for good to the namespace in which it was made, whoever holds it later: a
//! thread of its own enters the namespace, makes them, and ends.

use std::io;
use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::thread;

use gateway_ebpf::Listener;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

/// Connections that wait to be accepted: as many as the host allows (`net.core.somaxconn`).
const BACKLOG: Backlog = Backlog::MAXALLOWABLE;

/// Why the gateway cannot listen somewhere.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("{0} is taken: by a gateway that still runs, or by a stranger (`ss -lntup` tells)")]
    Busy(SocketAddr),
    #[error("{what}: {cause}")]
    Call { what: String, cause: io::Error },
    #[error(
        "the process is in network namespace {found} now, not in {asked}: it moved on, or is another"
    )]
    OtherNamespace { asked: u64, found: u64 },
}

impl NetnsError {
    fn call(what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        |errno| Self::Call {
            what: what.into(),
            cause: errno.into(),
        }
    }
}

/// What the gateway listens on in one namespace. `[::1]` is missing where there is no IPv6.
#[derive(Debug)]
pub struct Sockets {
    /// `SO_NETNS_COOKIE`: which namespace.
    pub netns_cookie: u64,
    pub tcp4: OwnedFd,
    pub tcp6: Option<OwnedFd>,
    pub udp4: OwnedFd,
    pub udp6: Option<OwnedFd>,
}

impl Sockets {
    /// In the order of the map `SOCKETS`.
    pub fn slots(&self) -> [Option<BorrowedFd<'_>>; 4] {
        [
            Some(self.tcp4.as_fd()),
            self.tcp6.as_ref().map(OwnedFd::as_fd),
            Some(self.udp4.as_fd()),
            self.udp6.as_ref().map(OwnedFd::as_fd),
        ]
    }

    /// What the kernel programs are told about this namespace.
    pub fn registration(&self) -> Listener {
        let v6 = self.tcp6.is_some() && self.udp6.is_some();
        Listener {
            v4: 1,
            v6: u8::from(v6),
            reserved: [0; 6],
        }
    }
}

/// Makes the sockets in the caller's own namespace.
pub fn bind_here(port: u16) -> Result<Sockets, NetnsError> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let tcp4 = tcp(v4)?;
    Ok(Sockets {
        netns_cookie: cookie(tcp4.as_fd())?,
        tcp4,
        tcp6: where_there_is_ipv6(tcp(v6))?,
        udp4: udp(v4)?,
        udp6: where_there_is_ipv6(udp(v6))?,
    })
}

/// Makes the sockets inside `netns`, if that is the namespace with this cookie. Its loopback is brought up:
/// nothing can be dialled in a namespace without.
pub fn bind_in(netns: OwnedFd, cookie_asked: u64, port: u16) -> Result<Sockets, NetnsError> {
    inside(netns, move || {
        let probe = datagram_socket(AddressFamily::Inet)?;
        let found = cookie(probe.as_fd())?;
        if found != cookie_asked {
            return Err(NetnsError::OtherNamespace {
                asked: cookie_asked,
                found,
            });
        }
        raise_loopback(probe.as_fd())?;
        bind_here(port)
    })
}

/// Runs `work` on a thread that is in another network namespace; the caller's threads stay where they are.
fn inside<T: Send + 'static>(
    netns: OwnedFd,
    work: impl FnOnce() -> Result<T, NetnsError> + Send + 'static,
) -> Result<T, NetnsError> {
    let visitor = thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET)
                .map_err(NetnsError::call("entering the network namespace"))?;
            work()
        });
    let failed = |what: &str, cause| NetnsError::Call {
        what: what.to_owned(),
        cause,
    };
    visitor
        .map_err(|cause| failed("starting a thread", cause))?
        .join()
        .unwrap_or_else(|_| Err(failed("binding", io::Error::other("the thread panicked"))))
}

fn tcp(address: SocketAddr) -> Result<OwnedFd, NetnsError> {
    let socket = made(address, SockType::Stream)?;
    // Connections of the gateway before that are still closing do not matter; a listener does, even so.
    setsockopt(&socket, sockopt::ReuseAddr, &true).map_err(NetnsError::call("SO_REUSEADDR"))?;
    bound(&socket, address)?;
    listen(&socket, BACKLOG).map_err(|errno| refused(address, errno))?;
    Ok(socket)
}

/// Without SO_REUSEADDR: two UDP sockets that have it can share a port, and the later one gets the datagrams.
fn udp(address: SocketAddr) -> Result<OwnedFd, NetnsError> {
    let socket = made(address, SockType::Datagram)?;
    bound(&socket, address)?;
    Ok(socket)
}

fn made(address: SocketAddr, kind: SockType) -> Result<OwnedFd, NetnsError> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let made = socket(family, kind, flags, None)
        .map_err(NetnsError::call(format!("a socket for {address}")))?;
    if family == AddressFamily::Inet6 {
        setsockopt(&made, sockopt::Ipv6V6Only, &true).map_err(NetnsError::call("IPV6_V6ONLY"))?;
    }
    Ok(made)
}

fn bound(socket: &OwnedFd, address: SocketAddr) -> Result<(), NetnsError> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
        .map_err(|errno| refused(address, errno))
}

fn refused(address: SocketAddr, errno: Errno) -> NetnsError {
    match errno {
        Errno::EADDRINUSE => NetnsError::Busy(address),
        errno => NetnsError::call(format!("listening on {address}"))(errno),
    }
}

/// Absence of IPv6 is no error; the kernel programs then answer ENETUNREACH, so that clients turn to IPv4.
fn where_there_is_ipv6(socket: Result<OwnedFd, NetnsError>) -> Result<Option<OwnedFd>, NetnsError> {
    match socket {
        Ok(socket) => Ok(Some(socket)),
        Err(NetnsError::Call { cause, .. })
            if [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT]
                .contains(&cause.raw_os_error().unwrap_or_default()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn datagram_socket(family: AddressFamily) -> Result<OwnedFd, NetnsError> {
    socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(NetnsError::call("a socket"))
}

/// Which network namespace a socket belongs to, as the kernel programs see it (`SO_NETNS_COOKIE`, 5.14).
pub fn cookie(socket: BorrowedFd<'_>) -> Result<u64, NetnsError> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are valid for the call and the length is that of the buffer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map_err(NetnsError::call("asking for the namespace's cookie"))?;
    Ok(cookie)
}

/// Sets IFF_UP on `lo` of the namespace that `socket` belongs to, if it is not set (netdevice(7)).
fn raise_loopback(socket: BorrowedFd<'_>) -> Result<(), NetnsError> {
    let failed = || NetnsError::call("bringing the loopback interface up");
    // SAFETY: all-zero is a valid ifreq, and the name ends with a zero. The kernel reads and writes one ifreq
    // through a pointer that is valid for the call; the flags are what SIOCGIFFLAGS has just written.
    let result = unsafe {
        let mut request: libc::ifreq = zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        let descriptor = socket.as_raw_fd();
        Errno::result(libc::ioctl(
            descriptor,
            libc::SIOCGIFFLAGS,
            &raw mut request,
        ))
        .map_err(failed())?;
        let flags = request.ifr_ifru.ifru_flags;
        if libc::c_int::from(flags) & libc::IFF_UP != 0 {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        libc::ioctl(descriptor, libc::SIOCSIFFLAGS, &raw mut request)
    };
    Errno::result(result).map_err(failed())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::sched::unshare;

    use super::*;

    /// A namespace that nothing runs in; the test thread stays outside.
    fn new_namespace() -> OwnedFd {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests run as root");
            std::fs::File::open("/proc/thread-self/ns/net")
                .unwrap()
                .into()
        })
        .join()
        .unwrap()
    }

    fn cookie_of(netns: &OwnedFd) -> u64 {
        inside(netns.try_clone().unwrap(), || {
            cookie(datagram_socket(AddressFamily::Inet)?.as_fd())
        })
        .unwrap()
    }

    #[test]
    fn sockets_belong_to_the_other_namespace() {
        let netns = new_namespace();
        let there = cookie_of(&netns);
        let here = cookie(datagram_socket(AddressFamily::Inet).unwrap().as_fd()).unwrap();
        assert_ne!(here, there);
        // The same port in two namespaces is two ports.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let sockets = bind_in(netns.try_clone().unwrap(), there, port).unwrap();
        assert_eq!(sockets.netns_cookie, there);
        for socket in sockets.slots().into_iter().flatten() {
            assert_eq!(cookie(socket).unwrap(), there);
        }
        assert_eq!(sockets.registration().v6, 1);
        let again = bind_in(netns, there, port).unwrap_err();
        assert!(matches!(again, NetnsError::Busy(_)), "{again}");
    }

    #[test]
    fn another_namespace_than_asked_for_is_left_alone() {
        let netns = new_namespace();
        let there = cookie_of(&netns);
        let error = bind_in(netns, there + 1, 1).unwrap_err();
        assert!(
            matches!(error, NetnsError::OtherNamespace { asked, found } if asked == there + 1 && found == there),
            "{error}"
        );
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind_here(address.port()).unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        drop(taken);
        bind_here(address.port()).unwrap();
    }
}
