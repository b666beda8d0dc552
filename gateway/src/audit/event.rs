//! The events of the evidence log: one per line, each complete in itself.
//!
//! An auditor filters lines by agent or target without joining them, so every event of a session carries
//! the whole [`Who`]. A statement has two events, `stmt.intent` before it goes upstream and `stmt.result`
//! after the agent has its answer: an intent without a result is a statement whose outcome nobody saw.
//!
//! Statement texts arrive here already scrubbed of masked values and passwords; nothing in this module
//! may ever hold a credential or a token.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The identity of one session: a UUID version 7, so that ids sort by start time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(uuid::Uuid);

impl SessionId {
    /// A new id for a session that starts at `now`.
    pub fn new(now: SystemTime) -> SessionId {
        let since_epoch = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let timestamp = uuid::Timestamp::from_unix(
            uuid::NoContext,
            since_epoch.as_secs(),
            since_epoch.subsec_nanos(),
        );
        SessionId(uuid::Uuid::new_v7(timestamp))
    }

    /// The last eight characters: what a person reads and types. The first eight would be the same for
    /// all sessions of one minute.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.split_off(text.len() - 8)
    }

    /// Whether `query` is the beginning or the end of this id.
    pub fn matches(&self, query: &str) -> bool {
        let (text, query) = (self.to_string(), query.to_ascii_lowercase());
        !query.is_empty() && (text.starts_with(&query) || text.ends_with(&query))
    }

    /// The one id among `ids` that `query` abbreviates.
    pub fn resolve(
        query: &str,
        ids: impl IntoIterator<Item = SessionId>,
    ) -> Result<SessionId, UnresolvedSession> {
        let mut found: Vec<SessionId> = ids.into_iter().filter(|id| id.matches(query)).collect();
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [] => Err(UnresolvedSession::Unknown(query.to_owned())),
            [id] => Ok(*id),
            _ => Err(UnresolvedSession::Ambiguous {
                query: query.to_owned(),
                ids: found,
            }),
        }
    }
}

/// Why an abbreviated session id names no session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnresolvedSession {
    #[error("no session matches {0:?}; `sluice sessions` lists them")]
    Unknown(String),
    #[error("{query:?} matches {} sessions: {}; give more of the id", ids.len(), list(ids))]
    Ambiguous { query: String, ids: Vec<SessionId> },
}

fn list(ids: &[SessionId]) -> String {
    let shown: Vec<String> = ids.iter().take(5).map(SessionId::to_string).collect();
    let more = if ids.len() > shown.len() { ", …" } else { "" };
    shown.join(", ") + more
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// The text is not a session id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a session id (a UUID such as 0198c5a2-7b1e-7c3d-9f00-5d1c2b3a4e5f)")]
pub struct InvalidSessionId(String);

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    /// Only the hyphenated form: a session has one spelling, in the log and in file names.
    fn from_str(text: &str) -> Result<SessionId, InvalidSessionId> {
        let invalid = || InvalidSessionId(text.chars().take(64).collect());
        if text.len() != 36 {
            return Err(invalid());
        }
        uuid::Uuid::try_parse(text)
            .map(SessionId)
            .map_err(|_| invalid())
    }
}

impl Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<SessionId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Who a session belongs to, as far as it was established when the event was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Who {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The connecting process as `identity::process` saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<serde_json::Value>,
    /// The agent's socket address.
    #[serde(default)]
    pub client: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The database the agent asked for, where a policy had another one opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_asked: Option<String>,
    /// The database user the agent asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_user: Option<String>,
    /// The role that the gateway logs in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub db_role: Option<String>,
}

/// Which PostgreSQL sub-protocol carried a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatementProtocol {
    Simple,
    Extended,
    /// A function call outside of SQL.
    Call,
}

/// A parameter a statement was run with, as far as evidence shows it; the recording has it whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// PostgreSQL's name of its type, or the type's number in this database; none where nobody named it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub of_type: Option<String>,
    /// As PostgreSQL would print it. None is NULL, unless it is withheld.
    pub value: Option<String>,
    /// `value` is the bytes in hexadecimal: in binary, and of a type that cannot be read here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hex: bool,
    /// Of a value that is shown only in part: how many bytes were sent …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// … and their SHA-256, in lower-case hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// It may be a masked column's: neither here nor in the recording.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
}

/// What the policy said to a statement that went upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    Allow,
}

/// How a forwarded statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatementOutcome {
    Ok,
    Error,
    /// Never executed: an earlier statement of the same batch failed.
    Skipped,
    /// A portal with rows left (PortalSuspended).
    Suspended,
    /// The session ended before the target answered.
    Aborted,
}

/// A call that the kernel denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedCall {
    pub tgid: u32,
    pub uid: u32,
    /// Chosen by the process itself: for display only.
    pub comm: String,
    /// `192.0.2.7:5432`; none where the hook cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// `tcp`, `udp`, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// Where on its way a connection or statement was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Accept,
    Identify,
    Startup,
    Connect,
    Upstream,
    Statement,
    Mask,
    Protocol,
    Storage,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionOutcome {
    /// Either side said good-bye.
    Closed,
    /// Refused before it was open.
    Denied,
    Error,
    /// Bytes that are not the protocol, from either side.
    ProtocolError,
    /// Nothing was said for longer than the target's idle_timeout_seconds.
    Idle,
    /// The gateway was told to stop.
    Shutdown,
    /// The gateway died; written by the next start.
    Crashed,
}

/// What every event of a session begins with: written once, since it is most of a line.
#[derive(Clone, Debug)]
pub struct Preamble(Box<[u8]>);

impl Preamble {
    /// # Errors
    /// What cannot be written as JSON.
    pub fn new(session: SessionId, who: &Who) -> Result<Preamble, serde_json::Error> {
        #[derive(Serialize)]
        struct Members<'a> {
            session: SessionId,
            #[serde(flatten)]
            who: &'a Who,
        }
        let mut bytes = serde_json::to_vec(&Members { session, who })?;
        // An object's members without its braces.
        bytes.pop();
        bytes.remove(0);
        Ok(Preamble(bytes.into_boxed_slice()))
    }

    /// `"session":"…","agent":…`
    pub fn members(&self) -> &[u8] {
        &self.0
    }
}

/// An event of a session behind its [`Preamble`]: the members of the [`Event`] of the same name.
pub trait OfSession: Serialize {
    /// As [`Event`] serialises it.
    const NAME: &'static str;
}

/// [`Event::StmtIntent`], as written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StmtIntent<'a> {
    pub stmt: u64,
    pub protocol: StatementProtocol,
    pub statement: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<&'a str>,
    pub decision: Decision,
    pub rule: &'a str,
    pub verbs: &'a [String],
    pub tables: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<usize>,
    #[serde(skip_serializing_if = "<[Parameter]>::is_empty")]
    pub parameters: &'a [Parameter],
}

impl OfSession for StmtIntent<'_> {
    const NAME: &'static str = "stmt.intent";
}

/// [`Event::StmtResult`], as written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StmtResult<'a> {
    pub stmt: u64,
    pub outcome: StatementOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqlstate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<&'a str>,
    pub rows: u64,
    pub bytes: u64,
    pub masked: u64,
    pub duration_us: u64,
}

/// [`Event::Deny`] in a session, as written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DenyOfSession<'a> {
    pub stage: Stage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stmt: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<&'a str>,
    pub rule: &'a str,
    pub reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'a str>,
}

impl OfSession for DenyOfSession<'_> {
    const NAME: &'static str = "deny";
}

/// [`Event::SessionClose`], as written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SessionClose<'a> {
    pub outcome: SessionOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    pub statements: u64,
    pub denied: u64,
    pub rows: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub masked: u64,
    pub duration_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording_sha256: Option<&'a str>,
    pub recording_frames: u64,
}

impl OfSession for SessionClose<'_> {
    const NAME: &'static str = "session.close";
}

impl OfSession for StmtResult<'_> {
    const NAME: &'static str = "stmt.result";
}

/// One event. The serialised name is the `event` member of its line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum Event {
    #[serde(rename = "gateway.start")]
    GatewayStart {
        version: String,
        pid: u32,
        config_sha256: String,
        policy_sha256: String,
        /// The process it took the listeners over from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        predecessor: Option<u32>,
    },
    /// Nothing new is accepted; the process ends when its open sessions have.
    #[serde(rename = "gateway.handover")]
    GatewayHandover {
        pid: u32,
        successor: u32,
        open_sessions: u64,
    },
    /// A successor did not come up, or not in time: the gateway goes on as before.
    #[serde(rename = "gateway.handover_failed")]
    GatewayHandoverFailed { pid: u32, reason: String },
    #[serde(rename = "gateway.stop")]
    GatewayStop {
        reason: String,
        /// Tells which of several gateways that share the log during a hand-over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// The log shows a start without a stop: written by the next start.
    #[serde(rename = "gateway.crashed")]
    GatewayCrashed {
        last_start_seq: u64,
        open_sessions: Vec<SessionId>,
    },
    /// The log ended in the middle of a line; these are that line's bytes, in hex.
    #[serde(rename = "log.recovered")]
    LogRecovered { torn_bytes: String },
    #[serde(rename = "session.open")]
    SessionOpen {
        session: SessionId,
        #[serde(flatten)]
        who: Who,
        /// The address the agent dialled.
        original: String,
        /// The name it was given that address for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        policy_sha256: String,
        rule: String,
        /// The address the gateway dialled.
        upstream: String,
        backend_pid: i32,
        tls: bool,
        /// The version of the agent's own TLS (`TLSv1.3`), if it came with TLS.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent_tls: Option<String>,
        /// A replication connection: what passes is recorded and not looked at.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        replication: bool,
        /// File name below the recordings directory.
        recording: String,
    },
    #[serde(rename = "stmt.intent")]
    StmtIntent {
        session: SessionId,
        #[serde(flatten)]
        who: Who,
        /// Number of the statement in its session, from 1.
        stmt: u64,
        protocol: StatementProtocol,
        statement: String,
        /// What it runs that it only names: the statement behind an EXECUTE, the query behind a FETCH.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        runs: Option<String>,
        decision: Decision,
        rule: String,
        verbs: Vec<String>,
        tables: Vec<String>,
        /// How many parameters were bound.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        params: Option<usize>,
        /// The first of them, in order, as many as fit.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        parameters: Vec<Parameter>,
    },
    #[serde(rename = "stmt.result")]
    StmtResult {
        session: SessionId,
        #[serde(flatten)]
        who: Who,
        stmt: u64,
        outcome: StatementOutcome,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sqlstate: Option<String>,
        /// The command tag, such as `SELECT 3`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        rows: u64,
        /// Payload bytes of those rows as delivered.
        bytes: u64,
        /// How many values were masked.
        masked: u64,
        duration_us: u64,
    },
    #[serde(rename = "deny")]
    Deny {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionId>,
        #[serde(flatten)]
        who: Who,
        stage: Stage,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stmt: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        statement: Option<String>,
        rule: String,
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// What the kernel denied an agent in about a second, by reason: the count is exact.
    #[serde(rename = "kernel.denied")]
    KernelDenied {
        /// The agent of the subtree; none when no agent is registered for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<String>,
        /// Path of the subtree relative to the cgroup mount; none when it is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cgroup: Option<String>,
        cgroup_id: u64,
        reason: String,
        count: u64,
        /// Some of the calls, as many as there was room for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        samples: Vec<DeniedCall>,
    },
    /// One question to the resolver.
    #[serde(rename = "dns.query")]
    DnsQuery {
        #[serde(flatten)]
        who: Who,
        /// The resolver the agent asked.
        resolver: String,
        /// `udp` or `tcp`.
        transport: String,
        name: String,
        /// `A`, `AAAA` …
        qtype: String,
        /// `NOERROR`, `NXDOMAIN`, `REFUSED` …
        rcode: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        answers: Vec<String>,
        /// Why it was not answered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<String>,
        /// How many questions like this one the leaf stands for: those over the rate limit share leaves.
        count: u64,
    },
    /// The gateway listens in another network namespace.
    #[serde(rename = "netns.registered")]
    NetnsRegistered {
        netns_cookie: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<String>,
        cgroup_id: u64,
        tgid: u32,
    },
    /// Interception is not what it should be.
    #[serde(rename = "guard.alarm")]
    GuardAlarm { problems: Vec<String>, frozen: bool },
    /// It is again.
    #[serde(rename = "guard.cleared")]
    GuardCleared {},
    /// A cancel request of the session's own agent, passed on to the target.
    #[serde(rename = "cancel.request")]
    CancelRequest {
        /// The session whose statement is to be cancelled.
        session: SessionId,
        #[serde(flatten)]
        who: Who,
    },
    /// A connection that was accepted and ended before it asked for anything: no connect is without a
    /// line.
    #[serde(rename = "connection.silent")]
    ConnectionSilent {
        connection: SessionId,
        #[serde(flatten)]
        who: Who,
    },
    #[serde(rename = "session.close")]
    SessionClose {
        session: SessionId,
        #[serde(flatten)]
        who: Who,
        outcome: SessionOutcome,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Statements the agent sent, the denied ones included.
        statements: u64,
        denied: u64,
        rows: u64,
        /// Bytes from the agent.
        bytes_in: u64,
        /// Bytes to the agent.
        bytes_out: u64,
        masked: u64,
        duration_us: u64,
        /// SHA-256 of the finished recording file; none when there is no recording.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recording_sha256: Option<String>,
        recording_frames: u64,
    },
}

impl Event {
    /// The session this event belongs to.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Event::SessionOpen { session, .. }
            | Event::StmtIntent { session, .. }
            | Event::StmtResult { session, .. }
            | Event::CancelRequest { session, .. }
            | Event::SessionClose { session, .. } => Some(*session),
            Event::Deny { session, .. } => *session,
            Event::GatewayStart { .. }
            | Event::GatewayStop { .. }
            | Event::GatewayCrashed { .. }
            | Event::GatewayHandover { .. }
            | Event::GatewayHandoverFailed { .. }
            | Event::ConnectionSilent { .. }
            | Event::KernelDenied { .. }
            | Event::DnsQuery { .. }
            | Event::NetnsRegistered { .. }
            | Event::GuardAlarm { .. }
            | Event::GuardCleared {}
            | Event::LogRecovered { .. } => None,
        }
    }

    /// Who it is about.
    pub fn who(&self) -> Option<&Who> {
        match self {
            Event::SessionOpen { who, .. }
            | Event::StmtIntent { who, .. }
            | Event::StmtResult { who, .. }
            | Event::Deny { who, .. }
            | Event::CancelRequest { who, .. }
            | Event::DnsQuery { who, .. }
            | Event::ConnectionSilent { who, .. }
            | Event::SessionClose { who, .. } => Some(who),
            Event::GatewayStart { .. }
            | Event::GatewayHandover { .. }
            | Event::GatewayHandoverFailed { .. }
            | Event::GatewayStop { .. }
            | Event::GatewayCrashed { .. }
            | Event::KernelDenied { .. }
            | Event::NetnsRegistered { .. }
            | Event::GuardAlarm { .. }
            | Event::GuardCleared {}
            | Event::LogRecovered { .. } => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn session(n: u8) -> SessionId {
        format!("0198c5a2-7b1e-7c3d-9f00-5d1c2b3a4e{n:02x}")
            .parse()
            .unwrap()
    }

    pub(crate) fn who() -> Who {
        Who {
            agent: Some("report-bot".into()),
            subject: Some("report-bot@corp".into()),
            groups: vec!["reporting".into()],
            process: Some(serde_json::json!({"tgid": 7, "comm": "psql"})),
            client: "127.0.0.1:40000".into(),
            target: Some("shop".into()),
            database: Some("shop".into()),
            database_asked: None,
            db_user: Some("me".into()),
            db_role: Some("shop_app".into()),
        }
    }

    pub(crate) fn open(n: u8) -> Event {
        Event::SessionOpen {
            session: session(n),
            who: who(),
            original: "127.0.0.1:5432".into(),
            host: None,
            policy_sha256: "ab".repeat(32),
            rule: "agents-may-connect".into(),
            upstream: "127.0.0.1:5432".into(),
            backend_pid: 4711,
            tls: false,
            agent_tls: Some("TLSv1.3".to_owned()),
            replication: false,
            recording: format!("{}.slrec", session(n)),
        }
    }

    pub(crate) fn intent(n: u8, stmt: u64, statement: &str) -> Event {
        Event::StmtIntent {
            session: session(n),
            who: who(),
            stmt,
            protocol: StatementProtocol::Simple,
            statement: statement.into(),
            runs: None,
            decision: Decision::Allow,
            rule: "read-only".into(),
            verbs: vec!["sql:select".into()],
            tables: vec!["public.customers".into()],
            params: None,
            parameters: Vec::new(),
        }
    }

    pub(crate) fn result(n: u8, stmt: u64) -> Event {
        Event::StmtResult {
            session: session(n),
            who: who(),
            stmt,
            outcome: StatementOutcome::Ok,
            sqlstate: None,
            tag: Some("SELECT 3".into()),
            rows: 3,
            bytes: 120,
            masked: 3,
            duration_us: 4_200,
        }
    }

    pub(crate) fn deny(n: u8, stmt: u64, statement: &str) -> Event {
        Event::Deny {
            session: Some(session(n)),
            who: who(),
            stage: Stage::Statement,
            stmt: Some(stmt),
            statement: Some(statement.into()),
            rule: "default-deny".into(),
            reason: "no policy permits sql:ddl".into(),
            hint: Some("ask for a migration window".into()),
        }
    }

    pub(crate) fn close(n: u8) -> Event {
        Event::SessionClose {
            session: session(n),
            who: who(),
            outcome: SessionOutcome::Closed,
            reason: None,
            statements: 2,
            denied: 1,
            rows: 3,
            bytes_in: 80,
            bytes_out: 400,
            masked: 3,
            duration_us: 1_900_000,
            recording_sha256: Some("cd".repeat(32)),
            recording_frames: 12,
        }
    }

    pub(crate) fn start() -> Event {
        Event::GatewayStart {
            version: "0.1.0".into(),
            pid: 42,
            config_sha256: "ab".repeat(32),
            policy_sha256: "cd".repeat(32),
            predecessor: None,
        }
    }

    #[test]
    fn every_event_reads_back_as_it_was_written() {
        let events = [
            start(),
            Event::GatewayStop {
                reason: "SIGTERM".into(),
                pid: Some(42),
            },
            Event::GatewayHandoverFailed {
                pid: 42,
                reason: "the policies are refused".into(),
            },
            Event::GatewayCrashed {
                last_start_seq: 1,
                open_sessions: vec![session(1)],
            },
            Event::LogRecovered {
                torn_bytes: "7b22".into(),
            },
            open(1),
            intent(1, 1, "select \"a\"\n\u{1b}[31m from t"),
            result(1, 1),
            deny(1, 2, "drop table customers"),
            close(1),
            Event::Deny {
                session: None,
                who: Who::default(),
                stage: Stage::Accept,
                stmt: None,
                statement: None,
                rule: "no-flow".into(),
                reason: "the connection was not redirected here".into(),
                hint: None,
            },
        ];
        for event in events {
            let text = serde_json::to_string(&event).unwrap();
            assert!(!text.contains('\n'), "{text}");
            let back: Event = serde_json::from_str(&text).unwrap();
            assert_eq!(back, event, "{text}");
        }
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let value = serde_json::to_value(deny(1, 2, "drop table t")).unwrap();
        assert_eq!(value["event"], "deny");
        assert_eq!(value["agent"], "report-bot");
        assert_eq!(value["stage"], "statement");
        assert_eq!(value["rule"], "default-deny");
        let value = serde_json::to_value(Event::SessionClose {
            session: session(1),
            who: who(),
            outcome: SessionOutcome::ProtocolError,
            reason: None,
            statements: 0,
            denied: 0,
            rows: 0,
            bytes_in: 0,
            bytes_out: 0,
            masked: 0,
            duration_us: 0,
            recording_sha256: None,
            recording_frames: 0,
        });
        assert_eq!(value.unwrap()["outcome"], "protocol-error");
    }

    #[test]
    fn session_ids_are_found_by_either_end() {
        let ids = [session(1), session(2), session(0x12)];
        let cases = [
            (
                "whole",
                "0198c5a2-7b1e-7c3d-9f00-5d1c2b3a4e01",
                Ok(session(1)),
            ),
            ("short", &session(2).short(), Ok(session(2))),
            ("upper case", "3A4E12", Ok(session(0x12))),
            (
                "shared beginning",
                "0198c5a2",
                Err(UnresolvedSession::Ambiguous {
                    query: "0198c5a2".into(),
                    ids: ids.to_vec(),
                }),
            ),
            (
                "unknown",
                "ffff",
                Err(UnresolvedSession::Unknown("ffff".into())),
            ),
            ("empty", "", Err(UnresolvedSession::Unknown(String::new()))),
        ];
        for (name, query, expected) in cases {
            assert_eq!(SessionId::resolve(query, ids), expected, "{name}");
        }
    }

    #[test]
    fn only_the_hyphenated_uuid_is_a_session_id() {
        for bad in [
            "",
            "x",
            "../../../../etc/passwd",
            "0198c5a27b1e7c3d9f005d1c2b3a4e01",
            "{0198c5a2-7b1e-7c3d-9f00-5d1c2b3a4e01}",
            "0198c5a2-7b1e-7c3d-9f00-5d1c2b3a4e0g",
        ] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad}");
        }
        let id = SessionId::new(SystemTime::now());
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
