//! Record: evidence before effect.
//!
//! Only this file makes a [`Recorded`]: bytes that are in the session's recording. Leaves are written
//! through the same recorder, so that everything a session leaves behind carries the same names. An
//! error here ends the session: what cannot be recorded does not happen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use super::buffers::Gathered;
use super::decide::{Allowed, Denied, Permit};
use super::mask::Masked;
use crate::audit::chain::Draft;
use crate::audit::event::{
    Decision, DenyOfSession, Event, OfSession, Parameter, Preamble, SessionClose, SessionId,
    SessionOutcome, Stage, StatementOutcome, StatementProtocol, StmtIntent, StmtResult, Who,
};
use crate::policy::Denial;
use crate::recording::frame::Direction;
use crate::store::log::{Log, LogError};
use crate::store::recordings::{RecordingError, RecordingWriter};

/// Bytes that are in the recording and may leave.
#[derive(Debug)]
pub struct Recorded(Gathered);

impl Recorded {
    pub(super) fn into_bytes(self) -> Gathered {
        self.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    #[error("the evidence log cannot be written: {0}")]
    Log(#[from] LogError),
    #[error("the recording cannot be written: {0}")]
    Recording(#[from] RecordingError),
    #[error("the recording is finished")]
    Finished,
}

/// How one statement ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub stmt: u64,
    pub outcome: StatementOutcome,
    pub sqlstate: Option<String>,
    pub tag: Option<String>,
    pub rows: u64,
    pub bytes: u64,
    pub masked: u64,
    pub started: Instant,
}

/// The parameters a statement is run with.
#[derive(Debug, Clone, Copy)]
pub struct Bindings<'a> {
    pub count: usize,
    /// As many of them as a leaf shows.
    pub shown: &'a [Parameter],
}

/// What a session's last leaf counts.
#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    statements: u64,
    denied: u64,
    rows: u64,
    masked: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// A session's recording and its line in the log, shared by both directions.
#[derive(Debug)]
pub struct Recorder {
    log: Arc<Log>,
    preamble: Preamble,
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    writer: Option<RecordingWriter>,
    totals: Totals,
    /// Leaves that go to the log together, before anything that follows from them.
    leaves: Vec<Draft>,
    /// Their size, in bytes.
    gathered: usize,
}

/// What one session gathers of the log's lines before it writes them.
const GATHERED: usize = 64 << 10;

impl Recorder {
    pub fn new(
        log: Arc<Log>,
        session: SessionId,
        who: &Who,
        writer: RecordingWriter,
        opened: Instant,
    ) -> Result<Self, EvidenceError> {
        let preamble = Preamble::new(session, who).map_err(LogError::from)?;
        Ok(Self {
            log,
            preamble,
            opened,
            state: Mutex::new(State {
                writer: Some(writer),
                totals: Totals::default(),
                leaves: Vec::new(),
                gathered: 0,
            }),
        })
    }

    /// The request bytes, as evidence shows them, are on file; the upstream bytes may go.
    pub fn request(&self, permit: Permit) -> Result<Recorded, EvidenceError> {
        let (upstream, evidence) = permit.into_parts();
        self.flush()?;
        self.append(Direction::AgentToTarget, &evidence)?;
        self.with(|state| state.totals.bytes_in += length(&evidence));
        Ok(Recorded(upstream))
    }

    /// The response bytes are on file as the agent will see them.
    pub fn response(&self, masked: Masked) -> Result<Recorded, EvidenceError> {
        let bytes = masked.into_bytes();
        self.flush()?;
        self.append(Direction::TargetToAgent, &bytes)?;
        self.with(|state| state.totals.bytes_out += length(&bytes));
        Ok(Recorded(bytes))
    }

    fn append(&self, direction: Direction, bytes: &Gathered) -> Result<(), EvidenceError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let now = SystemTime::now();
        self.with(|state| {
            let writer = state.writer.as_mut().ok_or(EvidenceError::Finished)?;
            for piece in bytes.pieces() {
                writer.append(direction, piece, now)?;
            }
            Ok(())
        })
    }

    /// One intent leaf per statement of an allowed text, numbered from `first`.
    pub fn intents(
        &self,
        allowed: &Allowed,
        first: u64,
        protocol: StatementProtocol,
        bindings: Option<Bindings<'_>>,
    ) -> Result<(), EvidenceError> {
        for (stmt, statement) in (first..).zip(allowed.statements()) {
            self.statement(&StmtIntent {
                stmt,
                protocol,
                statement: &statement.text,
                runs: statement.runs.as_deref(),
                decision: Decision::Allow,
                rule: &statement.rule,
                verbs: &statement.verbs,
                tables: &statement.tables,
                params: bindings.map(|bindings| bindings.count),
                parameters: bindings.map_or(&[], |bindings| bindings.shown),
            })?;
            self.with(|state| state.totals.statements += 1);
        }
        Ok(())
    }

    /// A leaf that goes to the log with the next bytes, or at the session's end.
    fn statement(&self, event: &impl OfSession) -> Result<(), EvidenceError> {
        let draft = Draft::of_session(SystemTime::now(), &self.preamble, event);
        let draft = draft.map_err(LogError::from)?;
        let gathered = self.with(|state| {
            state.gathered += draft.len();
            state.leaves.push(draft);
            state.gathered
        });
        match gathered < GATHERED {
            true => Ok(()),
            false => self.flush(),
        }
    }

    /// What is to be in the log is there when this returns.
    pub fn flush(&self) -> Result<(), EvidenceError> {
        let leaves = self.with(|state| {
            state.gathered = 0;
            std::mem::take(&mut state.leaves)
        });
        if !leaves.is_empty() {
            self.log.append_drafts(SystemTime::now(), leaves)?;
        }
        Ok(())
    }

    /// The leaf of a denied statement; it counts as one of the session's statements.
    pub fn denied(&self, stmt: u64, denied: &Denied) -> Result<(), EvidenceError> {
        self.with(|state| state.totals.statements += 1);
        self.deny(
            Stage::Statement,
            Some(stmt),
            Some(denied.statement.clone()),
            &denied.denial,
        )
    }

    pub fn deny(
        &self,
        stage: Stage,
        stmt: Option<u64>,
        statement: Option<String>,
        denial: &Denial,
    ) -> Result<(), EvidenceError> {
        self.with(|state| state.totals.denied += 1);
        self.statement(&DenyOfSession {
            stage,
            stmt,
            statement: statement.as_deref(),
            rule: &denial.rule,
            reason: &reason(denial),
            hint: Some(&denial.hint),
        })
    }

    /// How a statement ended that the target was not asked to run to its end.
    pub fn result(&self, outcome: &Outcome) -> Result<(), EvidenceError> {
        self.ended(outcome);
        self.statement(&leaf(outcome))
    }

    /// How statements ended by what the target said. The recording has its words before the agent has them; these
    /// leaves may be later.
    pub fn results(&self, outcomes: impl Iterator<Item = Outcome>) -> Result<(), EvidenceError> {
        let now = SystemTime::now();
        let drafts = outcomes.map(|outcome| {
            self.ended(&outcome);
            Draft::of_session(now, &self.preamble, &leaf(&outcome))
        });
        let drafts = drafts.collect::<Result<Vec<_>, _>>();
        let drafts = drafts.map_err(LogError::from)?;
        match drafts.is_empty() {
            true => Ok(()),
            false => Ok(self.log.append_late(drafts)?),
        }
    }

    fn ended(&self, outcome: &Outcome) {
        self.with(|state| {
            state.totals.rows += outcome.rows;
            state.totals.masked += outcome.masked;
        });
    }

    /// The session's last leaf, with the digest of its recording. Called once; later calls do nothing.
    pub fn close(
        &self,
        outcome: SessionOutcome,
        reason: Option<String>,
    ) -> Result<(), EvidenceError> {
        let Some((writer, totals)) = self.with(|state| Some((state.writer.take()?, state.totals)))
        else {
            return Ok(());
        };
        let digest = writer.finish(SystemTime::now());
        self.statement(&SessionClose {
            outcome,
            reason: reason.as_deref(),
            statements: totals.statements,
            denied: totals.denied,
            rows: totals.rows,
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
            masked: totals.masked,
            duration_us: micros(self.opened),
            recording_sha256: digest.as_ref().ok().map(|digest| digest.sha256.as_str()),
            recording_frames: digest.as_ref().map_or(0, |digest| digest.frames),
        })?;
        self.flush()?;
        digest?;
        Ok(())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // A panic while the lock was held leaves counters that are at worst one short.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The leaf of a refusal, of a session or of one statement in it.
pub fn denial_event(
    session: Option<SessionId>,
    who: &Who,
    stage: Stage,
    stmt: Option<u64>,
    statement: Option<String>,
    denial: &Denial,
) -> Event {
    Event::Deny {
        session,
        who: who.clone(),
        stage,
        stmt,
        statement,
        rule: denial.rule.clone(),
        reason: reason(denial),
        hint: Some(denial.hint.clone()),
    }
}

fn leaf(outcome: &Outcome) -> StmtResult<'_> {
    StmtResult {
        stmt: outcome.stmt,
        outcome: outcome.outcome,
        sqlstate: outcome.sqlstate.as_deref(),
        tag: outcome.tag.as_deref(),
        rows: outcome.rows,
        bytes: outcome.bytes,
        masked: outcome.masked,
        duration_us: micros(outcome.started),
    }
}

fn reason(denial: &Denial) -> String {
    format!("{}: {}", denial.message, denial.detail)
}

fn length(bytes: &Gathered) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
