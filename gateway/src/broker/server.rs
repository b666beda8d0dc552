//! The socket: who is answered, how many at once, for how long. A thread for each connection, so that a slow
//! one keeps nobody waiting.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen,
    socket, sockopt,
};
use nix::sys::stat::{Mode, umask};
use sd_notify::NotifyState;

use super::duties::{Duties, Namespaces};
use super::packet::{self, Incoming};
use super::protocol::{Reply, Request};
use super::watch::{StartError, Watch};
use crate::config::Config;
use crate::intercept::{self, InterceptError};
use crate::privileges::{self, PrivilegeError};

/// Connections at one time: the gateway's pool and its successor's, with room to spare.
const MAX_CLIENTS: usize = 32;

/// How long a connection may be silent between two requests, and an answer may take to leave.
const IDLE: Duration = Duration::from_secs(60);
const SENDING: Duration = Duration::from_secs(5);

/// Why the broker does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the broker does what needs root: run it as root")]
    NotRoot,
    #[error(transparent)]
    User(#[from] PrivilegeError),
    #[error(transparent)]
    Kernel(#[from] InterceptError),
    #[error(transparent)]
    Watch(#[from] StartError),
    #[error("another broker answers on {}", .0.display())]
    AnotherAnswers(PathBuf),
    #[error("{}: {cause}", .path.display())]
    Socket { path: PathBuf, cause: io::Error },
    #[error("waiting: {0}")]
    Wait(#[from] Errno),
}

/// Runs the broker until SIGTERM or SIGINT. `ready` is called once requests are answered.
pub fn serve(config: &Config, ready: impl FnOnce(&Path)) -> Result<(), ServeError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(ServeError::NotRoot);
    }
    let gateway = privileges::lookup(&config.gateway.user)?;
    // A socket carries the cgroup of its creator: the gateway's listeners must be of the gateway's cgroup.
    intercept::join_gateway_cgroup(&config.kernel)?;
    let path = &config.broker.socket;
    let listener = listen_on(path, gateway.uid).map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => ServeError::AnotherAnswers(path.clone()),
        _ => ServeError::Socket {
            path: path.clone(),
            cause,
        },
    })?;
    // Before there is another thread: it would take the signal.
    let signals = termination()?;
    let namespaces: Arc<Mutex<Namespaces>> = Arc::default();
    let watch = Watch::start(config.kernel.clone(), Arc::clone(&namespaces))?;
    let port = config.gateway.listen_port;
    let broker = Broker {
        gateway: gateway.uid,
        duties: Arc::new(Duties::new(config.kernel.clone(), port, watch, namespaces)),
        clients: Arc::default(),
    };
    ready(path);
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::debug!("the service manager was not told: {error}");
    }
    let outcome = broker.answer_until(&signals, &listener);
    let _ = fs::remove_file(path);
    Ok(outcome?)
}

struct Broker {
    /// The user id that is answered.
    gateway: u32,
    duties: Arc<Duties>,
    /// One clone is out for each connection.
    clients: Arc<()>,
}

impl Broker {
    fn answer_until(&self, signals: &SignalFd, listener: &UnixListener) -> Result<(), Errno> {
        loop {
            let mut waiting = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut waiting, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            let [signal, connection] = waiting.map(|one| one.any().unwrap_or(true));
            if signal {
                return Ok(());
            }
            if connection {
                self.admit(listener);
            }
        }
    }

    fn admit(&self, listener: &UnixListener) {
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                // Out of descriptors, most likely; it would be tried again at once, for ever.
                tracing::error!("accepting: {error}");
                return thread::sleep(Duration::from_millis(100));
            }
        };
        match getsockopt(&connection, sockopt::PeerCredentials) {
            Ok(peer) if peer.uid() == self.gateway => {}
            Ok(peer) => {
                let (uid, pid) = (peer.uid(), peer.pid());
                return tracing::warn!(uid, pid, "not the gateway's user: not answered");
            }
            Err(error) => return tracing::error!("asking who connected: {error}"),
        }
        let place = Arc::clone(&self.clients);
        // One is the broker's own.
        if Arc::strong_count(&place) - 1 > MAX_CLIENTS {
            return tracing::warn!("more than {MAX_CLIENTS} connections: one is closed");
        }
        let duties = Arc::clone(&self.duties);
        let started = thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || {
                if let Err(error) = converse(&connection, &duties) {
                    tracing::debug!("a connection ended: {error}");
                }
                drop(place);
            });
        if let Err(error) = started {
            tracing::error!("starting a thread: {error}");
        }
    }
}

/// Until the client closes, is silent for too long, or says what makes no sense.
fn converse(connection: &UnixStream, duties: &Duties) -> io::Result<()> {
    // It is what accept(2) makes of a listener that does not block.
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(IDLE))?;
    connection.set_write_timeout(Some(SENDING))?;
    loop {
        let request: Request = match packet::receive(connection)? {
            Incoming::Message(request) => request,
            Incoming::Closed => return Ok(()),
            Incoming::Malformed(reason) => {
                tracing::warn!("a connection is closed: {reason}");
                return packet::send(connection, &Reply::Refused { reason }, &[]);
            }
        };
        let answer = duties.answer(request);
        let descriptors: Vec<_> = answer.descriptors.iter().map(|fd| fd.as_fd()).collect();
        if let Err(error) = packet::send(connection, &answer.reply, &descriptors) {
            duties.undelivered(&answer);
            return Err(error);
        }
    }
}

/// Only root and the gateway's user can connect, and which of the two it is, the kernel says.
fn listen_on(path: &Path, gateway: u32) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
    }
    remove_stale(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    // The socket gets mode 0600.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(listener.as_raw_fd(), &UnixAddr::new(path)?);
    umask(before);
    bound?;
    chown(path, Some(gateway), None)?;
    listen(&listener, Backlog::new(64)?)?;
    Ok(UnixListener::from(listener))
}

/// A killed broker leaves its socket; one that answers keeps it.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::other("is there already and no socket"));
        }
        Ok(_) => {}
    }
    let probe = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path),
        // EAGAIN: somebody listens who is busy.
        Ok(()) | Err(Errno::EAGAIN) => Err(io::ErrorKind::AddrInUse.into()),
        Err(errno) => Err(errno.into()),
    }
}

fn termination() -> Result<SignalFd, Errno> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
