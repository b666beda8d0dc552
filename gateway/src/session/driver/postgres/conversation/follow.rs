//! What a statement runs that it only names, and what running it does to the names.
//!
//! `EXECUTE q` runs what PREPARE, or a Parse, put under `q`; `FETCH c` what DECLARE, or a Bind, put under
//! `c`. That may be such a statement in turn: a Parse can prepare `EXECUTE q`, and SQL can EXECUTE it.

use std::sync::Arc;

use super::names::{At, Change, Sent};
use super::{Conversation, Portal, known_as};
use crate::session::decide::{Meaning, Runs};
use crate::sql::Naming;

/// Names that stand for statements that run names. A longer chain is not followed, and counts as unknown.
const LONGEST_CHAIN: usize = 16;

/// More statements than this that one statement may run are not told apart any more.
const MOST_RUN: usize = 64;

impl Conversation {
    /// What each statement of a simple query runs by name. Notes what they do to names, which a later one
    /// depends on: [`Conversation::retract`] takes that back if the text is not sent.
    pub fn follow_query(&mut self, statements: &[Arc<Meaning>]) -> Vec<Runs> {
        let first = self.sent(0, false);
        // A simple query takes the unnamed statement and portal away.
        if self.statements.mentions(b"") {
            self.statements.change(first, Change::Remove(Vec::new()));
        }
        if self.portals.mentions(b"") {
            self.portals.change(first, Change::Remove(Vec::new()));
        }
        self.follow_call(statements)
    }

    /// The same for the SELECT that a function call amounts to, which leaves the unnamed ones alone.
    pub fn follow_call(&mut self, statements: &[Arc<Meaning>]) -> Vec<Runs> {
        let mut runs = Vec::with_capacity(statements.len());
        for (part, meaning) in statements.iter().enumerate() {
            let sent = self.sent(part, false);
            let run = self.runs(meaning.naming(), &sent);
            self.note(meaning, &run, &sent, true);
            runs.push(run);
        }
        runs
    }

    /// What a statement that is to be prepared would run by name now. What that is when it runs is decided
    /// then, so that a name nobody knows yet is no reason to refuse it.
    pub fn follow_parse(&self, meaning: &Meaning) -> Runs {
        let runs = self.runs(meaning.naming(), &self.sent(0, true));
        Runs {
            unknown: false,
            indirect: false,
            ..runs
        }
    }

    /// What was noted of the next message is void: it is not sent.
    pub fn retract(&mut self) {
        self.statements.retract(self.message);
        self.portals.retract(self.message);
    }

    pub(super) fn sent(&self, part: usize, extended: bool) -> Sent {
        Sent {
            at: At {
                message: self.message,
                part,
            },
            segment: self.segment,
            extended,
        }
    }

    pub(super) fn runs(&self, naming: &Naming, now: &Sent) -> Runs {
        let mut runs = Runs::default();
        self.follow(naming, now, &mut runs, LONGEST_CHAIN);
        runs
    }

    fn follow(&self, naming: &Naming, now: &Sent, runs: &mut Runs, deeper: usize) {
        match naming {
            Naming::Execute(name) => {
                let found = self.statements.lookup(name.as_bytes(), now);
                runs.unknown |= found.unknown;
                for meaning in &found.known {
                    self.follow_one(meaning, now, runs, deeper);
                }
            }
            Naming::Fetch(name) => {
                let found = self.portals.lookup(name.as_bytes(), now);
                runs.unknown |= found.unknown;
                for portal in &found.known {
                    runs.unknown |= portal.meanings.unknown;
                    for meaning in &portal.meanings.known {
                        let naming = meaning.naming();
                        runs.indirect |= matches!(naming, Naming::Execute(_) | Naming::Fetch(_));
                        self.follow_one(meaning, now, runs, deeper);
                    }
                    // It may hold back rows of what it ran first.
                    if let Some(ran) = portal.ran.get() {
                        runs.add_all(ran);
                    }
                }
            }
            _ => {}
        }
    }

    fn follow_one(&self, meaning: &Arc<Meaning>, now: &Sent, runs: &mut Runs, deeper: usize) {
        if runs.statements.len() >= MOST_RUN || deeper == 0 {
            runs.unknown = true;
        } else if runs.add(meaning) {
            self.follow(meaning.naming(), now, runs, deeper - 1);
        }
    }

    /// Notes what running a statement does to the names; not `sure`, if it is one of several that may run.
    pub(super) fn note(&mut self, meaning: &Arc<Meaning>, runs: &Runs, sent: &Sent, sure: bool) {
        if meaning.may_run_code() {
            self.statements.code_runs(sent);
            self.portals.code_runs(sent);
        }
        self.note_one(meaning, sent, sure);
        let sure = sure && runs.statements.len() == 1;
        for run in &runs.statements {
            self.note_one(run, sent, sure);
        }
        // What code prepares or opens is a query. Only where the gateway has lost count may it be more.
        if runs.unknown && runs.statements.len() >= LONGEST_CHAIN {
            self.anything(sent);
        }
    }

    fn note_one(&mut self, meaning: &Arc<Meaning>, sent: &Sent, sure: bool) {
        match (meaning.naming(), meaning.makes()) {
            (Naming::Prepare { name, .. }, Some(made)) => {
                made.hold(&self.held);
                let change = set(sure, name, Arc::clone(made));
                self.statements.change(*sent, change);
            }
            (Naming::Declare { name, hold, .. }, Some(made)) => {
                made.hold(&self.held);
                let change = set(sure, name, Arc::new(Portal::declared(made, *hold)));
                self.portals.change(*sent, change);
            }
            (Naming::Deallocate(name), _) if sure => self.statements.change(*sent, removed(name)),
            (Naming::Close(name), _) if sure => self.portals.change(*sent, removed(name)),
            (Naming::DiscardAll, _) if sure => {
                self.statements.change(*sent, Change::RemoveAll);
                self.portals.change(*sent, Change::RemoveAll);
            }
            (Naming::Anything, _) => self.anything(sent),
            _ => {}
        }
    }

    pub(super) fn anything(&mut self, sent: &Sent) {
        self.statements.change(*sent, Change::Anything);
        self.portals.change(*sent, Change::Anything);
    }
}

fn set<T>(sure: bool, name: &str, it: T) -> Change<T> {
    let name = known_as(name.as_bytes());
    match sure {
        true => Change::Set(name, it),
        false => Change::PerhapsSet(name, it),
    }
}

fn removed<T>(name: &Option<String>) -> Change<T> {
    match name {
        Some(name) => Change::Remove(known_as(name.as_bytes())),
        None => Change::RemoveAll,
    }
}
