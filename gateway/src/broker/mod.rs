//! The broker: the few things that need root, for a gateway that has no privileges.
//!
//! `sluice broker` runs as root, in the gateway's cgroup, and answers one user on one Unix socket:
//!
//! * *hello*: the kernel's maps and the listeners of the host's network namespace, as descriptors;
//! * *inspect*: which program opened a connection;
//! * *listen*: listeners inside another network namespace that an agent lives in;
//! * *state*: whether the kernel programs are all in place.
//!
//! Beside that it [watches](watch): when the kernel programs are not what they should be, it freezes the
//! agents' cgroup. It reads nothing but its configuration, `/proc`, cgroupfs and the pins, keeps no listener that
//! it handed out (a gateway that dies must not leave an open port behind), and believes nobody: whatever a
//! request names is looked up anew and must belong to an agent.
//!
//! ```text
//! mod       what a client gets           packet    one message on the socket
//! protocol  the messages                 server    who is answered, how many, for how long
//! client    the gateway's side           duties    what each request does
//!                                        watch     verify, freeze, namespaces that emptied
//! ```

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::intercept::MapsId;

mod client;
mod duties;
pub mod packet;
mod protocol;
mod server;
mod watch;

pub use client::Client;
pub use server::{ServeError, serve};

/// What a gateway starts with.
#[derive(Debug)]
pub struct Endowment {
    /// The kernel's maps, in the order of [`Maps::NAMES`](crate::intercept::Maps::NAMES).
    pub maps: Vec<OwnedFd>,
    /// Of the host's own network namespace.
    pub listeners: Listeners,
}

/// What the gateway listens on in one network namespace: 127.0.0.1, and \[::1\] where there is IPv6. All of
/// them are non-blocking.
#[derive(Debug)]
pub struct Listeners {
    pub netns_cookie: u64,
    pub tcp: Vec<TcpListener>,
    pub udp: Vec<UdpSocket>,
}

/// How the kernel side is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardState {
    /// Why agents are not safe; empty when all is well.
    pub problems: Vec<String>,
    /// Whether the agents' cgroup is frozen.
    pub frozen: bool,
    /// Namespaces (by cookie) that no agent's process is in any more and where nothing is redirected now. A
    /// listener there only keeps the namespace alive: close it.
    pub abandoned: Vec<u64>,
    /// The maps that the kernel programs use; `None` while they are not known.
    pub maps: Option<MapsId>,
}

/// Why the broker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("no broker answers on {}: {cause} (is `sluice broker` running, and this the user gateway.user?)", .socket.display())]
    Unreachable {
        socket: PathBuf,
        cause: std::io::Error,
    },
    #[error("{} is not the broker's: whoever listens there has user id {uid}", .socket.display())]
    Impostor { socket: PathBuf, uid: u32 },
    #[error("the broker refuses: {0}")]
    Refused(String),
    #[error("the broker's answer makes no sense: {0}")]
    Garbled(String),
}
