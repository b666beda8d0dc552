//! Answers that are still to come, one per message that was sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::{Portal, Rows};
use crate::audit::event::StatementOutcome;
use crate::policy::Denial;
use crate::session::decide::Allowed;
use crate::session::record::Outcome;

pub(super) type Name = Vec<u8>;

/// One answer that is still to come.
#[derive(Debug)]
pub(super) enum Pending {
    /// A simple query: one operation per statement, the front one is running. A function call, too.
    Query {
        operations: VecDeque<Operation>,
        results: Results,
        sensitive: bool,
    },
    Parse {
        name: Name,
        allowed: Arc<Allowed>,
        replaced: Option<Arc<Allowed>>,
        naming: u64,
    },
    Bind {
        sensitive: bool,
        portal: Name,
        rows: Rows,
        replaced: Option<Portal>,
        naming: u64,
    },
    Describe {
        /// The statement that is asked about, if its name is known.
        statement: Option<Arc<Allowed>>,
    },
    /// The gateway's own Describe.
    OwnDescribe {
        rows: Rows,
    },
    Execute {
        operation: Option<Operation>,
        sensitive: bool,
        rows: Rows,
    },
    Close {
        name: Name,
        removed: Option<Removed>,
        naming: u64,
    },
    Sync,
    /// A message that was replaced by one the server must refuse.
    Denied {
        denial: Denial,
        ends_with_ready: bool,
    },
    /// CopyDone or CopyFail: no answer of its own.
    CopyEnd,
}

impl Pending {
    /// The statement whose data may come now.
    pub(super) fn running(&mut self) -> Option<&mut Operation> {
        match self {
            Pending::Query { operations, .. } => operations.front_mut(),
            Pending::Execute { operation, .. } => operation.as_mut(),
            _ => None,
        }
    }
}

/// What answers a simple query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Results {
    /// As many as there are operations.
    Counted,
    /// The last operation stands for a text that could not be read, and perhaps for several statements.
    Uncounted,
    /// A FunctionCallResponse.
    Value,
}

/// What a Close took away.
#[derive(Debug)]
pub(super) enum Removed {
    Statement(Arc<Allowed>),
    Portal(Portal),
}

/// A statement that is running upstream.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) stmt: u64,
    pub(super) started: Instant,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) masked: u64,
    /// The command tag of what has ended of it, where more may follow.
    pub(super) tag: Option<String>,
}

impl Operation {
    pub(super) fn new(stmt: u64) -> Self {
        Self {
            stmt,
            started: Instant::now(),
            rows: 0,
            bytes: 0,
            masked: 0,
            tag: None,
        }
    }

    /// At the end of its message: done if any of it has ended, and else never begun.
    pub(super) fn over(mut self) -> Outcome {
        match self.tag.take() {
            Some(tag) => self.done(StatementOutcome::Ok, None, Some(tag)),
            None => self.done(StatementOutcome::Skipped, None, None),
        }
    }

    pub(super) fn failed(self, sqlstate: String) -> Outcome {
        self.done(StatementOutcome::Error, Some(sqlstate), None)
    }

    pub(super) fn done(
        self,
        outcome: StatementOutcome,
        sqlstate: Option<String>,
        tag: Option<String>,
    ) -> Outcome {
        Outcome {
            stmt: self.stmt,
            outcome,
            sqlstate,
            tag,
            rows: self.rows,
            bytes: self.bytes,
            masked: self.masked,
            started: self.started,
        }
    }
}
