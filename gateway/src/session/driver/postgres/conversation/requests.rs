//! The agent's side: what is sent, in the order it is sent.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::pending::{Operation, Pending};
use super::{Conversation, Execution, Portal};
use crate::policy::Denial;
use crate::protocol::postgres::frontend::Object;
use crate::session::decide::Allowed;

impl Conversation {
    /// A simple query that may run; returns the number of its first statement.
    pub fn query(&mut self, allowed: &Allowed) -> u64 {
        let first = self.next_stmt;
        let operations = allowed
            .statements()
            .iter()
            .map(|_| Operation::new(self.number()))
            .collect();
        self.pending.push_back(Pending::Query {
            operations,
            sensitive: allowed.sensitive(),
        });
        first
    }

    /// A message that was replaced; returns the number its statement would have had.
    pub fn denied(&mut self, denial: Denial, ends_with_ready: bool) -> u64 {
        self.pending.push_back(Pending::Denied {
            denial,
            ends_with_ready,
        });
        self.number()
    }

    pub fn parse(&mut self, name: &[u8], allowed: Arc<Allowed>) {
        let replaced = self.statements.insert(name.to_vec(), Arc::clone(&allowed));
        self.pending.push_back(Pending::Parse {
            name: name.to_vec(),
            allowed,
            replaced,
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
        let allowed = self.statements.get(statement).cloned();
        let sensitive = self.sensitive(allowed.as_deref());
        self.portals.insert(
            portal.to_vec(),
            Portal {
                allowed,
                parameters,
                binary,
            },
        );
        self.pending.push_back(Pending::Bind { sensitive });
        sensitive
    }

    pub fn describe(&mut self) {
        self.pending.push_back(Pending::Describe);
    }

    /// The gateway asks for a portal's columns. With `wait`, the answer names a masked column in
    /// binary, if there is one; it is dropped when the server never got to it.
    pub fn own_describe(&mut self, wait: bool) -> Option<oneshot::Receiver<Option<String>>> {
        // A server that is skipping to the next Sync would not answer.
        let (sender, receiver) = if wait && !self.failed {
            let (sender, receiver) = oneshot::channel();
            (Some(sender), Some(receiver))
        } else {
            (None, None)
        };
        self.pending
            .push_back(Pending::OwnDescribe { binary: sender });
        receiver
    }

    /// What an Execute of this portal would run.
    pub fn execution(&self, portal: &[u8]) -> Execution {
        let known = self.portals.get(portal);
        let allowed = known.and_then(|portal| portal.allowed.clone());
        Execution {
            allowed: allowed.unwrap_or_else(|| Arc::new(Allowed::prepared_in_sql(portal))),
            parameters: known.map(|portal| portal.parameters),
            binary: known.is_none_or(|portal| portal.binary),
        }
    }

    /// Returns the number of the statement that is executed.
    pub fn execute(&mut self, execution: &Execution) -> u64 {
        let operation = match execution.allowed.statements() {
            [] => None,
            _ => Some(Operation::new(self.number())),
        };
        let stmt = operation.as_ref().map_or(self.next_stmt, |it| it.stmt);
        let sensitive = self.sensitive(Some(&execution.allowed));
        self.pending.push_back(Pending::Execute {
            operation,
            sensitive,
        });
        stmt
    }

    pub fn close(&mut self, object: Object<'_>) {
        let (name, removed) = match object {
            Object::Statement(name) => (Some(name.to_vec()), self.statements.remove(name)),
            Object::Portal(name) => {
                self.portals.remove(name);
                (None, None)
            }
        };
        self.pending.push_back(Pending::Close { name, removed });
    }

    pub fn sync(&mut self) {
        if !self.copy_in {
            self.pending.push_back(Pending::Sync);
        }
    }

    pub fn copy_end(&mut self) {
        if !std::mem::take(&mut self.copy_in) {
            self.pending.push_back(Pending::CopyEnd);
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
