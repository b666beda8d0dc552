//! What the two processes say to each other: JSON, one per packet, descriptors beside it.

use serde::{Deserialize, Serialize};

use crate::audit::event::Who;

/// From the gateway that hands over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToSuccessor {
    /// The first message. With the descriptors of the kernel's maps.
    Maps {},
    /// With the listeners of one network namespace: the TCP ones, then the datagram sockets. The first are
    /// the host's; more may follow after `Go`.
    Listeners { netns_cookie: u64, tcp: usize },
    /// Accept from now on.
    Go {},
    /// The answer to `Cancel`.
    Cancelled { request: u64, found: bool },
}

/// From the one that takes over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToPredecessor {
    /// Nothing that could fail is left to do.
    Ready {},
    /// It does not come up.
    Failed { reason: String },
    /// It accepts.
    Serving {},
    /// A cancel request whose key is none of the successor's own.
    Cancel {
        request: u64,
        pid: u32,
        key: Vec<u8>,
        agent: String,
        who: Box<Who>,
    },
}
