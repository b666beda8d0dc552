//! The conversation: which answer belongs to which message.
//!
//! PostgreSQL answers in order. Every message that will be answered is queued when it goes upstream;
//! every answer is matched with the head of that queue. That is how a result is attributed to its
//! statement, a denied message's error is found and rewritten, the gateway's own questions are kept
//! from the agent, and what the server skipped after an error is known not to have run.
//!
//! Pure: messages in, [`Delivery`] and [`Outcome`]s out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use self::pending::{Name, Pending};
use super::bound::{Bound, Held};
use super::catalogue::Catalogue;
use crate::session::decide::Allowed;
use crate::session::mask::Plan;
use crate::sql::strings::Strings;

mod answers;
mod pending;
mod requests;
#[cfg(test)]
mod tests;

/// More messages in flight than this and the agent has to wait. PostgreSQL may hold back 8 KiB of
/// answers until a Flush or Sync, 5 bytes at the least each: a lower limit could wait for ever.
const MAX_IN_FLIGHT: usize = 16 << 10;

/// Prepared statements, and portals, that one session may have open. The server would keep more; the
/// gateway's memory per session is bounded.
const MAX_NAMED: usize = 16 << 10;

#[derive(Debug, Clone)]
struct Portal {
    /// `None`: the statement was prepared in SQL, or its Parse failed.
    allowed: Option<Arc<Allowed>>,
    bound: Arc<Bound>,
    rows: Rows,
}

impl Portal {
    /// The portal, its statement forgotten unless its name has meant the same all along.
    fn known_since(mut self, same: bool) -> Self {
        if !same {
            self.allowed = None;
        }
        self
    }
}

/// How the rows that a portal holds back are masked: as its first ones were. A portal that runs FETCH or
/// EXECUTE keeps the rows of the cursor or statement it ran first, while its description is that of
/// whatever bears that name now.
type Rows = Arc<OnceLock<Arc<Plan>>>;

/// What is to be executed through a portal.
#[derive(Debug)]
pub struct Execution {
    pub allowed: Arc<Allowed>,
    pub bound: Option<Arc<Bound>>,
    rows: Rows,
}

#[derive(Debug)]
pub struct Conversation {
    pending: VecDeque<Pending>,
    /// After an error in the extended protocol the server skips everything up to the next Sync.
    failed: bool,
    /// The server is reading COPY data: it ignores Sync and Flush.
    copy_in: bool,
    /// COPY data has been sent whose end has not.
    copy_data: bool,
    /// Syncs in flight.
    syncs: usize,
    /// Counts the statements that can give known names another meaning.
    naming: u64,
    statements: HashMap<Name, Arc<Allowed>>,
    portals: HashMap<Name, Portal>,
    /// The columns of the rows that come next.
    plan: Arc<Plan>,
    catalogue: Arc<Catalogue>,
    next_stmt: u64,
    strings: Strings,
    /// Parameters of the open portals.
    held: Held,
}

impl Conversation {
    pub fn new(catalogue: Arc<Catalogue>) -> Self {
        Self {
            pending: VecDeque::new(),
            failed: false,
            copy_in: false,
            copy_data: false,
            syncs: 0,
            naming: 0,
            statements: HashMap::new(),
            portals: HashMap::new(),
            plan: Arc::default(),
            catalogue,
            next_stmt: 1,
            strings: Strings::Standard,
            held: Held::default(),
        }
    }

    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    pub fn update_catalogue(&mut self, catalogue: Arc<Catalogue>) {
        self.catalogue = catalogue;
    }

    /// How the server reads the strings in the next text.
    pub fn strings(&self) -> Strings {
        self.strings
    }

    /// From here on, for good: ROLLBACK, RESET and the end of a function change the setting too, and what
    /// is pipelined is read before the server reports it.
    pub fn strings_are_uncertain(&mut self) {
        self.strings = Strings::Uncertain;
    }

    /// Whether the server still has to answer something.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether the next message has to wait for answers. A server that skips gives none.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= MAX_IN_FLIGHT && !self.is_skipping()
    }

    /// Whether no answer is to come to what has been sent.
    pub fn is_settled(&self) -> bool {
        let mut pending = self.pending.iter();
        self.is_skipping() || pending.all(|pending| matches!(pending, Pending::CopyEnd))
    }

    #[cfg(test)]
    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Whether the server skips what is sent now: it has failed, and the Sync that ends its skipping has
    /// not been sent. Nothing will be answered before that, so nothing is waited for.
    pub fn is_skipping(&self) -> bool {
        self.failed && self.syncs == 0
    }

    /// Whether the session holds more names open than it may.
    pub fn is_overfull(&self) -> bool {
        self.statements.len() > MAX_NAMED || self.portals.len() > MAX_NAMED
    }
}
