//! The agent's side: what is sent, in the order it is sent.

use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;

use super::names::{Change, MOST_POSSIBILITIES, Possible};
use super::pending::{Operation, Pending, Results};
use super::{Conversation, Execution, Portal, known_as};
use crate::audit::event::StatementOutcome;
use crate::policy::Denial;
use crate::protocol::postgres::ProtocolError;
use crate::protocol::postgres::frontend::Object;
use crate::session::decide::{Allowed, Meaning, Runs};
use crate::session::record::Outcome;

impl Conversation {
    /// A simple query that may run; returns the number of its first statement, and the outcomes of its
    /// statements when they are known already.
    pub fn query(&mut self, allowed: &Allowed) -> (u64, Vec<Outcome>) {
        let results = match allowed.is_unknown() {
            true => Results::Uncounted,
            false => Results::Counted,
        };
        self.query_answered_by(results, allowed)
    }

    /// A function call that may run; the same.
    pub fn call(&mut self, allowed: &Allowed) -> (u64, Vec<Outcome>) {
        self.query_answered_by(Results::Value, allowed)
    }

    fn query_answered_by(&mut self, results: Results, allowed: &Allowed) -> (u64, Vec<Outcome>) {
        let first = self.next_stmt;
        let operations = allowed
            .statements()
            .iter()
            .map(|_| Operation::new(self.number()))
            .collect();
        let skipped = self.queue(Pending::Query {
            message: self.message,
            ended: 0,
            operations,
            results,
            sensitive: allowed.sensitive(),
        });
        (first, skipped)
    }

    /// A message that was replaced; returns the number its statement would have had.
    pub fn denied(&mut self, denial: Denial, ends_with_ready: bool) -> u64 {
        self.queue(Pending::Denied {
            denial,
            ends_with_ready,
        });
        self.number()
    }

    /// The gateway asks for a portal that it then refuses to execute.
    pub fn own_question(&mut self) {
        self.queue(Pending::OwnQuestion { cursor: None });
    }

    /// A simple query that was replaced by a question and a refusal; returns the number its statement would
    /// have had.
    pub fn denied_by_name(&mut self, denial: Denial, cursor: Option<String>) -> u64 {
        self.queue(Pending::OwnQuestion { cursor });
        let number = self.denied(denial, false);
        self.syncs += 1;
        self.segment += 1;
        self.queue(Pending::Sync);
        number
    }

    pub fn parse(&mut self, name: &[u8], statements: &[Arc<Meaning>], sensitive: bool) {
        let meaning = match statements {
            [] => Some(Arc::new(Meaning::nothing())),
            [only] => Some(Arc::clone(only)),
            // The server refuses that.
            _ => None,
        };
        if let Some(meaning) = meaning {
            meaning.hold(&self.held);
            let change = Change::Set(known_as(name), meaning);
            self.statements.change(self.sent(0, true), change);
        }
        self.queue(Pending::Parse {
            message: self.message,
            unnamed: name.is_empty(),
            sensitive,
        });
    }

    /// Returns whether the parameter values must be withheld from evidence.
    pub fn bind(
        &mut self,
        portal: &[u8],
        statement: &[u8],
        parameters: usize,
        binary: bool,
    ) -> bool {
        let sent = self.sent(0, true);
        let meanings = self.statements.lookup(&known_as(statement), &sent);
        let open = !meanings.unknown && meanings.known.iter().all(|it| !it.sensitive());
        let sensitive = self.catalogue.masks_anything() && !open;
        let portal = known_as(portal);
        let bound = Portal {
            meanings,
            ran: OnceLock::new(),
            parameters,
            binary,
            hold: false,
            rows: OnceLock::new(),
        };
        self.portals
            .change(sent, Change::Set(portal, Arc::new(bound)));
        self.queue(Pending::Bind {
            message: self.message,
            sensitive,
        });
        sensitive
    }

    pub fn describe(&mut self) {
        self.queue(Pending::Describe);
    }

    /// The gateway asks for the columns of the portal that is to be executed. With `wait`, the answer
    /// names a masked column in binary, if there is one; it is dropped when the server never got to it.
    pub fn own_describe(
        &mut self,
        execution: &Execution,
        wait: bool,
    ) -> Option<oneshot::Receiver<Option<String>>> {
        // A server that is skipping to the next Sync would not answer.
        let (sender, receiver) = if wait && !self.failed {
            let (sender, receiver) = oneshot::channel();
            (Some(sender), Some(receiver))
        } else {
            (None, None)
        };
        self.queue(Pending::OwnDescribe {
            portal: execution.portal.clone(),
            binary: sender,
        });
        receiver
    }

    /// What an Execute of this portal would run.
    pub fn execution(&self, portal: &[u8]) -> Execution {
        let portal = known_as(portal);
        let now = self.sent(0, true);
        let Possible { known, mut unknown } = self.portals.lookup(&portal, &now);
        let mut alternatives: Vec<(Arc<Meaning>, Runs)> = Vec::with_capacity(known.len());
        for it in &known {
            unknown |= it.meanings.unknown;
            for meaning in &it.meanings.known {
                let mut runs = self.runs(meaning.naming(), &now);
                if let Some(ran) = it.ran.get() {
                    runs.add_all(ran);
                }
                alternatives.push((Arc::clone(meaning), runs));
            }
        }
        Execution {
            portal,
            alternatives,
            unknown,
            parameters: known.first().map(|it| it.parameters),
            binary: known.is_empty() || unknown || known.iter().any(|it| it.binary),
            portals: known,
        }
    }

    /// Returns the number of the statement that is executed, and its outcome when that is known already.
    pub fn execute(&mut self, execution: &Execution, allowed: &Allowed) -> (u64, Vec<Outcome>) {
        let operation = match allowed.statements() {
            [] => None,
            _ => Some(Operation::new(self.number())),
        };
        let stmt = operation.as_ref().map_or(self.next_stmt, |it| it.stmt);
        let sent = self.sent(0, true);
        let sure = execution.alternatives.len() == 1 && !execution.unknown;
        for (meaning, runs) in &execution.alternatives {
            self.note(meaning, runs, &sent, sure);
            if !runs.is_nothing() {
                for portal in &execution.portals {
                    portal.ran.get_or_init(|| runs.clone());
                }
            }
        }
        if execution.unknown && execution.alternatives.len() >= MOST_POSSIBILITIES {
            self.anything(&sent);
        }
        let sensitive = self.catalogue.masks_anything() && allowed.sensitive();
        let skipped = self.queue(Pending::Execute {
            message: self.message,
            portal: execution.portal.clone(),
            operation,
            sensitive,
        });
        (stmt, skipped)
    }

    pub fn close(&mut self, object: Object<'_>) {
        let sent = self.sent(0, true);
        match object {
            Object::Statement(name) => {
                let change = Change::Remove(known_as(name));
                self.statements.change(sent, change);
            }
            Object::Portal(name) => {
                let change = Change::Remove(known_as(name));
                self.portals.change(sent, change);
            }
        }
        self.queue(Pending::Close {
            message: self.message,
        });
    }

    /// # Errors
    /// In the middle of COPY data. A server that is still copying ignores it, one whose COPY has just
    /// failed answers it: what runs behind it could not be told from what is skipped.
    pub fn sync(&mut self) -> Result<(), ProtocolError> {
        if self.copy_in || self.copy_data {
            return Err(ProtocolError::Refused(
                "a Sync in the middle of COPY data: end the data first",
            ));
        }
        self.syncs += 1;
        self.segment += 1;
        self.pending.push_back(Pending::Sync);
        Ok(())
    }

    pub fn copy_data(&mut self) {
        // After an error, and while nothing runs, the server discards it.
        self.copy_data |= self.copy_in || !(self.failed || self.pending.is_empty());
    }

    pub fn copy_end(&mut self) {
        self.copy_data = false;
        // A second one in a row ends nothing, and would wait for an answer that never comes.
        if !std::mem::take(&mut self.copy_in)
            && !matches!(self.pending.back(), Some(Pending::CopyEnd))
        {
            self.queue(Pending::CopyEnd);
        }
    }

    /// Remembers a message whose answer is to come. What the server skips is never answered: then the
    /// outcomes of its statements come back.
    fn queue(&mut self, pending: Pending) -> Vec<Outcome> {
        if !self.is_skipping() {
            if pending.message().is_some() {
                self.message += 1;
            }
            self.pending.push_back(pending);
            return Vec::new();
        }
        self.retract();
        let skipped = |operation: Operation| operation.done(StatementOutcome::Skipped, None, None);
        match pending {
            Pending::Query { operations, .. } => operations.into_iter().map(skipped).collect(),
            Pending::Execute { operation, .. } => operation.into_iter().map(skipped).collect(),
            _ => Vec::new(),
        }
    }

    fn number(&mut self) -> u64 {
        let number = self.next_stmt;
        self.next_stmt += 1;
        number
    }
}
