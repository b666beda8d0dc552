//! The conversation: which answer belongs to which message.
//!
//! PostgreSQL answers in order. Every message that will be answered is queued when it goes upstream;
//! every answer is matched with the head of that queue. That is how a result is attributed to its
//! statement, a denied message's error is found and rewritten, the gateway's own questions are kept
//! from the agent, and what the server skipped after an error is known not to have run.
//!
//! Pure: messages in, [`Delivery`] and [`Outcome`]s out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use self::copy::Copies;
use self::names::{Names, Possible};
use self::pending::{Name, Pending};
use super::bound::{Bound, Held};
use super::catalogue::Catalogue;
use crate::session::decide::{Meaning, Runs};
use crate::session::mask::Plan;
use crate::sql::naming::LONGEST_NAME;
use crate::sql::strings::Strings;

mod answers;
mod copy;
mod follow;
mod names;
mod pending;
mod requests;
#[cfg(test)]
mod tests;

pub use self::copy::{Data, Synced};
pub use self::pending::Refused;

/// More messages in flight than this and the agent has to wait. PostgreSQL may hold back 8 KiB of
/// answers until a Flush or Sync, 5 bytes at the least each: a lower limit could wait for ever.
const MAX_IN_FLIGHT: usize = 16 << 10;

/// Prepared statements, and portals, that one session may have open. The server would keep more; the
/// gateway's memory per session is bounded.
const MAX_NAMED: usize = 16 << 10;

/// Bytes of statements' texts that one session may keep prepared.
const MAX_HELD: usize = 64 << 20;

/// A portal: made by a Bind, or by DECLARE in SQL.
#[derive(Debug)]
struct Portal {
    meanings: Possible<Arc<Meaning>>,
    /// What its statement ran by name when it was first executed: the rows held back since are of that.
    ran: OnceLock<Runs>,
    bound: Option<Arc<Bound>>,
    /// It may outlive its transaction.
    hold: bool,
    /// How the rows that it holds back are masked: as its first ones were. A portal that runs FETCH or
    /// EXECUTE keeps the rows of the cursor or statement it ran first, while its description is that of
    /// whatever bears that name now.
    rows: OnceLock<Arc<Plan>>,
}

impl Portal {
    fn declared(query: &Arc<Meaning>, hold: bool) -> Self {
        Self {
            meanings: Possible {
                known: vec![Arc::clone(query)],
                unknown: false,
            },
            ran: OnceLock::new(),
            bound: None,
            hold,
            rows: OnceLock::new(),
        }
    }
}

/// A statement that a portal may stand for.
#[derive(Debug)]
pub struct Alternative {
    pub meaning: Arc<Meaning>,
    /// What it runs by name.
    pub runs: Runs,
    /// Its parameters; absent where SQL has made the portal.
    pub bound: Option<Arc<Bound>>,
}

/// What is to be executed through a portal.
#[derive(Debug)]
pub struct Execution {
    portal: Name,
    portals: Vec<Arc<Portal>>,
    /// What may run. Nearly always one.
    pub alternatives: Vec<Alternative>,
    /// It may also be a statement that code made, of which nothing is known.
    pub unknown: bool,
    /// As evidence shows them; absent where SQL has made the portal.
    pub bound: Option<Arc<Bound>>,
}

impl Execution {
    /// As the agent named it.
    pub fn portal(&self) -> &[u8] {
        &self.portal
    }
}

#[derive(Debug)]
pub struct Conversation {
    pending: VecDeque<Pending>,
    /// After an error in the extended protocol the server skips everything up to the next Sync.
    failed: bool,
    copies: Copies,
    /// Syncs in flight.
    syncs: usize,
    /// Counts the messages that are answered.
    message: u64,
    /// Counts the Syncs that were sent.
    segment: u64,
    /// The segment in which a message of the extended protocol was last denied.
    doomed: Option<u64>,
    /// Prepared statements: by Parse and by PREPARE, which share their names.
    statements: Names<Arc<Meaning>>,
    /// Portals and cursors, likewise.
    portals: Names<Arc<Portal>>,
    /// Bytes of text that are kept under names.
    held: Arc<AtomicUsize>,
    /// The columns of the rows that come next.
    plan: Arc<Plan>,
    /// The portal that the agent's last message asked for the columns of.
    described: Option<Name>,
    catalogue: Arc<Catalogue>,
    next_stmt: u64,
    strings: Strings,
    /// Parameters of the open portals.
    parameters_held: Held,
}

impl Conversation {
    pub fn new(catalogue: Arc<Catalogue>) -> Self {
        Self {
            pending: VecDeque::new(),
            failed: false,
            copies: Copies::default(),
            syncs: 0,
            message: 1,
            segment: 0,
            doomed: None,
            statements: Names::new(),
            portals: Names::new(),
            held: Arc::default(),
            plan: Arc::default(),
            described: None,
            catalogue,
            next_stmt: 1,
            strings: Strings::Standard,
            parameters_held: Held::default(),
        }
    }

    pub fn update_catalogue(&mut self, catalogue: &Arc<Catalogue>) {
        if !Arc::ptr_eq(&self.catalogue, catalogue) {
            self.catalogue = Arc::clone(catalogue);
        }
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

    /// The same of names that are not ASCII.
    pub fn names_are_converted(&mut self) {
        self.statements.are_converted();
        self.portals.are_converted();
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
        self.is_skipping() || self.pending.is_empty()
    }

    /// Whether nothing is under way, so that a Sync of the gateway's own ends nothing of the agent's.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && !self.failed && !self.copies.under_way()
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

    /// Whether the server will not take what is sent now: a message before it was made to fail, and no Sync
    /// ends the skipping in between.
    fn is_doomed(&self) -> bool {
        self.doomed == Some(self.segment)
    }

    /// Whether the session holds more names open than it may.
    pub fn is_overfull(&self) -> bool {
        self.statements.len() > MAX_NAMED
            || self.portals.len() > MAX_NAMED
            || self.held.load(Ordering::Relaxed) > MAX_HELD
    }
}

/// The server tells names apart by this many bytes (`NAMEDATALEN` less the NUL): what is longer is the
/// same statement or portal to it, and must be to us, or evidence would name another than the one that ran.
fn known_as(name: &[u8]) -> Name {
    name.get(..LONGEST_NAME).unwrap_or(name).to_vec()
}
