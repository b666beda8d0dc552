//! Answers that are still to come, one per message that was sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::copy::{AsksForData, replicates};
use crate::audit::event::StatementOutcome;
use crate::policy::Denial;
use crate::protocol::postgres::backend;
use crate::protocol::postgres::copy::Blanker;
use crate::session::decide::{AllowedStatement, Copying, Meaning};
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
        unnamed: bool,
        sensitive: bool,
    },
    Bind {
        message: u64,
        sensitive: bool,
    },
    Describe {
        /// The statement that is asked about, if it is known which.
        statement: Option<Arc<Meaning>>,
        /// The portal that is asked about: if it is executed next, the answer describes the rows that follow.
        portal: Option<Name>,
    },
    /// The gateway's own Describe of a portal.
    OwnDescribe {
        portal: Name,
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
        refused: Refused,
    },
}

/// Which message was replaced by one that the server must refuse, and so what its error ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Query,
    /// A function call outside of SQL.
    Call,
    /// By another unnamed Parse.
    UnnamedParse,
    /// Any other message of the extended protocol.
    Extended,
}

impl Refused {
    /// ReadyForQuery follows the error at once, and the server skips nothing.
    pub(super) fn ends_with_ready(self) -> bool {
        match self {
            Refused::Query | Refused::Call => true,
            Refused::UnnamedParse | Refused::Extended => false,
        }
    }
}

impl Pending {
    /// The statements it runs that have not ended.
    pub(super) fn operations(&mut self) -> impl Iterator<Item = &mut Operation> {
        let (several, one) = match self {
            Pending::Query { operations, .. } => (Some(operations), None),
            Pending::Execute { operation, .. } => (None, operation.as_mut()),
            _ => (None, None),
        };
        several.into_iter().flatten().chain(one)
    }

    /// Takes the statements that have not ended out of it.
    pub(super) fn take(&mut self) -> Vec<Operation> {
        match self {
            Pending::Query { operations, .. } => std::mem::take(operations).into(),
            Pending::Execute { operation, .. } => operation.take().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether the unnamed statement is gone when the server has got to this, even if it fails: the server
    /// drops it before it reads the text.
    pub(super) fn drops_unnamed(&self) -> bool {
        match self {
            Pending::Query { results, .. } => *results != Results::Value,
            Pending::Parse { unnamed, .. } => *unnamed,
            Pending::Denied { refused, .. } => {
                matches!(refused, Refused::Query | Refused::UnnamedParse)
            }
            _ => false,
        }
    }

    /// Whether it concerns masked columns.
    pub(super) fn is_sensitive(&self) -> bool {
        match self {
            Pending::Query { sensitive, .. } | Pending::Execute { sensitive, .. } => *sensitive,
            _ => true,
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

impl Pending {
    /// The number under which its changes to names are noted.
    pub(super) fn message(&self) -> Option<u64> {
        match self {
            Self::Query { message, .. }
            | Self::Parse { message, .. }
            | Self::Bind { message, .. }
            | Self::Execute { message, .. }
            | Self::Close { message } => Some(*message),
            Self::Describe { .. }
            | Self::OwnDescribe { .. }
            | Self::OwnQuestion { .. }
            | Self::Sync
            | Self::Denied { .. } => None,
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
    pub(super) copying: Option<Copying>,
    pub(super) asks: AsksForData,
    /// Ends of COPY data that were sent before the server asked for the data.
    pub(super) ends: usize,
    /// What evidence shows of the data it takes.
    pub(super) blanker: Option<Blanker>,
    /// A command of the replication protocol.
    pub(super) replicates: bool,
}

impl Operation {
    pub(super) fn of(statement: &AllowedStatement, stmt: u64) -> Self {
        let copying = statement.copying.clone();
        let blanker = match &copying {
            Some(Copying::In(format)) => Some(Blanker::new(format.clone())),
            _ => None,
        };
        Self {
            copying,
            asks: AsksForData::of(statement),
            ends: 0,
            blanker,
            replicates: replicates(statement),
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
        let copied = match (&self.copying, &tag) {
            (Some(_), Some(tag)) => backend::rows_copied(tag),
            _ => None,
        };
        Outcome {
            stmt: self.stmt,
            outcome,
            sqlstate,
            tag,
            rows: copied.unwrap_or(self.rows),
            bytes: self.bytes,
            masked: self.masked,
            started: self.started,
        }
    }
}
