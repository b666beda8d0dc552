//! Folds events back into sessions: which are open, what they did, how they ended.
//!
//! `sluice sessions` shows it; the log asks it, when it opens, what the last gateway left undone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::chain::Record;
use super::event::{Event, SessionId, SessionOutcome, Who};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Open,
    /// Denied before it was open.
    Refused,
    #[serde(untagged)]
    Ended(SessionOutcome),
}

/// A session as far as its events tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Session {
    pub session: SessionId,
    pub state: State,
    #[serde(flatten)]
    pub who: Who,
    #[serde(serialize_with = "rfc3339")]
    pub started: Timestamp,
    /// Time of the newest event.
    #[serde(serialize_with = "rfc3339")]
    pub latest: Timestamp,
    pub duration_us: u64,
    pub statements: u64,
    pub denied: u64,
    pub rows: u64,
    pub masked: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording: Option<String>,
}

fn rfc3339<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

/// All sessions of a log, and which gateways still run as far as the log knows: more than one while a
/// gateway that was handed over drains.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    sessions: BTreeMap<SessionId, Session>,
    /// The starts without a stop: sequence number and process, in the order of the log.
    running: Vec<(u64, u32)>,
}

impl Ledger {
    /// Takes the next event of the log.
    pub fn apply(&mut self, record: &Record) {
        match &record.event {
            Event::GatewayStart { pid, .. } => self.running.push((record.seq, *pid)),
            Event::GatewayStop { pid, .. } => self.stopped(*pid),
            Event::GatewayCrashed { last_start_seq, .. } => {
                self.running.retain(|(start, _)| start != last_start_seq);
            }
            event => {
                if let Some((session, who)) = event.session().zip(event.who()) {
                    self.session(session, who, record.time)
                        .apply(event, record.time);
                }
            }
        }
    }

    /// Sessions by start time.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// The sequence numbers of the `gateway.start`s that no stop followed, oldest first.
    pub fn running(&self) -> impl Iterator<Item = u64> {
        self.running.iter().map(|(start, _)| *start)
    }

    pub fn open_sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions()
            .filter(|session| session.state == State::Open)
    }

    /// Drops everything about sessions that are not open: a log has many more of them than memory.
    pub fn forget_ended(&mut self) {
        self.sessions
            .retain(|_, session| session.state == State::Open);
    }

    /// A stop of an older version names no process; there was only one then.
    fn stopped(&mut self, pid: Option<u32>) {
        let of = |(_, started): &(u64, u32)| pid.is_none_or(|pid| pid == *started);
        if let Some(start) = self.running.iter().rposition(of) {
            self.running.remove(start);
        }
    }

    fn session(&mut self, id: SessionId, who: &Who, time: Timestamp) -> &mut Session {
        self.sessions.entry(id).or_insert_with(|| Session {
            session: id,
            state: State::Refused,
            who: who.clone(),
            started: time,
            latest: time,
            duration_us: 0,
            statements: 0,
            denied: 0,
            rows: 0,
            masked: 0,
            bytes_in: 0,
            bytes_out: 0,
            reason: None,
            recording: None,
        })
    }
}

impl Session {
    fn apply(&mut self, event: &Event, time: Timestamp) {
        self.latest = time;
        let elapsed = time.duration_since(self.started).as_micros();
        self.duration_us = u64::try_from(elapsed).unwrap_or(0);
        match event {
            Event::SessionOpen { who, recording, .. } => {
                self.state = State::Open;
                self.who = who.clone();
                self.recording = Some(recording.clone());
            }
            Event::StmtIntent { .. } => self.statements += 1,
            Event::StmtResult { rows, masked, .. } => {
                self.rows += rows;
                self.masked += masked;
            }
            Event::Deny { stmt, reason, .. } => {
                self.denied += 1;
                self.statements += u64::from(stmt.is_some());
                if self.state == State::Refused {
                    self.reason = Some(reason.clone());
                }
            }
            Event::SessionClose {
                outcome,
                reason,
                statements,
                denied,
                rows,
                bytes_in,
                bytes_out,
                masked,
                duration_us,
                ..
            } => {
                if self.state != State::Refused {
                    self.state = State::Ended(*outcome);
                    self.reason.clone_from(reason);
                }
                (self.statements, self.denied) = (*statements, *denied);
                (self.rows, self.masked) = (*rows, *masked);
                (self.bytes_in, self.bytes_out) = (*bytes_in, *bytes_out);
                self.duration_us = *duration_us;
            }
            Event::CancelRequest { .. }
            | Event::ConnectionSilent { .. }
            | Event::GatewayHandover { .. }
            | Event::GatewayHandoverFailed { .. }
            | Event::KernelDenied { .. }
            | Event::DnsQuery { .. }
            | Event::NetnsRegistered { .. }
            | Event::GuardAlarm { .. }
            | Event::GuardCleared {}
            | Event::GatewayStart { .. }
            | Event::GatewayStop { .. }
            | Event::GatewayCrashed { .. }
            | Event::LogRecovered { .. } => {}
        }
    }

    /// The end of a session whose gateway died: what its events add up to.
    pub fn crashed(&self, recording: Option<(String, u64)>) -> Event {
        let (recording_sha256, recording_frames) = recording.unzip();
        Event::SessionClose {
            session: self.session,
            who: self.who.clone(),
            outcome: SessionOutcome::Crashed,
            reason: Some("the gateway stopped without closing the session".into()),
            statements: self.statements,
            denied: self.denied,
            rows: self.rows,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            masked: self.masked,
            duration_us: self.duration_us,
            recording_sha256,
            recording_frames: recording_frames.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::{close, deny, intent, open, result, session, start};
    use super::super::event::{Stage, Who};
    use super::*;

    fn ledger(events: &[Event]) -> Ledger {
        let mut ledger = Ledger::default();
        for (event, seq) in events.iter().zip(1..) {
            ledger.apply(&Record {
                time: Timestamp::from_second(1_767_225_600 + i64::try_from(seq).unwrap()).unwrap(),
                event: event.clone(),
                seq,
            });
        }
        ledger
    }

    #[test]
    fn a_session_in_progress_adds_up() {
        let ledger = ledger(&[
            start(),
            open(1),
            intent(1, 1, "select 1"),
            result(1, 1),
            deny(1, 2, "drop table t"),
        ]);
        let found = ledger.sessions().next().unwrap();
        assert_eq!(found.state, State::Open);
        assert_eq!((found.statements, found.denied), (2, 1));
        assert_eq!((found.rows, found.masked), (3, 3));
        assert_eq!(found.duration_us, 3_000_000);
        assert_eq!(ledger.running().collect::<Vec<_>>(), [1]);
        assert_eq!(ledger.open_sessions().count(), 1);
    }

    #[test]
    fn states_follow_the_events() {
        let refused = Event::Deny {
            session: Some(session(1)),
            who: Who::default(),
            stage: Stage::Identify,
            stmt: None,
            statement: None,
            rule: "token:expired".into(),
            reason: "the token expired".into(),
            hint: None,
        };
        let crashed = ledger(&[open(1)]).sessions().next().unwrap().crashed(None);
        let closed = State::Ended(SessionOutcome::Closed);
        let table: &[(&str, Vec<Event>, State)] = &[
            ("open", vec![open(1)], State::Open),
            ("closed", vec![open(1), close(1)], closed),
            ("refused", vec![refused.clone()], State::Refused),
            (
                "refused, then closed",
                vec![refused, close(1)],
                State::Refused,
            ),
            (
                "crashed",
                vec![open(1), crashed],
                State::Ended(SessionOutcome::Crashed),
            ),
        ];
        for (name, events, expected) in table {
            let mut ledger = ledger(events);
            let found = ledger.sessions().next().unwrap().clone();
            assert_eq!(found.state, *expected, "{name}");
            ledger.forget_ended();
            let kept = ledger.sessions().count();
            assert_eq!(kept, usize::from(*expected == State::Open), "{name}");
        }
    }

    #[test]
    fn a_run_lasts_until_its_own_stop_or_its_noted_crash() {
        let started = |pid| {
            let mut start = start();
            if let Event::GatewayStart { pid: started, .. } = &mut start {
                *started = pid;
            }
            start
        };
        let stop = |pid| Event::GatewayStop {
            reason: "SIGTERM".into(),
            pid,
        };
        let crash = |last_start_seq| Event::GatewayCrashed {
            last_start_seq,
            open_sessions: vec![],
        };
        let table: &[(&str, Vec<Event>, &[u64])] = &[
            ("stopped", vec![start(), stop(Some(42))], &[]),
            (
                "stopped by an older version",
                vec![start(), stop(None)],
                &[],
            ),
            ("crashed", vec![start(), crash(1)], &[]),
            ("again", vec![start(), crash(1), start()], &[3]),
            ("handed over", vec![started(1), started(2)], &[1, 2]),
            (
                "handed over and drained",
                vec![started(1), started(2), stop(Some(1))],
                &[2],
            ),
            (
                "the successor ended first",
                vec![started(1), started(2), stop(Some(2))],
                &[1],
            ),
            (
                "the process number came again",
                vec![started(1), started(2), started(1), stop(Some(1))],
                &[1, 2],
            ),
            (
                "the predecessor crashed",
                vec![started(1), started(2), crash(1)],
                &[2],
            ),
        ];
        for (name, events, expected) in table {
            assert_eq!(
                ledger(events).running().collect::<Vec<_>>(),
                *expected,
                "{name}"
            );
        }
    }

    #[test]
    fn states_print_as_one_word() {
        let crashed = State::Ended(SessionOutcome::Crashed);
        for (state, text) in [(State::Open, "\"open\""), (crashed, "\"crashed\"")] {
            assert_eq!(serde_json::to_string(&state).unwrap(), text);
        }
    }
}
