//! Answers that are still to come, one per message that was sent.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::audit::event::StatementOutcome;
use crate::policy::Denial;
use crate::session::record::Outcome;

pub(super) type Name = Vec<u8>;

/// One answer that is still to come.
#[derive(Debug)]
pub(super) enum Pending {
    /// A simple query: one operation per statement, the front one is running. A function call, too.
    Query {
        message: u64,
        /// How many statements have ended.
        ended: usize,
        operations: VecDeque<Operation>,
        results: Results,
        sensitive: bool,
    },
    Parse {
        message: u64,
        /// The unnamed statement is gone when this runs, whether it succeeds or not.
        unnamed: bool,
        sensitive: bool,
    },
    Bind {
        message: u64,
        sensitive: bool,
    },
    Describe,
    /// The gateway's own Describe of a portal; whoever holds an Execute back waits for what it finds.
    OwnDescribe {
        portal: Name,
        binary: Option<oneshot::Sender<Option<String>>>,
    },
    /// The gateway asks whether something of this name exists, before it is refused. The answer is the
    /// gateway's own; an error is the agent's: as SQL says it, where that asked for a cursor.
    OwnQuestion {
        cursor: Option<String>,
    },
    Execute {
        message: u64,
        portal: Name,
        operation: Option<Operation>,
        sensitive: bool,
    },
    Close {
        message: u64,
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

impl Pending {
    /// The number under which its changes to names are noted.
    pub(super) fn message(&self) -> Option<u64> {
        match self {
            Self::Query { message, .. }
            | Self::Parse { message, .. }
            | Self::Bind { message, .. }
            | Self::Execute { message, .. }
            | Self::Close { message } => Some(*message),
            Self::Describe
            | Self::OwnDescribe { .. }
            | Self::OwnQuestion { .. }
            | Self::Sync
            | Self::Denied { .. }
            | Self::CopyEnd => None,
        }
    }
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
