//! The session's two directions, read at the same time so that neither can hold up the other.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::catalogue::CatalogueError;
use super::conversation::Conversation;
use crate::audit::event::Stage;
use crate::policy::Denial;
use crate::protocol::postgres::ProtocolError;
use crate::session::record::{EvidenceError, Recorder};

mod requests;
mod responses;

pub use requests::requests;
pub use responses::responses;

/// How much is read at once.
const READ: usize = 32 << 10;

/// Why a session ends before both sides said goodbye.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the agent broke the protocol: {0}")]
    Agent(ProtocolError),
    #[error("the target broke the protocol: {0}")]
    Target(ProtocolError),
    #[error("the connection to the agent broke: {0}")]
    AgentIo(io::Error),
    #[error("the connection to the target broke: {0}")]
    TargetIo(io::Error),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

/// What both directions share.
#[derive(Debug)]
pub struct Session {
    pub conversation: Mutex<Conversation>,
    pub recorder: Arc<Recorder>,
    /// Signalled whenever answers have made room for more requests.
    pub answered: Notify,
    /// Set while bytes are being delivered: a farewell now would land in the middle of a message.
    pub delivering: AtomicBool,
    /// The rule that permitted a replication connection, if this is one.
    pub replication: Option<String>,
}

impl Session {
    fn conversation(&self) -> MutexGuard<'_, Conversation> {
        self.conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leaf of a session that ended because somebody broke a rule of the protocol.
pub fn protocol_denial(error: &ProtocolError) -> (Stage, Denial) {
    (
        Stage::Protocol,
        Denial {
            rule: "protocol:malformed".to_owned(),
            message: "the connection does not follow PostgreSQL's protocol".to_owned(),
            detail: error.to_string(),
            hint: "Use a PostgreSQL client.".to_owned(),
        },
    )
}
