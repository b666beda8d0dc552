//! Accept: a socket and the flow the kernel noted for it, or a reset.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpStream;

use crate::audit::event::{Event, SessionId, Stage, Who};
use crate::intercept::{Flow, FlowTable};
use crate::session::watch;
use crate::store::log::Log;

/// A connection whose origin the kernel vouches for.
#[derive(Debug)]
pub struct Accepted {
    socket: TcpStream,
    flow: Flow,
    peer: SocketAddr,
    session: SessionId,
    at: Instant,
}

impl Accepted {
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn session(&self) -> SessionId {
        self.session
    }

    /// When the connection was accepted.
    pub fn at(&self) -> Instant {
        self.at
    }

    pub fn into_socket(self) -> TcpStream {
        self.socket
    }
}

/// Reads the flow of a fresh socket. A connection without one did not come through the kernel
/// programs: it is reset, and a leaf says so.
pub fn accept(socket: TcpStream, flows: &FlowTable, log: &Log) -> Option<Accepted> {
    let peer = socket.peer_addr().ok()?;
    let reason = match flows.flow_of(socket.as_fd()) {
        Ok(Some(flow)) => {
            // Small messages in both directions: waiting to fill a segment only adds latency.
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%peer, %error, "TCP_NODELAY was refused");
            }
            if let Err(error) = watch::keep_alive(&socket) {
                tracing::debug!(%peer, %error, "SO_KEEPALIVE was refused");
            }
            return Some(Accepted {
                socket,
                flow,
                peer,
                session: SessionId::new(SystemTime::now()),
                at: Instant::now(),
            });
        }
        Ok(None) => "the connection did not come through the kernel programs".to_owned(),
        Err(error) => format!("its flow cannot be read: {error}"),
    };
    tracing::warn!(%peer, reason, "connection reset");
    deny(peer, "flow:none", reason, log);
    reset(socket);
    None
}

/// Resets a connection that not even a refusal can be spared for, with a leaf.
pub fn refuse_full(socket: TcpStream, peer: SocketAddr, log: &Log) {
    deny(
        peer,
        "sessions:full",
        "all sessions are in use".to_owned(),
        log,
    );
    reset(socket);
}

fn deny(peer: SocketAddr, rule: &str, reason: String, log: &Log) {
    let event = Event::Deny {
        session: None,
        who: Who {
            client: peer.to_string(),
            ..Who::default()
        },
        stage: Stage::Accept,
        stmt: None,
        statement: None,
        rule: rule.to_owned(),
        reason,
        hint: None,
    };
    if let Err(error) = log.append(&event) {
        tracing::error!(%error, "a denial could not be written");
    }
}

/// Closes a socket with RST: the peer must not take it for an orderly end.
pub fn reset(socket: TcpStream) {
    #[expect(
        deprecated,
        reason = "lingering for zero seconds does not block, it resets"
    )]
    if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER was refused");
    }
    drop(socket);
}
