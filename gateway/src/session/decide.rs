//! Decide: an operation in, a [`Permit`] or a denial out.
//!
//! Only this file makes a [`Permit`], and only bytes inside one go upstream. A denied message is
//! replaced by one that must fail in the server, so that the server's own error brings the transaction
//! into the state a native refusal would (reference: "Denying one message" in the protocol notes).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, mpsc};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::watch;
use crate::config::Target;
use crate::policy::masking::MaskRule;
use crate::policy::{Denial, Operation, PolicySet, Principal, Verdict, evaluate};
use crate::protocol::postgres::{Message, encode};
use crate::sql::{self, Facts, MaskUse, Statement, Table};

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

/// A text of which every statement may run.
#[derive(Debug, Clone)]
pub struct Allowed {
    statements: Vec<AllowedStatement>,
    evidence: Option<String>,
    sensitive: bool,
}

impl Allowed {
    /// A portal whose statement was prepared or declared in SQL, where it was decided.
    pub fn prepared_in_sql(portal: &[u8]) -> Self {
        Self {
            statements: vec![AllowedStatement {
                text: format!("EXECUTE portal \"{}\"", String::from_utf8_lossy(portal)),
                rule: "sql:prepared".to_owned(),
                verbs: vec!["sql:execute".to_owned()],
                tables: Vec::new(),
            }],
            evidence: None,
            sensitive: true,
        }
    }

    pub fn statements(&self) -> &[AllowedStatement] {
        &self.statements
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

/// Relations that show masked columns under names of their own: views, children, partitions.
pub type Derived = BTreeSet<Table>;

/// Decides one session's operations.
#[derive(Debug)]
pub struct Judge {
    pub policies: Arc<PolicySet>,
    pub principal: Principal,
    pub target: Arc<Target>,
    pub database: String,
    pub analyst: Arc<Analyst>,
}

impl Judge {
    /// May this agent open a session here?
    pub fn connect(&self, user: &str) -> Verdict {
        evaluate(
            &self.policies,
            &self.principal,
            &Operation::Connect {
                target: &self.target.name,
                database: &self.database,
                user,
            },
        )
    }

    /// May this text run? Every statement in it must be allowed.
    pub async fn sql(&self, text: &[u8], derived: &Derived) -> Ruling {
        let Ok(text) = std::str::from_utf8(text) else {
            return denied_text(
                &String::from_utf8_lossy(text),
                "sql:unknown",
                "the statement is not UTF-8",
                "Send statements as UTF-8 (client_encoding UTF8).",
            );
        };
        let Some(analysed) = self.analyst.analyse(text, &self.target).await else {
            return denied_text(
                "",
                "sql:unknown",
                "the statement could not be analysed in time",
                "Send a shorter or simpler statement.",
            );
        };
        let mut allowed = Vec::with_capacity(analysed.facts.statements.len());
        for (statement, shown) in analysed.facts.statements.iter().zip(&analysed.shown) {
            match self.statement(statement, derived) {
                Verdict::Allow { rule } => allowed.push(line(statement, shown.clone(), rule)),
                Verdict::Deny(denial) => {
                    return Ruling::Denied(Box::new(Denied {
                        denial,
                        statement: shown.clone(),
                        evidence: analysed.evidence,
                    }));
                }
            }
        }
        let sensitive = analysed
            .facts
            .statements
            .iter()
            .any(|statement| statement.mask != MaskUse::None);
        Ruling::Allowed(Arc::new(Allowed {
            statements: allowed,
            evidence: (analysed.evidence != text).then_some(analysed.evidence),
            sensitive,
        }))
    }

    fn statement(&self, statement: &Statement, derived: &Derived) -> Verdict {
        if let Some(denial) = reads_derived(statement, derived) {
            return Verdict::Deny(denial);
        }
        evaluate(
            &self.policies,
            &self.principal,
            &Operation::Sql {
                target: &self.target.name,
                database: &self.database,
                statement,
            },
        )
    }
}

fn reads_derived(statement: &Statement, derived: &Derived) -> Option<Denial> {
    let table = statement
        .reads
        .iter()
        .chain(&statement.writes)
        .find(|table| derived.contains(&qualified(table)))?;
    let name = &table.name;
    Some(Denial {
        rule: "mask:derived".to_owned(),
        message: format!("\"{name}\" shows masked columns under other names"),
        detail: format!(
            "Rule mask:derived: \"{name}\" is a view, child or partition of a table with masked columns."
        ),
        hint: "Select from the table itself; its masked columns come back masked.".to_owned(),
    })
}

/// Unqualified names are looked up in `public`: start-up and policy keep `search_path` as it is.
fn qualified(table: &Table) -> Table {
    Table {
        schema: table.schema.clone().or_else(|| Some("public".to_owned())),
        name: table.name.clone(),
    }
}

fn line(statement: &Statement, text: String, rule: String) -> AllowedStatement {
    let tables: BTreeSet<String> = statement
        .reads
        .iter()
        .chain(&statement.writes)
        .map(ToString::to_string)
        .collect();
    AllowedStatement {
        text,
        rule,
        verbs: statement
            .verbs
            .iter()
            .map(|verb| verb.action().to_owned())
            .collect(),
        tables: tables.into_iter().collect(),
    }
}

fn denied_text(text: &str, rule: &str, message: &str, hint: &str) -> Ruling {
    let shown = sql::evidence_text(text, &Facts::default(), &[]);
    Ruling::Denied(Box::new(Denied {
        denial: Denial {
            rule: rule.to_owned(),
            message: message.to_owned(),
            detail: format!("Rule {rule}."),
            hint: hint.to_owned(),
        },
        statement: shown.clone(),
        evidence: shown,
    }))
}

/// What the parsers made of a text, and what evidence shows of it.
#[derive(Debug)]
struct Analysed {
    facts: Facts,
    evidence: String,
    /// One text per statement.
    shown: Vec<String>,
}

struct Job {
    text: String,
    target: Arc<Target>,
    reply: oneshot::Sender<Analysed>,
}

/// Threads that parse. Deeply nested statements overflow an ordinary stack, which would end the whole
/// process, so parsing happens on stacks of their own size.
#[derive(Debug)]
pub struct Analyst {
    queue: mpsc::Sender<Job>,
}

/// Virtual memory, touched only as deep as a statement nests. sqlparser's drop overflows 2 MiB at
/// 250 kB of chained operators.
const STACK: usize = 512 << 20;

impl Analyst {
    pub fn start(threads: usize) -> std::io::Result<Arc<Self>> {
        let (queue, jobs) = mpsc::channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..threads.max(1) {
            let jobs = Arc::clone(&jobs);
            std::thread::Builder::new()
                .name(format!("analyst-{number}"))
                .stack_size(STACK)
                .spawn(move || work(&jobs))?;
        }
        Ok(Arc::new(Self { queue }))
    }

    async fn analyse(&self, text: &str, target: &Arc<Target>) -> Option<Analysed> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            text: text.to_owned(),
            target: Arc::clone(target),
            reply,
        };
        self.queue.send(job).ok()?;
        tokio::time::timeout(watch::ANALYSIS, answer)
            .await
            .ok()?
            .ok()
    }
}

fn work(jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(poisoned) => poisoned.into_inner().recv(),
        };
        let Ok(Job {
            text,
            target,
            reply,
        }) = job
        else {
            return;
        };
        // A parser that panics denies this statement (no reply) and the thread goes on.
        let analysed = std::panic::catch_unwind(|| analyse(&text, &target.masks));
        if let Ok(analysed) = analysed {
            // The asker may have left: nothing was permitted then.
            let _ = reply.send(analysed);
        }
    }
}

fn analyse(text: &str, masks: &[MaskRule]) -> Analysed {
    let facts = sql::analyse(text, masks);
    let evidence = sql::evidence_text(text, &facts, masks);
    let shown = match &facts.statements[..] {
        [_] => vec![evidence.clone()],
        several => several
            .iter()
            .map(|statement| {
                let alone = Facts {
                    statements: vec![statement.clone()],
                };
                sql::evidence_text(&statement.text, &alone, masks)
            })
            .collect(),
    };
    Analysed {
        facts,
        evidence,
        shown,
    }
}
