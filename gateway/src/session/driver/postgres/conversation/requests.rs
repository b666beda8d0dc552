//! The agent's side: what is sent, in the order it is sent.

use std::sync::Arc;

use super::pending::{Name, Operation, Pending, Removed, Results};
use super::{Conversation, Execution, Portal, Rows};
use crate::audit::event::StatementOutcome;
use crate::policy::Denial;
use crate::protocol::postgres::ProtocolError;
use crate::protocol::postgres::frontend::Object;
use crate::session::decide::Allowed;
use crate::session::driver::postgres::bound::{Bound, Keeping};
use crate::session::record::Outcome;

/// The server tells names apart by this many bytes (`NAMEDATALEN` less the NUL): what is longer is the
/// same statement or portal to it, and must be to us, or evidence would name another than the one that ran.
const NAME: usize = 63;

/// Statements that may give a prepared statement's name to another without a message of the protocol.
const RENAMES_STATEMENTS: [&str; 2] = ["sql:prepare", "sql:do"];
/// The same for portals.
const RENAMES_PORTALS: [&str; 2] = ["sql:declare", "sql:do"];

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
        self.names_move(allowed);
        let skipped = self.queue(Pending::Query {
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

    pub fn parse(&mut self, name: &[u8], allowed: Arc<Allowed>) {
        if self.is_skipping() {
            return;
        }
        let name = known_as(name);
        let replaced = self.statements.insert(name.clone(), Arc::clone(&allowed));
        self.queue(Pending::Parse {
            name,
            allowed,
            replaced,
            naming: self.naming,
        });
    }

    /// How the parameters bound to a statement are to be kept.
    pub fn keeping(&self, statement: &[u8]) -> Keeping {
        let allowed = self.statements.get(&known_as(statement));
        Keeping {
            types: allowed.map_or_else(Arc::default, |it| it.parameter_types()),
            withheld: self.sensitive(allowed.map(Arc::as_ref)),
            held: self.held.clone(),
        }
    }

    /// The same for the arguments of a function call: a target with masks takes none.
    pub fn keeping_arguments(&self, types: Arc<[u32]>) -> Keeping {
        Keeping {
            types,
            withheld: false,
            held: self.held.clone(),
        }
    }

    pub fn bind(&mut self, portal: &[u8], statement: &[u8], bound: Bound) {
        if self.is_skipping() {
            return;
        }
        let allowed = self.statements.get(&known_as(statement)).cloned();
        let sensitive = self.sensitive(allowed.as_deref());
        let name = known_as(portal);
        let rows = Rows::default();
        let replaced = self.portals.insert(
            name.clone(),
            Portal {
                allowed,
                bound: Arc::new(bound),
                rows: Arc::clone(&rows),
            },
        );
        self.queue(Pending::Bind {
            sensitive,
            portal: name,
            rows,
            replaced,
            naming: self.naming,
        });
    }

    pub fn describe(&mut self, object: Object<'_>) {
        let statement = match object {
            Object::Statement(name) => self.statements.get(&known_as(name)).cloned(),
            Object::Portal(_) => None,
        };
        self.queue(Pending::Describe { statement });
    }

    /// The gateway asks for the columns of the portal that is to be executed: the answer is here before
    /// the first row.
    pub fn own_describe(&mut self, execution: &Execution) {
        self.queue(Pending::OwnDescribe {
            rows: Arc::clone(&execution.rows),
        });
    }

    /// What an Execute of this portal would run.
    pub fn execution(&self, portal: &[u8]) -> Execution {
        let known = self.portals.get(&known_as(portal));
        let allowed = known
            .and_then(|portal| portal.allowed.clone())
            // Several statements in one Parse: the server refuses that.
            .filter(|allowed| allowed.statements().len() <= 1);
        Execution {
            allowed: allowed.unwrap_or_else(|| Arc::new(Allowed::prepared_in_sql(portal))),
            bound: known.map(|portal| Arc::clone(&portal.bound)),
            rows: known.map_or_else(Rows::default, |portal| Arc::clone(&portal.rows)),
        }
    }

    /// Returns the number of the statement that is executed, and its outcome when that is known already.
    pub fn execute(&mut self, execution: &Execution) -> (u64, Vec<Outcome>) {
        let operation = match execution.allowed.statements() {
            [] => None,
            _ => Some(Operation::new(self.number())),
        };
        let stmt = operation.as_ref().map_or(self.next_stmt, |it| it.stmt);
        self.names_move(&execution.allowed);
        let sensitive = self.sensitive(Some(&execution.allowed));
        let skipped = self.queue(Pending::Execute {
            operation,
            sensitive,
            rows: Arc::clone(&execution.rows),
        });
        (stmt, skipped)
    }

    pub fn close(&mut self, object: Object<'_>) {
        if self.is_skipping() {
            return;
        }
        let (name, removed) = match object {
            Object::Statement(name) => {
                let name = known_as(name);
                let removed = self.statements.remove(&name).map(Removed::Statement);
                (name, removed)
            }
            Object::Portal(name) => {
                let name = known_as(name);
                let removed = self.portals.remove(&name).map(Removed::Portal);
                (name, removed)
            }
        };
        self.queue(Pending::Close {
            name,
            removed,
            naming: self.naming,
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
            self.pending.push_back(pending);
            return Vec::new();
        }
        let skipped = |operation: Operation| operation.done(StatementOutcome::Skipped, None, None);
        match pending {
            Pending::Query { operations, .. } => operations.into_iter().map(skipped).collect(),
            Pending::Execute { operation, .. } => operation.into_iter().map(skipped).collect(),
            _ => Vec::new(),
        }
    }

    /// From here on a known name may mean something else, which only its own leaf tells.
    fn names_move(&mut self, allowed: &Allowed) {
        let does = |any: &[&str]| {
            allowed
                .statements()
                .iter()
                .flat_map(|statement| &statement.verbs)
                .any(|verb| any.contains(&verb.as_str()))
        };
        if does(&RENAMES_STATEMENTS) {
            self.naming += 1;
            self.statements.clear();
        }
        if does(&RENAMES_PORTALS) {
            self.naming += 1;
            for portal in self.portals.values_mut() {
                portal.allowed = None;
            }
        }
    }

    fn number(&mut self) -> u64 {
        let number = self.next_stmt;
        self.next_stmt += 1;
        number
    }

    /// An unknown statement counts as sensitive wherever anything is masked.
    fn sensitive(&self, allowed: Option<&Allowed>) -> bool {
        self.catalogue.masks_anything() && allowed.is_none_or(Allowed::sensitive)
    }
}

fn known_as(name: &[u8]) -> Name {
    name.get(..NAME).unwrap_or(name).to_vec()
}
