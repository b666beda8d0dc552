//! What a name stands for: a statement as it was read, decided anew each time that it runs.
//!
//! PostgreSQL keeps statements and cursors under names and runs them when nothing but the name is said.
//! Here the facts of such a statement are kept with the latest decision about it, which holds as long as
//! policies, schema and the statements it runs by name in turn are what they were.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Allowed;
use super::copying::{Copying, Listed};
use super::judge::Derived;
use crate::policy::{Denial, PolicySet};
use crate::sql::{self, MaskUse, Naming, Statement, Table};

/// One statement, as it may be run later.
#[derive(Debug)]
pub struct Meaning {
    pub(super) statement: Arc<Statement>,
    /// Its text as evidence shows it.
    pub(super) shown: Arc<str>,
    /// The statement that it prepares or declares.
    makes: Option<Arc<Meaning>>,
    decided: Mutex<Option<Decided>>,
    types: ParameterTypes,
    copying: OnceLock<Option<Copying>>,
    held: OnceLock<Held>,
}

/// The types of a statement's parameters.
#[derive(Debug, Default)]
struct ParameterTypes {
    /// As the agent gave them, some of them perhaps left to the server.
    given: OnceLock<Arc<[u32]>>,
    /// As the server told an agent that asked.
    described: OnceLock<Arc<[u32]>>,
}

/// The latest decision, and all that it depends on.
#[derive(Debug, Clone)]
pub(super) struct Decided {
    pub(super) policies: Arc<PolicySet>,
    pub(super) derived: Arc<Derived>,
    pub(super) runs: Runs,
    pub(super) allowed: Arc<Allowed>,
}

impl Meaning {
    pub(in crate::session) fn new(
        statement: Statement,
        shown: String,
        makes: Option<Arc<Meaning>>,
    ) -> Self {
        Self {
            statement: Arc::new(statement),
            shown: shown.into(),
            makes,
            decided: Mutex::new(None),
            types: ParameterTypes::default(),
            copying: OnceLock::new(),
            held: OnceLock::new(),
        }
    }

    /// The same statement, prepared once more: with the decision about it, and without what belongs to the
    /// first time.
    pub(super) fn again(&self) -> Self {
        Self {
            statement: Arc::clone(&self.statement),
            shown: Arc::clone(&self.shown),
            makes: self.makes.clone(),
            decided: Mutex::new(self.decided()),
            types: ParameterTypes::default(),
            copying: OnceLock::new(),
            held: OnceLock::new(),
        }
    }

    /// The same of a statement that differs in its text alone, which evidence shows as it is.
    pub(super) fn again_as(&self, text: &str) -> Self {
        let mut statement = Statement::clone(&self.statement);
        text.clone_into(&mut statement.text);
        Self::new(statement, text.to_owned(), None)
    }

    /// What an empty text stands for.
    pub fn nothing() -> Self {
        Self::new(sql::nothing(), String::new(), None)
    }

    pub fn is_nothing(&self) -> bool {
        self.statement.effects.is_empty()
    }

    pub fn naming(&self) -> &Naming {
        &self.statement.naming
    }

    /// Its text as evidence shows it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn copy(&self) -> Option<&sql::copy::Copy> {
        self.statement.copy.as_ref()
    }

    pub fn makes(&self) -> Option<&Arc<Meaning>> {
        self.makes.as_ref()
    }

    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        self.statement.reads.iter().chain(&self.statement.writes)
    }

    pub fn may_run_code(&self) -> bool {
        self.statement.may_run_code()
    }

    /// Whether it touches masked columns: then its parameters and errors are withheld.
    pub fn sensitive(&self) -> bool {
        self.statement.mask != MaskUse::None
    }

    pub fn is_binary_cursor(&self) -> bool {
        self.statement.binary_cursor
    }

    /// The agent gives its parameters these types; 0 leaves one to the server.
    pub fn give_parameter_types(&self, types: &[u32]) {
        // A text is prepared once.
        let _ = self.types.given.set(types.into());
    }

    /// The server says that these are its parameters' types. It never says anything else.
    pub fn describe_parameter_types(&self, types: Vec<u32>) {
        let _ = self.types.described.set(types.into());
    }

    /// As far as they are known; 0 is a type that is not.
    pub fn parameter_types(&self) -> Arc<[u32]> {
        let ParameterTypes { given, described } = &self.types;
        let known = described.get().or_else(|| given.get());
        known.map_or_else(Arc::default, Arc::clone)
    }

    /// What it copies with the client, as it was planned the first time: its text, which lists the columns,
    /// went to the server then.
    pub(super) fn copying(
        &self,
        plan: impl FnOnce() -> Result<(Option<Copying>, Option<Listed>), Denial>,
    ) -> Result<(Option<Copying>, Option<Listed>), Denial> {
        if let Some(planned) = self.copying.get() {
            return Ok((planned.clone(), None));
        }
        let (copying, listed) = plan()?;
        Ok((self.copying.get_or_init(|| copying).clone(), listed))
    }

    /// Counts its size to what a session holds, until nothing holds it any more.
    pub fn hold(&self, total: &Arc<AtomicUsize>) {
        self.held.get_or_init(|| {
            let size = self.statement.text.len() + self.shown.len();
            total.fetch_add(size, Ordering::Relaxed);
            Held {
                total: Arc::clone(total),
                size,
            }
        });
        if let Some(made) = &self.makes {
            made.hold(total);
        }
    }

    pub(super) fn decided(&self) -> Option<Decided> {
        let decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        decided.clone()
    }

    pub(super) fn decide(&self, decided: Decided) {
        *self.decided.lock().unwrap_or_else(PoisonError::into_inner) = Some(decided);
    }
}

/// A part of what a session holds.
#[derive(Debug)]
struct Held {
    total: Arc<AtomicUsize>,
    size: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// What a statement runs that it only names: each of these must be allowed.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    pub statements: Vec<Arc<Meaning>>,
    /// It may also be a statement that code made, of which nothing is known.
    pub unknown: bool,
    /// It fetches from a portal that itself runs a name. The server describes the rows that such a portal
    /// holds back as those of what bears that name now, so their masks cannot be known.
    pub indirect: bool,
}

impl Runs {
    pub fn is_nothing(&self) -> bool {
        self.statements.is_empty() && !self.unknown
    }

    /// Adds a statement; false if it is there already.
    pub fn add(&mut self, meaning: &Arc<Meaning>) -> bool {
        let known = self.statements.iter().any(|it| Arc::ptr_eq(it, meaning));
        if !known {
            self.statements.push(Arc::clone(meaning));
        }
        !known
    }

    pub fn add_all(&mut self, other: &Runs) {
        self.unknown |= other.unknown;
        self.indirect |= other.indirect;
        for meaning in &other.statements {
            self.add(meaning);
        }
    }

    pub(super) fn same(&self, other: &Runs) -> bool {
        self.unknown == other.unknown
            && self.indirect == other.indirect
            && self.statements.len() == other.statements.len()
            && self
                .statements
                .iter()
                .zip(&other.statements)
                .all(|(one, other)| Arc::ptr_eq(one, other))
    }

    /// As evidence says it. What itself only names another statement is left out for that one.
    pub(super) fn shown(&self) -> Option<String> {
        let texts = self
            .statements
            .iter()
            .filter(|it| !matches!(it.naming(), Naming::Execute(_) | Naming::Fetch(_)));
        let mut texts: Vec<&str> = texts.map(|it| &*it.shown).collect();
        if self.unknown {
            texts.push("what code has made of this name, if anything");
        }
        (!texts.is_empty()).then(|| texts.join(" or "))
    }
}
