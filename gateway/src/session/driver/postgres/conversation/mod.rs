//! The conversation: which answer belongs to which message.
//!
//! PostgreSQL answers in order. Every message that will be answered is queued when it goes upstream;
//! every answer is matched with the head of that queue. That is how a result is attributed to its
//! statement, a denied message's error is found and rewritten, the gateway's own questions are kept
//! from the agent, and what the server skipped after an error is known not to have run.
//!
//! Pure: messages in, [`Delivery`] and [`Outcome`]s out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use self::pending::{Name, Pending};
use super::catalogue::Catalogue;
use crate::session::decide::Allowed;
use crate::session::mask::Plan;

mod answers;
mod pending;
mod requests;
#[cfg(test)]
mod tests;

/// More messages in flight than this and the agent has to wait. PostgreSQL may hold back 8 KiB of
/// answers until a Flush or Sync, 5 bytes at the least each: a lower limit could wait for ever.
pub const MAX_IN_FLIGHT: usize = 16 << 10;

/// Prepared statements, and portals, that one session may have open. The server would keep more; the
/// gateway's memory per session is bounded.
const MAX_NAMED: usize = 16 << 10;

#[derive(Debug, Clone)]
struct Portal {
    /// `None`: the statement was prepared in SQL, or its Parse failed.
    allowed: Option<Arc<Allowed>>,
    parameters: usize,
    binary: bool,
}

/// What is to be executed through a portal.
#[derive(Debug)]
pub struct Execution {
    pub allowed: Arc<Allowed>,
    pub parameters: Option<usize>,
    /// Whether rows may come in binary: then their columns must be known before anything runs.
    pub binary: bool,
}

#[derive(Debug)]
pub struct Conversation {
    pending: VecDeque<Pending>,
    /// After an error in the extended protocol the server skips everything up to the next Sync.
    failed: bool,
    /// The server is reading COPY data: it ignores Sync and Flush.
    copy_in: bool,
    statements: HashMap<Name, Arc<Allowed>>,
    portals: HashMap<Name, Portal>,
    /// The columns of the rows that come next.
    plan: Arc<Plan>,
    catalogue: Arc<Catalogue>,
    next_stmt: u64,
}

impl Conversation {
    pub fn new(catalogue: Arc<Catalogue>) -> Self {
        Self {
            pending: VecDeque::new(),
            failed: false,
            copy_in: false,
            statements: HashMap::new(),
            portals: HashMap::new(),
            plan: Arc::default(),
            catalogue,
            next_stmt: 1,
        }
    }

    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    pub fn update_catalogue(&mut self, catalogue: Arc<Catalogue>) {
        self.catalogue = catalogue;
    }

    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Whether the session holds more names open than it may.
    pub fn is_overfull(&self) -> bool {
        self.statements.len() > MAX_NAMED || self.portals.len() > MAX_NAMED
    }
}
