//! The session's two directions, read at the same time so that neither can hold up the other.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::catalogue::CatalogueError;
use super::conversation::Conversation;
use crate::audit::event::Stage;
use crate::policy::Denial;
use crate::protocol::postgres::{Message, ProtocolError};
use crate::session::mask::Delivery;
use crate::session::record::{EvidenceError, Recorder};

mod incoming;
mod requests;
mod responses;

pub use incoming::Incoming;
pub use requests::requests;
pub use responses::{TargetClosed, responses};

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
    /// Signalled whenever answers have made room for more requests, and when they have been delivered.
    pub answered: Notify,
    /// Set while the agent has been sent a message in part: a farewell now would land in the middle of it.
    pub delivering: AtomicBool,
    /// The rule that permitted a replication connection, if this is one.
    pub replication: Option<String>,
}

impl Session {
    /// Whether a statement runs, or its answer is on its way to the agent.
    pub fn is_busy(&self) -> bool {
        self.delivering.load(Ordering::Relaxed) || self.conversation().is_waiting()
    }

    fn conversation(&self) -> MutexGuard<'_, Conversation> {
        self.conversation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What the target remarked before anything was asked of it.
    pub fn notice(&self, message: &Message, delivery: &mut Delivery) -> Result<(), ProtocolError> {
        self.conversation().error_text(message, delivery)
    }

    /// Whether everything that was asked has been answered, and the answers delivered.
    pub fn is_settled(&self) -> bool {
        self.conversation().is_settled() && !self.delivering.load(Ordering::Relaxed)
    }

    /// Waits until everything that was asked has been answered, and the answers delivered.
    pub async fn settled(&self) {
        loop {
            let answered = self.answered.notified();
            if self.is_settled() {
                return;
            }
            answered.await;
        }
    }
}

/// The leaf of a session that ended because somebody broke a rule of the protocol.
pub fn protocol_denial(error: &ProtocolError, target: &str) -> (Stage, Denial) {
    let denial = match error {
        ProtocolError::TooLong { limit, .. } => Denial {
            rule: "protocol:message-too-long".to_owned(),
            message: format!(
                "a message is longer than the {limit} bytes that target \"{target}\" allows"
            ),
            detail: format!("Rule protocol:message-too-long: {error}."),
            hint: format!(
                "Send or fetch less at once, or ask the operator to raise targets.{target}.max_message_bytes."
            ),
        },
        _ => Denial {
            rule: "protocol:malformed".to_owned(),
            message: "the connection does not follow PostgreSQL's protocol".to_owned(),
            detail: error.to_string(),
            hint: "Use a PostgreSQL client.".to_owned(),
        },
    };
    (Stage::Protocol, denial)
}
