//! The gateway's side: blocking calls, each under a deadline.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};

use super::packet::{self, Incoming};
use super::protocol::{Reply, Request, Sockets};
use super::{BrokerError, Endowment, GuardState, Listeners};
use crate::identity::process::{Origin, Process};
use crate::intercept::Flow;

/// For one request, connecting included.
const DEADLINE: Duration = Duration::from_secs(5);

/// Connections that are kept for the next request.
const MAX_IDLE: usize = 8;

/// Talks to the broker. Calls block: from a task, use a thread that may.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    idle: Mutex<Vec<UnixStream>>,
}

impl Client {
    /// Connects with the first request, and again whenever the broker was restarted.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_path_buf(),
            idle: Mutex::default(),
        }
    }

    /// The maps and the host's listeners. The port must be free: a successor inherits instead of asking.
    pub fn hello(&self) -> Result<Endowment, BrokerError> {
        match self.ask(&Request::Hello {})? {
            (Reply::Endowment { maps, sockets }, mut descriptors) if maps <= descriptors.len() => {
                let listeners = listeners(sockets, descriptors.split_off(maps))?;
                Ok(Endowment {
                    maps: descriptors,
                    listeners,
                })
            }
            (reply, _) => Err(unexpected(reply)),
        }
    }

    /// The process behind a flow; its program stays unknown when the broker cannot tell. `cgroup` is relative
    /// to the cgroup v2 mount.
    pub fn inspect(&self, flow: &Flow, cgroup: &str) -> Process {
        let origin = self
            .origin(flow, cgroup)
            .inspect_err(|error| tracing::warn!(tgid = flow.tgid, "no program known: {error}"));
        Process::of(flow, cgroup, origin.ok().flatten())
    }

    fn origin(&self, flow: &Flow, cgroup: &str) -> Result<Option<Origin>, BrokerError> {
        let request = Request::Inspect {
            tgid: flow.tgid,
            boot_ns: flow.boot_ns,
            cgroup: cgroup.to_owned(),
        };
        match self.ask(&request)? {
            (Reply::Process { origin }, _) => Ok(origin),
            (reply, _) => Err(unexpected(reply)),
        }
    }

    /// Listeners in the network namespace that the process is in, if it is the one with this cookie.
    pub fn listen(&self, tgid: u32, netns_cookie: u64) -> Result<Listeners, BrokerError> {
        match self.ask(&Request::Listen { tgid, netns_cookie })? {
            (Reply::Listeners { sockets }, descriptors) if sockets.netns_cookie == netns_cookie => {
                listeners(sockets, descriptors)
            }
            (reply, _) => Err(unexpected(reply)),
        }
    }

    /// How the kernel side is doing, as of at most a few seconds ago.
    pub fn state(&self) -> Result<GuardState, BrokerError> {
        match self.ask(&Request::State {})? {
            (
                Reply::State {
                    problems,
                    frozen,
                    abandoned,
                    maps,
                },
                _,
            ) => Ok(GuardState {
                problems,
                frozen,
                abandoned,
                maps,
            }),
            (reply, _) => Err(unexpected(reply)),
        }
    }

    /// On a kept connection first. The broker closes those that are silent for long, or was restarted; then
    /// once more on a new one.
    fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), BrokerError> {
        let deadline = Instant::now() + DEADLINE;
        let kept = self.pool().pop();
        let answer = match kept.map(|connection| self.ask_on(connection, request, deadline)) {
            Some(Ok(answer)) => answer,
            Some(Err(error)) if is_timeout(&error) => return Err(self.unreachable(error)),
            Some(Err(_)) | None => self
                .ask_on(self.connect(deadline)?, request, deadline)
                .map_err(|error| self.unreachable(error))?,
        };
        match answer {
            (Incoming::Message(Reply::Refused { reason }), _) => Err(BrokerError::Refused(reason)),
            (Incoming::Message(reply), descriptors) => Ok((reply, descriptors)),
            (Incoming::Malformed(what), _) => Err(BrokerError::Garbled(what)),
            (Incoming::Closed, _) => Err(self.unreachable(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    /// A connection is kept only after a whole exchange: a late answer must never meet another request.
    fn ask_on(
        &self,
        connection: UnixStream,
        request: &Request,
        deadline: Instant,
    ) -> io::Result<(Incoming<Reply>, Vec<OwnedFd>)> {
        connection.set_write_timeout(Some(left(deadline)?))?;
        packet::send(&connection, request, &[])?;
        connection.set_read_timeout(Some(left(deadline)?))?;
        let (incoming, descriptors) = packet::receive_with_descriptors(&connection)?;
        match incoming {
            Incoming::Closed => Err(io::ErrorKind::ConnectionAborted.into()),
            incoming => {
                let mut pool = self.pool();
                if matches!(incoming, Incoming::Message(_)) && pool.len() < MAX_IDLE {
                    pool.push(connection);
                }
                Ok((incoming, descriptors))
            }
        }
    }

    fn connect(&self, deadline: Instant) -> Result<UnixStream, BrokerError> {
        let connected = self
            .try_connect(deadline)
            .map_err(|error| self.unreachable(error))?;
        let peer = getsockopt(&connected, sockopt::PeerCredentials)
            .map_err(|errno| self.unreachable(errno.into()))?;
        match peer.uid() {
            0 => Ok(connected),
            uid => Err(BrokerError::Impostor {
                socket: self.socket.clone(),
                uid,
            }),
        }
    }

    fn try_connect(&self, deadline: Instant) -> io::Result<UnixStream> {
        let made = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let made = UnixStream::from(made);
        // Also for connect(2): it waits while the broker's backlog is full.
        made.set_write_timeout(Some(left(deadline)?))?;
        connect(made.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        Ok(made)
    }

    fn unreachable(&self, cause: io::Error) -> BrokerError {
        let cause = match is_timeout(&cause) {
            true => io::Error::other(format!("no answer within {} s", DEADLINE.as_secs())),
            false => cause,
        };
        BrokerError::Unreachable {
            socket: self.socket.clone(),
            cause,
        }
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    // A socket's own timeout says EAGAIN.
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn listeners(sockets: Sockets, mut tcp: Vec<OwnedFd>) -> Result<Listeners, BrokerError> {
    let announced = sockets.tcp.saturating_add(sockets.udp);
    if sockets.tcp == 0 || announced != tcp.len() {
        return Err(BrokerError::Garbled(format!(
            "{announced} sockets announced, {} received",
            tcp.len()
        )));
    }
    let udp = tcp.split_off(sockets.tcp);
    Ok(Listeners {
        netns_cookie: sockets.netns_cookie,
        tcp: tcp.into_iter().map(TcpListener::from).collect(),
        udp: udp.into_iter().map(UdpSocket::from).collect(),
    })
}

fn unexpected(reply: Reply) -> BrokerError {
    BrokerError::Garbled(format!("not asked for: {reply:?}"))
}
