//! Decide: an operation in, a [`Permit`] or a denial out.
//!
//! Only this file makes a [`Permit`], and only bytes inside one go upstream. A denied message is
//! replaced by one that must fail in the server, so that the server's own error brings the transaction
//! into the state a native refusal would (reference: "Denying one message" in the protocol notes).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::policy::Denial;
use crate::protocol::postgres::frontend::Frontend;
use crate::protocol::postgres::{Message, encode};
use crate::sql::{self, Facts};

mod analyst;
mod copying;
mod judge;

pub use analyst::Analyst;
pub use copying::{Copying, Layout};
pub use judge::{Derived, Disguised, Judge};

/// The verb of replication commands. No policy decides it: the connection is what is decided.
pub const REPLICATION: &str = "sql:replication";

/// Bytes that may go upstream, and the bytes evidence shows in their place.
#[derive(Debug, Default)]
pub struct Permit {
    upstream: BytesMut,
    evidence: BytesMut,
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
                Some(Self::message(message, shown))
            }
            _ => None,
        }
    }

    /// A message whose statements were all allowed.
    pub fn allowed(proof: &Allowed, message: &Message, shown: Shown<'_>) -> Self {
        let mut permit = Self::message(message, shown);
        if let Some(text) = &proof.upstream {
            permit.upstream = with_text(message, text);
        }
        permit
    }

    /// A message that is kept here, because the server would ignore it.
    pub fn kept(message: &Message) -> Self {
        Self {
            upstream: BytesMut::new(),
            evidence: BytesMut::from(&message.bytes()[..]),
        }
    }

    /// The Sync that was kept.
    pub fn own_sync() -> Self {
        let mut permit = Self::default();
        encode::sync(&mut permit.upstream);
        permit
    }

    /// Makes the server say what it has to say.
    pub fn own_flush() -> Self {
        let mut permit = Self::default();
        encode::flush(&mut permit.upstream);
        permit
    }

    /// In place of a denied simple query: a text that cannot be parsed.
    pub fn refused_query(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        encode::query(
            &mut permit.upstream,
            &format!("sluice denied this statement {}", uuid::Uuid::new_v4()),
        );
        permit
    }

    /// In place of a denied message of the extended protocol: the Execute of a portal nobody has.
    pub fn refused_extended(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        let portal = format!("sluice denied this statement {}", uuid::Uuid::new_v4());
        encode::execute(&mut permit.upstream, portal.as_bytes());
        permit
    }

    /// In place of a function call.
    pub fn refused_call(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        encode::function_call_of_nothing(&mut permit.upstream);
        permit
    }

    /// The gateway's own question about a portal's columns; its answer never reaches the agent.
    pub fn own_describe(portal: &[u8], flush: bool) -> Self {
        let mut permit = Self::default();
        encode::describe_portal(&mut permit.upstream, portal);
        if flush {
            encode::flush(&mut permit.upstream);
        }
        permit
    }

    pub fn and(&mut self, other: Permit) {
        self.upstream.unsplit(other.upstream);
        self.evidence.unsplit(other.evidence);
    }

    pub fn len(&self) -> usize {
        self.upstream.len()
    }

    pub fn is_empty(&self) -> bool {
        self.upstream.is_empty() && self.evidence.is_empty()
    }

    /// (upstream, evidence): for the recorder.
    pub(super) fn into_parts(self) -> (Bytes, Bytes) {
        (self.upstream.freeze(), self.evidence.freeze())
    }

    fn message(message: &Message, shown: Shown<'_>) -> Self {
        let evidence = match shown {
            Shown::AsSent => BytesMut::from(&message.bytes()[..]),
            Shown::Instead(bytes) => bytes.clone(),
            Shown::Nothing => BytesMut::new(),
        };
        Self {
            upstream: BytesMut::from(&message.bytes()[..]),
            evidence,
        }
    }

    fn shown_instead(shown: &BytesMut) -> Self {
        Self {
            upstream: BytesMut::new(),
            evidence: shown.clone(),
        }
    }
}

/// A Query or Parse with another text.
fn with_text(message: &Message, text: &str) -> BytesMut {
    let mut out = BytesMut::new();
    match Frontend::parse(message) {
        Ok(Frontend::Parse { name, .. }) => encode::parse(&mut out, name, text),
        _ => encode::query(&mut out, text),
    }
    out
}

/// A text of which every statement may run.
#[derive(Debug, Clone)]
pub struct Allowed {
    statements: Vec<AllowedStatement>,
    evidence: Option<String>,
    /// The text to send, when it differs from what was sent to us.
    upstream: Option<String>,
    sensitive: bool,
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
                copying: None,
            }],
            evidence: None,
            upstream: None,
            sensitive: true,
        }
    }

    /// A command of the replication protocol: the connection was permitted, and so was what it is for.
    pub fn replication(command: &str, rule: &str) -> Self {
        let text = sql::evidence_text(command, &Facts::default(), &[]);
        Self {
            evidence: (text != command).then(|| text.clone()),
            statements: vec![AllowedStatement {
                text,
                rule: rule.to_owned(),
                verbs: vec![REPLICATION.to_owned()],
                tables: Vec::new(),
                copying: None,
            }],
            upstream: None,
            sensitive: false,
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
                    copying: None,
                };
                statements
            ],
            evidence: None,
            upstream: None,
            sensitive: false,
        }
    }

    #[cfg(test)]
    pub(super) fn of_copies(copies: Vec<Copying>) -> Self {
        let mut allowed = Self::for_tests(copies.len());
        for (statement, copying) in allowed.statements.iter_mut().zip(copies) {
            statement.copying = Some(copying);
        }
        allowed
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
}

/// One statement's line in the log.
#[derive(Debug, Clone)]
pub struct AllowedStatement {
    pub text: String,
    pub rule: String,
    pub verbs: Vec<String>,
    pub tables: Vec<String>,
    /// Present for a COPY with the client.
    pub copying: Option<Copying>,
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
