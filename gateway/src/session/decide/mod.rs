//! Decide: an operation in, a [`Permit`] or a denial out.
//!
//! Only this file makes a [`Permit`], and only bytes inside one go upstream. A denied message is
//! replaced by one that must fail in the server, so that the server's own error brings the transaction
//! into the state a native refusal would (reference: "Denying one message" in the protocol notes).

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::buffers::Gathered;
use crate::policy::Denial;
use crate::protocol::postgres::{Message, Piece, encode};
use crate::sql;

mod analyst;
mod judge;

pub use analyst::Analyst;
pub use judge::{Derived, Disguised, Judge};

/// Bytes that may go upstream, and the bytes evidence shows in their place.
#[derive(Debug, Default)]
pub struct Permit {
    upstream: Gathered,
    evidence: Gathered,
}

/// What evidence shows of a message.
#[derive(Debug, Clone, Copy)]
pub enum Shown<'a> {
    /// The message itself.
    AsSent,
    /// Other bytes: literals or parameters withheld.
    Instead(&'a BytesMut),
    /// Nothing: the message is the gateway's own.
    Nothing,
}

impl Permit {
    /// A message that runs nothing by itself, or runs only what was permitted when it was prepared.
    ///
    /// Nothing that carries statement text passes here: those need an [`Allowed`].
    pub fn control(message: &Message, shown: Shown<'_>) -> Option<Self> {
        match message.tag() {
            b'B' | b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'd' | b'f' => {
                Some(Self::passed(message.bytes(), shown))
            }
            _ => None,
        }
    }

    /// A part of a message that is too long to be held: only COPY data comes that way.
    pub fn piece(piece: &Piece, shown: Shown<'_>) -> Option<Self> {
        (piece.tag() == b'd').then(|| Self::passed(piece.bytes(), shown))
    }

    /// A message whose statements were all allowed.
    pub fn allowed(_proof: &Allowed, message: &Message, shown: Shown<'_>) -> Self {
        Self::passed(message.bytes(), shown)
    }

    /// In place of a denied simple query: a text that cannot be parsed.
    pub fn refused_query(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        let text = format!("sluice denied this statement {}", uuid::Uuid::new_v4());
        permit.upstream.write(|out| encode::query(out, &text));
        permit
    }

    /// In place of a denied message of the extended protocol: the Execute of a portal nobody has.
    pub fn refused_extended(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        let portal = format!("sluice denied this statement {}", uuid::Uuid::new_v4());
        let portal = portal.as_bytes();
        permit.upstream.write(|out| encode::execute(out, portal));
        permit
    }

    /// In place of a function call.
    pub fn refused_call(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        permit.upstream.write(encode::function_call_of_nothing);
        permit
    }

    /// The gateway's own question about a portal's columns; its answer never reaches the agent.
    pub fn own_describe(portal: &[u8]) -> Self {
        let mut permit = Self::default();
        permit
            .upstream
            .write(|out| encode::describe_portal(out, portal));
        permit
    }

    pub fn and(&mut self, other: Permit) {
        self.upstream.append(other.upstream);
        self.evidence.append(other.evidence);
    }

    pub fn len(&self) -> usize {
        self.upstream.len()
    }

    pub fn is_empty(&self) -> bool {
        self.upstream.is_empty() && self.evidence.is_empty()
    }

    /// (upstream, evidence): for the recorder.
    pub(super) fn into_parts(self) -> (Gathered, Gathered) {
        (self.upstream, self.evidence)
    }

    fn passed(bytes: &Bytes, shown: Shown<'_>) -> Self {
        let mut permit = match shown {
            Shown::Instead(bytes) => Self::shown_instead(bytes),
            Shown::AsSent | Shown::Nothing => Self::default(),
        };
        if let Shown::AsSent = shown {
            permit.evidence.push(bytes);
        }
        permit.upstream.push(bytes);
        permit
    }

    fn shown_instead(shown: &BytesMut) -> Self {
        let mut permit = Self::default();
        permit.evidence.write(|out| out.extend_from_slice(shown));
        permit
    }
}

/// A text of which every statement may run.
#[derive(Debug, Clone)]
pub struct Allowed {
    statements: Vec<AllowedStatement>,
    evidence: Option<String>,
    sensitive: bool,
    types: ParameterTypes,
    /// What a decision about its parameters needs.
    facts: Vec<sql::Statement>,
}

/// The types of a prepared statement's parameters.
#[derive(Debug, Clone, Default)]
struct ParameterTypes {
    /// As the agent gave them, some of them perhaps left to the server.
    given: OnceLock<Arc<[u32]>>,
    /// As the server told an agent that asked.
    described: OnceLock<Arc<[u32]>>,
}

impl Allowed {
    /// A portal whose statement was prepared or declared in SQL, where it was decided.
    pub fn prepared_in_sql(portal: &[u8]) -> Self {
        Self {
            statements: vec![AllowedStatement {
                text: format!(
                    "EXECUTE portal \"{}\"",
                    sql::without_cards(&String::from_utf8_lossy(portal))
                ),
                rule: "sql:prepared".to_owned(),
                verbs: vec!["sql:execute".to_owned()],
                tables: Vec::new(),
            }],
            evidence: None,
            sensitive: true,
            types: ParameterTypes::default(),
            facts: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn for_tests(statements: usize) -> Self {
        Self {
            statements: vec![
                AllowedStatement {
                    text: "SELECT 1".to_owned(),
                    rule: "test".to_owned(),
                    verbs: vec!["sql:select".to_owned()],
                    tables: Vec::new(),
                };
                statements
            ],
            evidence: None,
            sensitive: false,
            types: ParameterTypes::default(),
            facts: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn of_verb(verb: &str) -> Self {
        let mut allowed = Self::for_tests(1);
        for statement in &mut allowed.statements {
            statement.verbs = vec![verb.to_owned()];
        }
        allowed
    }

    pub fn statements(&self) -> &[AllowedStatement] {
        &self.statements
    }

    /// Whether a statement in it could not be read.
    pub fn is_unknown(&self) -> bool {
        let mut verbs = self
            .statements
            .iter()
            .flat_map(|statement| &statement.verbs);
        verbs.any(|verb| verb == sql::Verb::Unknown.action())
    }

    /// The text for recording and log, when it differs from what was sent.
    pub fn evidence(&self) -> Option<&str> {
        self.evidence.as_deref()
    }

    /// Whether it touches a table with masked columns: its parameters and its errors are withheld.
    pub fn sensitive(&self) -> bool {
        self.sensitive
    }

    /// The agent prepares it with these parameter types.
    pub fn give_parameter_types(&self, types: Vec<u32>) {
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
}

/// One statement's line in the log.
#[derive(Debug, Clone)]
pub struct AllowedStatement {
    pub text: String,
    pub rule: String,
    pub verbs: Vec<String>,
    pub tables: Vec<String>,
}

/// A text that may not run, because of one of its statements.
#[derive(Debug, Clone)]
pub struct Denied {
    pub denial: Denial,
    /// The denied statement as evidence shows it.
    pub statement: String,
    /// The whole text as evidence shows it.
    pub evidence: String,
}

#[derive(Debug, Clone)]
pub enum Ruling {
    Allowed(Arc<Allowed>),
    Denied(Box<Denied>),
}
