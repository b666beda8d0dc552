//! A small model of the server, and random conversations with it.
//!
//! The model runs messages as PostgreSQL does: in order, skipping to the next Sync after an error in the
//! extended protocol, with names that are given, taken, and refused when taken twice. It knows exactly which
//! statement ran. [`Conversation`] must accept every answer, end every statement exactly once and as it
//! ended, and have counted what ran among what it said might run.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::*;
use crate::protocol::postgres::frontend::Object;
use crate::session::driver::postgres::bound::Bound;

/// xorshift64*: the same conversations on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn one_of<'a, T: ?Sized>(&mut self, them: &[&'a T]) -> &'a T {
        them[usize::try_from(self.roll(them.len() as u64)).unwrap()]
    }
}

/// What the agent sends, as the server understands it.
#[derive(Debug, Clone)]
enum Request {
    Query(u64, Vec<String>),
    /// A function call.
    Call(u64),
    Denied(Refused),
    Parse(String, String),
    Bind(String, String),
    Describe(Kind, String),
    Execute(u64, String),
    Close(Kind, String),
    Sync,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Statement,
    Portal,
}

/// What ran under a statement's number, and how it ended.
type Ran = BTreeMap<u64, (StatementOutcome, Option<String>)>;

#[derive(Default)]
struct Server {
    statements: HashMap<String, String>,
    portals: HashMap<String, String>,
    skipping: bool,
    in_transaction: bool,
    failed: bool,
    answers: Vec<Message>,
    ran: Ran,
}

struct Failed;

impl Server {
    fn status(&self) -> u8 {
        match (self.in_transaction, self.failed) {
            (false, _) => b'I',
            (true, false) => b'T',
            (true, true) => b'E',
        }
    }

    fn say(&mut self, tag: u8, body: &[u8]) {
        self.answers.push(message(tag, body));
    }

    fn fail(&mut self) {
        self.answers.push(error("22012"));
        self.failed = self.in_transaction;
    }

    fn take(&mut self, request: &Request, dice: &mut Dice) {
        if self.skipping && !matches!(request, Request::Sync) {
            match request {
                Request::Query(first, texts) => self.skipped(*first, texts.len()),
                Request::Execute(number, _) | Request::Call(number) => self.skipped(*number, 1),
                _ => {}
            }
            return;
        }
        match request {
            Request::Sync => {
                self.skipping = false;
                self.ready();
            }
            Request::Query(first, texts) => self.query(*first, texts, dice),
            Request::Call(number) => {
                match dice.roll(3) {
                    0 => {
                        self.ran.insert(*number, (Error, None));
                        self.fail();
                    }
                    _ => {
                        self.ran.insert(*number, (Done, None));
                        self.say(b'V', b"\xff\xff\xff\xff");
                    }
                }
                self.ready();
            }
            Request::Denied(refused) if refused.ends_with_ready() => {
                if *refused == Refused::Query {
                    self.statements.remove("");
                }
                self.fail();
                self.ready();
            }
            other => {
                if self.extended(other, dice).is_err() {
                    self.fail();
                    self.skipping = true;
                }
            }
        }
    }

    fn ready(&mut self) {
        if !self.in_transaction {
            self.portals.clear();
        }
        let status = self.status();
        self.answers.push(ready(status));
    }

    fn skipped(&mut self, first: u64, count: usize) {
        for number in first..first + count as u64 {
            self.ran.insert(number, (Skipped, None));
        }
    }

    fn query(&mut self, first: u64, texts: &[String], dice: &mut Dice) {
        self.statements.remove("");
        self.portals.remove("");
        if texts.is_empty() {
            self.say(b'I', b"");
        }
        for (number, text) in (first..).zip(texts) {
            let what = self.meaning(text);
            if self.run(text, dice).is_err() {
                self.ran.insert(number, (Error, what));
                let rest = texts.len() - 1 - usize::try_from(number - first).unwrap();
                self.skipped(number + 1, rest);
                self.fail();
                return self.ready();
            }
            self.ran.insert(number, (Done, what));
            self.say(b'C', b"OK\0");
        }
        self.ready();
    }

    fn extended(&mut self, request: &Request, dice: &mut Dice) -> Result<(), Failed> {
        let unlucky = |dice: &mut Dice| match dice.roll(12) {
            0 => Err(Failed),
            _ => Ok(()),
        };
        match request {
            Request::Denied(refused) => {
                if *refused == Refused::UnnamedParse {
                    self.statements.remove("");
                }
                return Err(Failed);
            }
            Request::Parse(name, text) => {
                if name.is_empty() {
                    self.statements.remove("");
                }
                unlucky(dice)?;
                if self.statements.contains_key(name) {
                    return Err(Failed);
                }
                self.statements.insert(name.clone(), text.clone());
                self.say(b'1', b"");
            }
            Request::Bind(portal, statement) => {
                let text = self.statements.get(statement).ok_or(Failed)?.clone();
                unlucky(dice)?;
                if !portal.is_empty() && self.portals.contains_key(portal) {
                    return Err(Failed);
                }
                self.portals.insert(portal.clone(), text);
                self.say(b'2', b"");
            }
            Request::Describe(Kind::Statement, name) => {
                self.statements.get(name).ok_or(Failed)?;
                self.say(b't', b"\0\0");
                self.say(b'n', b"");
            }
            Request::Describe(Kind::Portal, name) => {
                self.portals.get(name).ok_or(Failed)?;
                self.say(b'n', b"");
            }
            Request::Execute(number, portal) => {
                let text = self.portals.get(portal).cloned();
                let what = text.as_deref().and_then(|text| self.meaning(text));
                let run = match &text {
                    Some(text) => self.run(text, dice),
                    None => Err(Failed),
                };
                if run.is_err() {
                    self.ran.insert(*number, (Error, what));
                    return Err(Failed);
                }
                match dice.roll(4) {
                    0 => {
                        self.ran.insert(*number, (Suspended, what));
                        self.say(b's', b"");
                    }
                    _ => {
                        self.ran.insert(*number, (Done, what));
                        self.say(b'C', b"OK\0");
                    }
                }
            }
            Request::Close(kind, name) => {
                match kind {
                    Kind::Statement => self.statements.remove(name),
                    Kind::Portal => self.portals.remove(name),
                };
                self.say(b'3', b"");
            }
            Request::Sync | Request::Query(..) | Request::Call(_) => {}
        }
        Ok(())
    }

    /// The statement that is run in the end: the one behind EXECUTE or FETCH. A circle has none.
    fn meaning(&self, text: &str) -> Option<String> {
        let mut text = text;
        for _ in 0..10 {
            text = match text.split_once(' ') {
                Some(("EXECUTE", name)) => self.statements.get(name)?,
                Some(("FETCH", name)) => self.portals.get(name)?,
                _ => return Some(text.to_owned()),
            };
        }
        None
    }

    fn run(&mut self, text: &str, dice: &mut Dice) -> Result<(), Failed> {
        let words: Vec<&str> = text.splitn(5, ' ').collect();
        match words[..] {
            ["BEGIN"] => self.in_transaction = true,
            ["ROLLBACK"] => {
                self.in_transaction = false;
                self.failed = false;
                self.portals.clear();
            }
            _ if self.failed || dice.roll(10) == 0 => return Err(Failed),
            ["PREPARE", name, "AS", ..] => {
                let (_, inner) = text.split_once(" AS ").unwrap();
                if self.statements.contains_key(name) {
                    return Err(Failed);
                }
                self.statements.insert(name.to_owned(), inner.to_owned());
            }
            ["DECLARE", name, "CURSOR", ..] => {
                let (_, inner) = text.split_once(" FOR ").unwrap();
                if self.portals.contains_key(name) {
                    return Err(Failed);
                }
                self.portals.insert(name.to_owned(), inner.to_owned());
            }
            ["DEALLOCATE", "ALL"] => self.statements.retain(|name, _| name.is_empty()),
            ["DEALLOCATE", name] => drop(self.statements.remove(name).ok_or(Failed)?),
            ["CLOSE", name] => drop(self.portals.remove(name).ok_or(Failed)?),
            ["EXECUTE", name] => {
                let text = self.statements.get(name).ok_or(Failed)?.clone();
                // The server's stack is limited, too.
                self.meaning(&text).ok_or(Failed)?;
                self.run(&text, dice)?;
            }
            ["FETCH", name] => drop(self.portals.get(name).ok_or(Failed)?),
            _ => {}
        }
        Ok(())
    }
}

fn text(dice: &mut Dice, fresh: &mut u64) -> String {
    *fresh += 1;
    let (statement, cursor) = (dice.one_of(&["a", "b"]), dice.one_of(&["p", "q"]));
    match dice.roll(14) {
        0 => "BEGIN".to_owned(),
        1 => "ROLLBACK".to_owned(),
        2 | 3 => format!("PREPARE {statement} AS SELECT {fresh}"),
        4 => format!("DEALLOCATE {statement}"),
        5 => "DEALLOCATE ALL".to_owned(),
        6 | 7 => format!("EXECUTE {statement}"),
        8 | 9 => format!("DECLARE {cursor} CURSOR FOR SELECT {fresh}"),
        10 => format!("FETCH {cursor}"),
        11 => format!("CLOSE {cursor}"),
        _ => format!("SELECT {fresh}"),
    }
}

struct Play {
    it: Conversation,
    said: HashMap<u64, HashSet<String>>,
    outcomes: Vec<(u64, StatementOutcome)>,
    fresh: u64,
}

impl Play {
    /// The agent's next message, which the gateway passes on.
    fn send(&mut self, dice: &mut Dice) -> Request {
        let statement = dice.one_of(&["", "", "a", "b"]).to_owned();
        let portal = dice.one_of(&["", "", "p", "q"]).to_owned();
        let kind = [Kind::Statement, Kind::Portal][usize::try_from(dice.roll(2)).unwrap()];
        match dice.roll(20) {
            0..=2 => self.query(dice),
            19 => {
                self.it.follow_call(&read("SELECT 1"));
                let (number, skipped) = self.it.call(&allowed(1));
                self.ended(&skipped);
                Request::Call(number)
            }
            3 => {
                let refused = match dice.roll(4) {
                    0 => Refused::Query,
                    1 => Refused::Call,
                    2 => Refused::UnnamedParse,
                    _ => Refused::Extended,
                };
                self.it.denied(denial(), refused);
                Request::Denied(refused)
            }
            4..=6 => {
                let text = text(dice, &mut self.fresh);
                parse(&mut self.it, statement.as_bytes(), &text);
                Request::Parse(statement, text)
            }
            7..=9 => {
                self.it
                    .bind(portal.as_bytes(), statement.as_bytes(), Bound::default());
                Request::Bind(portal, statement)
            }
            10 => {
                self.it.describe(Object::Portal(b""));
                let name = if kind == Kind::Portal {
                    portal
                } else {
                    statement
                };
                Request::Describe(kind, name)
            }
            11..=14 => self.execute(portal),
            15 => {
                let name = if kind == Kind::Portal {
                    portal
                } else {
                    statement
                };
                self.it.close(match kind {
                    Kind::Statement => Object::Statement(name.as_bytes()),
                    Kind::Portal => Object::Portal(name.as_bytes()),
                });
                Request::Close(kind, name)
            }
            _ => {
                self.it.sync().expect("no COPY");
                Request::Sync
            }
        }
    }

    fn query(&mut self, dice: &mut Dice) -> Request {
        let texts: Vec<String> = (0..dice.roll(4))
            .map(|_| text(dice, &mut self.fresh))
            .collect();
        let statements = read(&texts.join("; "));
        let runs = self.it.follow_query(&statements);
        let (first, skipped) = self.it.query(&allowed(statements.len()));
        self.ended(&skipped);
        for ((number, meaning), runs) in (first..).zip(&statements).zip(&runs) {
            self.says(number, meaning, runs);
        }
        Request::Query(first, texts)
    }

    fn execute(&mut self, portal: String) -> Request {
        let execution = self.it.execution(portal.as_bytes());
        let (number, skipped) = self.it.execute(&execution, &allowed(1));
        self.ended(&skipped);
        for super::super::Alternative { meaning, runs, .. } in &execution.alternatives {
            self.says(number, meaning, runs);
        }
        if execution.unknown {
            self.said.entry(number).or_default().insert("?".to_owned());
        }
        Request::Execute(number, portal)
    }

    fn says(&mut self, number: u64, meaning: &Meaning, runs: &Runs) {
        let said = self.said.entry(number).or_default();
        said.insert(meaning.shown().to_owned());
        said.extend(runs.statements.iter().map(|it| it.shown().to_owned()));
        if runs.unknown {
            said.insert("?".to_owned());
        }
    }

    fn ended(&mut self, outcomes: &[Outcome]) {
        self.outcomes
            .extend(outcomes.iter().map(|it| (it.stmt, it.outcome)));
    }

    fn hear(&mut self, answers: &[Message]) {
        let (seen, _) = answer(&mut self.it, answers).expect("in step");
        self.outcomes.extend(seen.outcomes);
    }
}

#[test]
fn random_conversations_stay_in_step() {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for seed in 1..=400 {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut server = Server::default();
        let mut play = Play {
            it: conversation(),
            said: HashMap::new(),
            outcomes: Vec::new(),
            fresh: 0,
        };
        let mut flight: VecDeque<Request> = VecDeque::new();
        for step in 0..120 {
            let last = step == 119;
            if last {
                play.it.sync().expect("no COPY");
                flight.push_back(Request::Sync);
            } else {
                flight.push_back(play.send(&mut dice));
            }
            // The server is up to everything in flight, or lags behind.
            let behind = if last { 0 } else { dice.roll(12) };
            while flight.len() as u64 > behind {
                server.take(&flight.pop_front().unwrap(), &mut dice);
                let answers = std::mem::take(&mut server.answers);
                // Answers arrive one by one, now or with the next.
                play.hear(&answers);
            }
        }
        assert_eq!(play.it.in_flight(), 0, "seed {seed}");
        let mut outcomes = BTreeMap::new();
        for (number, outcome) in play.outcomes {
            let before = outcomes.insert(number, outcome);
            assert_eq!(before, None, "seed {seed}: statement {number} ended twice");
        }
        let ran: BTreeMap<u64, StatementOutcome> = server
            .ran
            .iter()
            .map(|(number, (it, _))| (*number, *it))
            .collect();
        assert_eq!(outcomes, ran, "seed {seed}");
        for (number, (outcome, what)) in server.ran {
            let (Some(what), true) = (what, outcome != Skipped) else {
                continue;
            };
            let said = &play.said[&number];
            let kind = if said.len() > 1 { "by name" } else { "itself" };
            *seen.entry(format!("{outcome:?} {kind}")).or_default() += 1;
            assert!(
                said.contains(&what),
                "seed {seed}: statement {number} ran {what}, and might run {said:?}"
            );
        }
    }
    // Everything that can happen did.
    for kind in ["Ok", "Error", "Suspended"] {
        for way in ["by name", "itself"] {
            let times = seen.get(&format!("{kind} {way}")).copied().unwrap_or(0);
            assert!(times > 0, "{kind} {way} never happened");
        }
    }
}
