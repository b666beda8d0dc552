//! Decide: an operation in, a [`Permit`] or a denial out.
//!
//! Only this file makes a [`Permit`], and only bytes inside one go upstream. A denied message is
//! replaced by one that must fail in the server, so that the server's own error brings the transaction
//! into the state a native refusal would (reference: "Denying one message" in the protocol notes).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::policy::Denial;
use crate::protocol::postgres::frontend::Object;
use crate::protocol::postgres::{Message, encode};
use crate::sql;

mod analyst;
mod judge;
mod meaning;

pub use analyst::{Analysed, Analyst};
pub use judge::{Derived, Disguised, Judge};
pub use meaning::{Meaning, Runs};

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
    pub fn allowed(_proof: &Allowed, message: &Message, shown: Shown<'_>) -> Self {
        Self::message(message, shown)
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

    /// In place of a simple query that runs what nobody may have made: if it does not exist, the server's
    /// own error says so.
    pub fn refused_by_name(shown: &BytesMut, object: Object<'_>) -> Self {
        let mut permit = Self::shown_instead(shown);
        encode::describe(&mut permit.upstream, object);
        permit.and(Self::refused_extended(&BytesMut::new()));
        encode::sync(&mut permit.upstream);
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
        encode::describe(&mut permit.upstream, Object::Portal(portal));
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

/// A text of which every statement may run.
#[derive(Debug, Clone)]
pub struct Allowed {
    statements: Vec<AllowedStatement>,
    evidence: Option<String>,
    sensitive: bool,
    unread: bool,
}

impl Allowed {
    /// The Execute of a portal that nothing can have made: the server refuses it.
    pub fn no_such_portal(portal: &[u8]) -> Self {
        Self {
            statements: vec![AllowedStatement {
                text: portal_shown(portal),
                rule: "sql:no-such-portal".to_owned(),
                verbs: vec![sql::Verb::Execute.action().to_owned()],
                tables: Vec::new(),
                runs: None,
            }],
            evidence: None,
            sensitive: true,
            unread: false,
        }
    }

    /// The Execute of an empty text.
    pub fn nothing() -> Self {
        Self {
            statements: Vec::new(),
            evidence: None,
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
        let all = |of: fn(&AllowedStatement) -> &[String]| -> Vec<String> {
            let set: BTreeSet<&String> = lines().flat_map(of).collect();
            set.into_iter().cloned().collect()
        };
        let texts = |of: fn(&AllowedStatement) -> Option<&str>| {
            let set: BTreeSet<&str> = lines().filter_map(of).collect();
            set.into_iter().collect::<Vec<_>>().join(" or ")
        };
        let runs = texts(|line| line.runs.as_deref());
        let line = AllowedStatement {
            text: texts(|line| Some(&line.text)),
            rule: texts(|line| Some(&line.rule)).replace(" or ", ", "),
            verbs: all(|line| &line.verbs),
            tables: all(|line| &line.tables),
            runs: (!runs.is_empty()).then_some(runs),
        };
        Arc::new(Self {
            statements: vec![line],
            evidence: None,
            sensitive: alternatives.iter().any(|it| it.sensitive),
            unread: alternatives.iter().any(|it| it.unread),
        })
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
                    runs: None,
                };
                statements
            ],
            evidence: None,
            sensitive: false,
            unread: false,
        }
    }

    #[cfg(test)]
    pub(super) fn of_verb(verb: &str) -> Self {
        let mut allowed = Self::for_tests(1);
        allowed.unread = verb == sql::Verb::Unknown.action();
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
    pub text: String,
    pub rule: String,
    pub verbs: Vec<String>,
    pub tables: Vec<String>,
    /// What it runs that it only names, as evidence shows that.
    pub runs: Option<String>,
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
