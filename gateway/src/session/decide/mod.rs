//! Decide: an operation in, a [`Permit`] or a denial out.
//!
//! Only this file makes a [`Permit`], and only bytes inside one go upstream. A denied message is
//! replaced by one that must fail in the server, so that the server's own error brings the transaction
//! into the state a native refusal would (reference: "Denying one message" in the protocol notes).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::buffers::Gathered;
use crate::policy::Denial;
use crate::protocol::postgres::frontend::{Frontend, Object};
use crate::protocol::postgres::{Message, Piece, encode};
use crate::sql::{self, Facts};

mod alike;
mod analyst;
mod copying;
mod judge;
mod known;
mod meaning;
mod remembered;

pub use analyst::{Analysed, Analyst};
pub use copying::{Copying, Layout};
pub use judge::{Derived, Disguised, Judge};
pub use known::{Found, Known, Sent};
pub use meaning::{Meaning, Runs};

/// The verb of replication commands. No policy decides it: the connection is what is decided.
pub const REPLICATION: &str = "sql:replication";

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
    pub fn allowed(proof: &Allowed, message: &Message, shown: Shown<'_>) -> Self {
        let Some(text) = &proof.upstream else {
            return Self::passed(message.bytes(), shown);
        };
        let mut permit = Self::default();
        permit.upstream.write(|out| with_text(out, message, text));
        match shown {
            Shown::AsSent => permit.evidence.push(message.bytes()),
            Shown::Instead(bytes) => permit.evidence.write(|out| out.extend_from_slice(bytes)),
            Shown::Nothing => {}
        }
        permit
    }

    /// A message that is kept here, because the server would ignore it.
    pub fn kept(message: &Message) -> Self {
        let mut permit = Self::default();
        permit.evidence.push(message.bytes());
        permit
    }

    /// The Sync that was kept.
    pub fn own_sync() -> Self {
        let mut permit = Self::default();
        permit.upstream.write(encode::sync);
        permit
    }

    /// Makes the server say what it has to say.
    pub fn own_flush() -> Self {
        let mut permit = Self::default();
        permit.upstream.write(encode::flush);
        permit
    }

    /// In place of a denied simple query: a text that cannot be parsed.
    pub fn refused_query(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        let text = impossible();
        permit.upstream.write(|out| encode::query(out, &text));
        permit
    }

    /// In place of a denied Parse without a name: a text that cannot be parsed either. The unnamed statement
    /// of before is gone when that fails, as it would be if the server had refused.
    pub fn refused_unnamed_parse(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        let text = impossible();
        permit.upstream.write(|out| encode::parse(out, b"", &text));
        permit
    }

    /// In place of any other denied message of the extended protocol: the Execute of a portal nobody has,
    /// which leaves everything as it is.
    pub fn refused_extended(shown: &BytesMut) -> Self {
        let mut permit = Self::shown_instead(shown);
        let portal = impossible();
        let portal = portal.as_bytes();
        permit.upstream.write(|out| encode::execute(out, portal));
        permit
    }

    /// In place of a simple query that runs what nobody may have made: if it does not exist, the server's
    /// own error says so.
    pub fn refused_by_name(shown: &BytesMut, object: Object<'_>) -> Self {
        let mut permit = Self::shown_instead(shown);
        permit.upstream.write(|out| encode::describe(out, object));
        permit.and(Self::refused_unnamed_parse(&BytesMut::new()));
        permit.upstream.write(encode::sync);
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
            .write(|out| encode::describe(out, Object::Portal(portal)));
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

/// A Query or Parse with another text.
fn with_text(out: &mut BytesMut, message: &Message, text: &str) {
    match Frontend::parse(message) {
        Ok(Frontend::Parse { name, .. }) => encode::parse(out, name, text),
        _ => encode::query(out, text),
    }
}

/// A text of which every statement may run.
#[derive(Debug, Clone)]
pub struct Allowed {
    statements: Vec<AllowedStatement>,
    evidence: Option<String>,
    /// The text to send, when it differs from what was sent to us.
    upstream: Option<String>,
    sensitive: bool,
    unread: bool,
}

impl Allowed {
    /// The Execute of a portal that nothing can have made: the server refuses it.
    pub fn no_such_portal(portal: &[u8]) -> Self {
        Self {
            statements: vec![AllowedStatement {
                text: portal_shown(portal).into(),
                rule: "sql:no-such-portal".into(),
                verbs: [sql::Verb::Execute.action().to_owned()].into(),
                tables: Arc::default(),
                copying: None,
                runs: None,
            }],
            evidence: None,
            upstream: None,
            sensitive: true,
            unread: false,
        }
    }

    /// A command of the replication protocol: the connection was permitted, and so was what it is for.
    pub fn replication(command: &str, rule: &str) -> Self {
        let text = sql::evidence_text(command, &Facts::default(), &[]);
        Self {
            evidence: (text != command).then(|| text.clone()),
            statements: vec![AllowedStatement {
                text: text.into(),
                rule: rule.into(),
                verbs: [REPLICATION.to_owned()].into(),
                tables: Arc::default(),
                copying: None,
                runs: None,
            }],
            upstream: None,
            sensitive: false,
            unread: false,
        }
    }

    /// One statement, which went upstream before in other numbers.
    fn again(statement: AllowedStatement) -> Self {
        Self {
            statements: vec![statement],
            ..Self::nothing()
        }
    }

    /// The Execute of an empty text.
    pub fn nothing() -> Self {
        Self {
            statements: Vec::new(),
            evidence: None,
            upstream: None,
            sensitive: false,
            unread: false,
        }
    }

    /// One of these runs, all of which are allowed: which one is not known.
    pub fn one_of(alternatives: &[Arc<Allowed>]) -> Arc<Self> {
        if let [only] = alternatives {
            return Arc::clone(only);
        }
        let lines = || alternatives.iter().flat_map(|it| &it.statements);
        let all = |of: fn(&AllowedStatement) -> &[String]| -> Arc<[String]> {
            let set: BTreeSet<&String> = lines().flat_map(of).collect();
            set.into_iter().cloned().collect()
        };
        let texts = |of: fn(&AllowedStatement) -> Option<&str>| {
            let set: BTreeSet<&str> = lines().filter_map(of).collect();
            set.into_iter().collect::<Vec<_>>().join(" or ")
        };
        let runs = texts(|line| line.runs.as_deref());
        let line = AllowedStatement {
            text: texts(|line| Some(&line.text)).into(),
            rule: texts(|line| Some(&line.rule)).replace(" or ", ", ").into(),
            verbs: all(|line| &line.verbs),
            tables: all(|line| &line.tables),
            copying: None,
            runs: (!runs.is_empty()).then_some(runs),
        };
        Arc::new(Self {
            statements: vec![line],
            evidence: None,
            upstream: None,
            sensitive: alternatives.iter().any(|it| it.sensitive),
            unread: alternatives.iter().any(|it| it.unread),
        })
    }

    #[cfg(test)]
    pub(super) fn for_tests(statements: usize) -> Self {
        Self {
            statements: vec![
                AllowedStatement {
                    text: "SELECT 1".into(),
                    rule: "test".into(),
                    verbs: ["sql:select".to_owned()].into(),
                    tables: Arc::default(),
                    copying: None,
                    runs: None,
                };
                statements
            ],
            evidence: None,
            upstream: None,
            sensitive: false,
            unread: false,
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
        allowed.unread = verb == sql::Verb::Unknown.action();
        for statement in &mut allowed.statements {
            statement.verbs = [verb.to_owned()].into();
        }
        allowed
    }

    pub fn statements(&self) -> &[AllowedStatement] {
        &self.statements
    }

    /// Whether a statement in it could not be read.
    pub fn is_unknown(&self) -> bool {
        self.unread
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
    pub text: Arc<str>,
    pub rule: Arc<str>,
    pub verbs: Arc<[String]>,
    pub tables: Arc<[String]>,
    /// Present for a COPY with the client.
    pub copying: Option<Copying>,
    /// What it runs that it only names, as evidence shows that.
    pub runs: Option<String>,
}

/// No statement, and nobody's portal: the number keeps an agent from making one of this name.
fn impossible() -> String {
    format!("sluice denied this statement {}", uuid::Uuid::new_v4())
}

/// What evidence shows of a portal of which it knows nothing else.
pub fn portal_shown(portal: &[u8]) -> String {
    let name = String::from_utf8_lossy(portal);
    format!("EXECUTE portal \"{}\"", sql::without_cards(&name))
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

impl Denied {
    /// Whether all that is against it is a name of which nothing is known.
    pub fn is_of_unknown_name(&self) -> bool {
        self.denial.rule == judge::UNKNOWN_PREPARED
    }
}

#[derive(Debug, Clone)]
pub enum Ruling {
    Allowed(Arc<Allowed>),
    Denied(Box<Denied>),
}
