//! The agent's side: what is sent, in the order it is sent.

use std::sync::{Arc, OnceLock};

use super::names::{Change, MOST_POSSIBILITIES, Possible};
use super::pending::{Operation, Pending, Refused, Results};
use super::{Alternative, Conversation, Execution, Portal, known_as};
use crate::audit::event::StatementOutcome;
use crate::policy::Denial;
use crate::protocol::postgres::frontend::Object;
use crate::session::decide::{Allowed, Meaning};
use crate::session::driver::postgres::bound::{Bound, Keeping};
use crate::session::record::Outcome;

impl Conversation {
    /// A simple query that may run; returns the number of its first statement, and the outcomes of its
    /// statements when they are known already.
    pub fn query(&mut self, allowed: &Allowed) -> (u64, Vec<Outcome>) {
        let replicates = allowed.statements().iter().any(super::copy::replicates);
        let results = match allowed.is_unknown() || replicates {
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
            .map(|statement| Operation::of(statement, self.number()))
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
    pub fn denied(&mut self, denial: Denial, refused: Refused) -> u64 {
        self.queue(Pending::Denied { denial, refused });
        if !refused.ends_with_ready() {
            self.doomed = Some(self.segment);
        }
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
        let number = self.denied(denial, Refused::UnnamedParse);
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

    /// How the parameters bound to a statement are to be kept.
    pub fn keeping(&self, statement: &[u8]) -> Keeping {
        let meanings = self
            .statements
            .lookup(&known_as(statement), &self.sent(0, true));
        let types = meanings.only().map(|only| only.parameter_types());
        Keeping {
            types: types.unwrap_or_default(),
            withheld: self.is_sensitive(&meanings),
            held: self.parameters_held.clone(),
        }
    }

    /// The same for the arguments of a function call: a target with masks takes none.
    pub fn keeping_arguments(&self, types: Arc<[u32]>) -> Keeping {
        Keeping {
            types,
            withheld: false,
            held: self.parameters_held.clone(),
        }
    }

    /// An unknown statement counts as sensitive wherever anything is masked.
    fn is_sensitive(&self, meanings: &Possible<Arc<Meaning>>) -> bool {
        let open = !meanings.unknown && meanings.known.iter().all(|it| !it.sensitive());
        self.catalogue.masks_anything() && !open
    }

    pub fn bind(&mut self, portal: &[u8], statement: &[u8], bound: Bound) {
        let sent = self.sent(0, true);
        let meanings = self.statements.lookup(&known_as(statement), &sent);
        let sensitive = self.is_sensitive(&meanings);
        let portal = known_as(portal);
        let made = Portal {
            meanings,
            ran: OnceLock::new(),
            bound: Some(Arc::new(bound)),
            hold: false,
            rows: OnceLock::new(),
        };
        self.portals
            .change(sent, Change::Set(portal, Arc::new(made)));
        self.queue(Pending::Bind {
            message: self.message,
            sensitive,
        });
    }

    pub fn describe(&mut self, object: Object<'_>) {
        let statement = match object {
            Object::Statement(name) => self
                .statements
                .lookup(&known_as(name), &self.sent(0, true))
                .only()
                .cloned(),
            Object::Portal(_) => None,
        };
        let portal = match object {
            Object::Statement(_) => None,
            Object::Portal(name) => Some(known_as(name)),
        };
        let described = portal.clone();
        self.queue(Pending::Describe { statement, portal });
        self.described = described;
    }

    /// Whether the agent has just asked for the columns of the portal that is to be executed: then the
    /// gateway learns them from that answer.
    pub fn is_described(&self, execution: &Execution) -> bool {
        self.described.as_ref() == Some(&execution.portal)
    }

    /// The gateway asks for the columns of the portal that is to be executed: the answer is here before
    /// the first row.
    pub fn own_describe(&mut self, execution: &Execution) {
        self.queue(Pending::OwnDescribe {
            portal: execution.portal.clone(),
        });
    }

    /// What an Execute of this portal would run.
    pub fn execution(&self, portal: &[u8]) -> Execution {
        let portal = known_as(portal);
        let now = self.sent(0, true);
        let Possible { known, mut unknown } = self.portals.lookup(&portal, &now);
        let mut alternatives = Vec::with_capacity(known.len());
        for it in &known {
            unknown |= it.meanings.unknown;
            for meaning in &it.meanings.known {
                let mut runs = self.runs(meaning.naming(), &now);
                if let Some(ran) = it.ran.get() {
                    runs.add_all(ran);
                }
                alternatives.push(Alternative {
                    meaning: Arc::clone(meaning),
                    runs,
                    bound: it.bound.clone(),
                });
            }
        }
        Execution {
            portal,
            alternatives,
            unknown,
            bound: known.first().and_then(|it| it.bound.clone()),
            portals: known,
        }
    }

    /// Returns the number of the statement that is executed, and its outcome when that is known already.
    pub fn execute(&mut self, execution: &Execution, allowed: &Allowed) -> (u64, Vec<Outcome>) {
        let operation = match allowed.statements() {
            [] => None,
            [statement, ..] => Some(Operation::of(statement, self.number())),
        };
        let stmt = operation.as_ref().map_or(self.next_stmt, |it| it.stmt);
        let sent = self.sent(0, true);
        let sure = execution.alternatives.len() == 1 && !execution.unknown;
        for Alternative { meaning, runs, .. } in &execution.alternatives {
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

    /// Remembers a message whose answer is to come. What the server skips is never answered: then the
    /// outcomes of its statements come back.
    fn queue(&mut self, pending: Pending) -> Vec<Outcome> {
        self.described = None;
        if !self.is_skipping() {
            if self.is_doomed() {
                self.retract();
            }
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
