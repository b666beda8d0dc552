//! The hash chain over the lines of the log.
//!
//! A line is one JSON object: the time, the event's members, then `"seq"`, `"prev"` (the hash of the line
//! before, 64 zeros for the first) and, last, `"hash"`: the SHA-256, in hex, of the line's bytes before
//! `,"hash":`. Anybody can check a line with `sha256sum`.
//!
//! The members that depend on the line before stand at the end on purpose: everything in front of them is
//! serialised and hashed by the writer's own task ([`Draft`]), so a megabyte of SQL does not hold up the
//! other sessions, and the lock covers two hundred bytes ([`Draft::link`]).
//!
//! A chain shows that lines were edited, removed, inserted, reordered or repeated. It cannot show that the
//! newest lines were cut off, or that somebody with write access wrote the whole file anew: for that,
//! compare with a head noted elsewhere ([`Verifier::expect_head`]).

use std::cell::RefCell;
use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::event::{Event, OfSession, Preamble};

/// A SHA-256 digest, printed in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

/// What the first line names as the line before it.
pub const GENESIS: Hash = Hash([0; 32]);

const HEX: usize = 64;
/// At most what a line has behind its event: two hashes, a number, their names.
const TAIL: usize = 192;
/// What most events of a session take besides their preamble.
const ROOM: usize = 512;
const SEQ: &[u8] = b",\"seq\":";
const PREV: &[u8] = b",\"prev\":\"";
const HASH: &[u8] = b",\"hash\":\"";

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; HEX];
        // The buffer has exactly the room, and hex digits are text.
        let _ = hex::encode_to_slice(self.0, &mut digits);
        f.write_str(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// The text is not 64 lower-case hex digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 in lower-case hex (64 digits)")]
pub struct InvalidHash;

impl FromStr for Hash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Hash, InvalidHash> {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(InvalidHash);
        }
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(|_| InvalidHash)?;
        Ok(Hash(digest))
    }
}

/// `time` in RFC 3339, UTC, with microseconds. Times outside of year 9999 become the nearest that can be
/// written.
pub fn rfc3339(time: SystemTime) -> String {
    let timestamp = Timestamp::try_from(time).unwrap_or(match time < SystemTime::UNIX_EPOCH {
        true => Timestamp::MIN,
        false => Timestamp::MAX,
    });
    let second = timestamp.as_second();
    let micros = timestamp.subsec_microsecond();
    // Before 1970 the fraction counts the other way.
    if second < 0 || micros < 0 {
        return format!("{timestamp:.6}");
    }
    SECOND.with_borrow_mut(|(known, text)| {
        if *known != second {
            *known = second;
            *text = format!("{timestamp:.0}");
            text.pop(); // the Z
        }
        format!("{text}.{micros:06}Z")
    })
}

thread_local! {
    /// The latest second and its text: a busy gateway writes thousands of times in each.
    static SECOND: RefCell<(i64, String)> = const { RefCell::new((-1, String::new())) };
}

/// An event that has no place in the log yet.
#[derive(Debug)]
pub struct Draft {
    bytes: Vec<u8>,
    digest: Sha256,
}

/// A whole line, newline included, and the hash the next one must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub bytes: Vec<u8>,
    pub hash: Hash,
}

impl Draft {
    /// Serialises and hashes everything that does not depend on the line before.
    pub fn new(time: SystemTime, event: &Event) -> Result<Draft, serde_json::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            time: String,
            #[serde(flatten)]
            event: &'a Event,
        }
        let mut bytes = serde_json::to_vec(&Body {
            time: rfc3339(time),
            event,
        })?;
        bytes.pop(); // the closing brace: `link` goes on from here
        let mut digest = Sha256::new();
        digest.update(&bytes);
        Ok(Draft { bytes, digest })
    }

    /// The same for an event of a session whose first members are written already.
    pub fn of_session<E: OfSession>(
        time: SystemTime,
        preamble: &Preamble,
        event: &E,
    ) -> Result<Draft, serde_json::Error> {
        let mut bytes = Vec::with_capacity(preamble.members().len() + ROOM);
        let (time, name) = (rfc3339(time), E::NAME);
        // Writing to a Vec cannot fail.
        let _ = write!(bytes, "{{\"time\":\"{time}\",\"event\":\"{name}\",");
        bytes.extend_from_slice(preamble.members());
        let brace = bytes.len();
        serde_json::to_writer(&mut bytes, event)?;
        if let Some(brace) = bytes.get_mut(brace) {
            *brace = b',';
        }
        bytes.pop(); // the closing brace: `link` goes on from here
        let mut digest = Sha256::new();
        digest.update(&bytes);
        Ok(Draft { bytes, digest })
    }

    /// In bytes, as far as it is written.
    #[expect(clippy::len_without_is_empty, reason = "no event is empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Gives the event its place: number `seq`, after the line whose hash is `prev`.
    pub fn link(self, seq: u64, prev: Hash) -> Line {
        let mut bytes = Vec::with_capacity(self.bytes.len() + TAIL);
        let hash = self.link_into(seq, prev, &mut bytes);
        Line { bytes, hash }
    }

    /// As [`Draft::link`], with the line at the end of `lines`; answers its hash.
    pub fn link_into(&self, seq: u64, prev: Hash, lines: &mut Vec<u8>) -> Hash {
        let mut digest = self.digest.clone();
        lines.extend_from_slice(&self.bytes);
        let body = lines.len();
        // Writing to a Vec cannot fail.
        let _ = write!(lines, ",\"seq\":{seq},\"prev\":\"{prev}\"");
        digest.update(lines.get(body..).unwrap_or_default());
        let hash = Hash(digest.finalize().into());
        let _ = writeln!(lines, ",\"hash\":\"{hash}\"}}");
        hash
    }
}

/// The line of `event`, number `seq`, after the line whose hash is `prev`.
pub fn encode(
    seq: u64,
    time: SystemTime,
    event: &Event,
    prev: Hash,
) -> Result<Line, serde_json::Error> {
    Ok(Draft::new(time, event)?.link(seq, prev))
}

/// A line read back.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    #[serde(deserialize_with = "timestamp")]
    pub time: Timestamp,
    #[serde(flatten)]
    pub event: Event,
    pub seq: u64,
}

impl Record {
    /// Reads a line without checking its place in the chain; [`Verifier`] does that.
    pub fn parse(line: &[u8]) -> Result<Record, serde_json::Error> {
        serde_json::from_slice(line)
    }
}

fn timestamp<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// What a line says about its place in the chain, and whether its own hash is right.
struct Link {
    seq: u64,
    prev: Hash,
    hash: Hash,
}

/// Why a line does not continue the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    #[error("not a line of the log: it does not end in seq, prev and hash")]
    NotALine,
    #[error("edited: its content hashes to {computed}, but it says {written}")]
    Edited { computed: Hash, written: Hash },
    #[error("{missing} line(s) removed before it: expected seq {expected}, found {found}")]
    Removed {
        expected: u64,
        found: u64,
        missing: u64,
    },
    #[error("inserted, repeated or out of order: expected seq {expected}, found {found}")]
    OutOfOrder { expected: u64, found: u64 },
    #[error("the line before was replaced: expected prev {expected}, found {found}")]
    Replaced { expected: Hash, found: Hash },
    #[error("torn: the file ends after {bytes} bytes of it, without a newline")]
    Torn { bytes: usize },
}

/// The first line, counted from 1, that does not continue the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct BrokenLink {
    pub line: u64,
    pub why: Break,
}

/// A chain without a broken link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub events: u64,
    /// The hash of the last line, [`GENESIS`] if there is none.
    pub head: Hash,
    /// The head given to [`Verifier::expect_head`] is that of the log or of an earlier state of it.
    pub expected_head_seen: bool,
}

/// Walks a chain line by line. After a broken link it must not be used further: nothing after it is
/// evidence.
#[derive(Debug, Clone)]
pub struct Verifier {
    events: u64,
    head: Hash,
    expected_head: Option<Hash>,
    expected_head_seen: bool,
}

impl Default for Verifier {
    fn default() -> Verifier {
        Verifier {
            events: 0,
            head: GENESIS,
            expected_head: None,
            expected_head_seen: false,
        }
    }
}

impl Verifier {
    /// Goes on after `events` lines, the last of which has the hash `head`.
    pub fn after(events: u64, head: Hash) -> Verifier {
        Verifier {
            events,
            head,
            ..Verifier::default()
        }
    }

    /// Also look for a head that was noted elsewhere: a log that lost its newest lines no longer has it.
    pub fn expect_head(mut self, head: Hash) -> Verifier {
        self.expected_head = Some(head);
        self
    }

    /// Takes the next line, without its newline.
    pub fn line(&mut self, line: &[u8]) -> Result<(), BrokenLink> {
        let link = check_own_hash(line).map_err(|why| self.broken(why))?;
        self.check_place(&link).map_err(|why| self.broken(why))?;
        self.events += 1;
        self.head = link.hash;
        self.expected_head_seen |= self.expected_head == Some(link.hash);
        Ok(())
    }

    /// The file ends with these bytes and no newline.
    pub fn torn(&self, tail: &[u8]) -> BrokenLink {
        self.broken(Break::Torn { bytes: tail.len() })
    }

    pub fn summary(&self) -> Summary {
        Summary {
            events: self.events,
            head: self.head,
            expected_head_seen: self.expected_head_seen,
        }
    }

    fn check_place(&self, link: &Link) -> Result<(), Break> {
        let (expected, found) = (self.events + 1, link.seq);
        if found > expected {
            let missing = found - expected;
            return Err(Break::Removed {
                expected,
                found,
                missing,
            });
        }
        if found < expected {
            return Err(Break::OutOfOrder { expected, found });
        }
        if link.prev != self.head {
            return Err(Break::Replaced {
                expected: self.head,
                found: link.prev,
            });
        }
        Ok(())
    }

    fn broken(&self, why: Break) -> BrokenLink {
        BrokenLink {
            line: self.events + 1,
            why,
        }
    }
}

/// Checks a whole log.
pub fn verify(log: &[u8]) -> Result<Summary, BrokenLink> {
    let mut verifier = Verifier::default();
    let mut lines = log.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        match (lines.peek(), line) {
            (None, []) => break,
            (None, tail) => return Err(verifier.torn(tail)),
            (Some(_), line) => verifier.line(line)?,
        }
    }
    Ok(verifier.summary())
}

/// Takes the chain's members off the end of the line. They are found by their fixed length from the end,
/// so nothing that stands in the event can be taken for them.
fn split(line: &[u8]) -> Option<(&[u8], Link)> {
    let (hashed, hash) = strip_hex(line.strip_suffix(b"\"}")?, HASH)?;
    let (rest, prev) = strip_hex(hashed.strip_suffix(b"\"")?, PREV)?;
    let digits = rest.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (body, seq) = rest.split_at_checked(rest.len() - digits)?;
    if !body.starts_with(b"{") || !body.ends_with(SEQ) {
        return None;
    }
    let seq = std::str::from_utf8(seq).ok()?.parse().ok()?;
    Some((hashed, Link { seq, prev, hash }))
}

fn strip_hex<'a>(bytes: &'a [u8], key: &[u8]) -> Option<(&'a [u8], Hash)> {
    let (rest, digits) = bytes.split_at_checked(bytes.len().checked_sub(HEX)?)?;
    let hash = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((rest.strip_suffix(key)?, hash))
}

fn check_own_hash(line: &[u8]) -> Result<Link, Break> {
    let (hashed, link) = split(line).ok_or(Break::NotALine)?;
    let computed = Hash(Sha256::digest(hashed).into());
    if computed != link.hash {
        return Err(Break::Edited {
            computed,
            written: link.hash,
        });
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::super::event::tests::{close, deny, intent, open, result, start};
    use super::super::event::{StmtIntent, StmtResult};
    use super::*;

    proptest! {
        #[test]
        fn a_time_is_written_as_jiff_writes_it(
            second in -400_000_000_000_i64..400_000_000_000,
            steps in proptest::collection::vec((0..3_i64, 0..1_000_000_000_i32), 1..8),
        ) {
            let mut second = second.clamp(Timestamp::MIN.as_second() + 1, Timestamp::MAX.as_second() - 32);
            for (step, nanos) in steps {
                second += step;
                let timestamp = Timestamp::new(second, nanos).unwrap();
                prop_assert_eq!(rfc3339(timestamp.into()), format!("{timestamp:.6}"));
            }
        }
    }

    fn at(seq: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(1_767_225_600_000_000_000 + seq * 1_234_567)
    }

    /// Six lines: start, open, intent, result, deny, close.
    fn lines() -> Vec<Vec<u8>> {
        let events = [
            start(),
            open(1),
            intent(1, 1, "select name from customers"),
            result(1, 1),
            deny(1, 2, "drop table customers"),
            close(1),
        ];
        let mut prev = GENESIS;
        events
            .iter()
            .zip(1..)
            .map(|(event, seq)| {
                let line = encode(seq, at(seq), event, prev).unwrap();
                prev = line.hash;
                line.bytes
            })
            .collect()
    }

    /// Changes the content of a line and gives it a right hash of its own.
    fn forge(line: &[u8], from: &str, to: &str) -> Vec<u8> {
        let text = String::from_utf8(line.to_vec()).unwrap().replace(from, to);
        let hashed = &text[..text.rfind(",\"hash\":").unwrap()];
        let hash = hex::encode(Sha256::digest(hashed));
        format!("{hashed},\"hash\":\"{hash}\"}}\n").into_bytes()
    }

    #[test]
    fn a_line_can_be_read_and_checked_by_other_tools() {
        let line = lines().swap_remove(2);
        let text = std::str::from_utf8(&line).unwrap();
        assert!(
            text.starts_with("{\"time\":\"2026-01-01T00:00:00.003703Z\",\"event\":\"stmt.intent\"")
        );
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(value["seq"], 3);
        let hashed = text.split(",\"hash\":").next().unwrap();
        assert_eq!(value["hash"], hex::encode(Sha256::digest(hashed)));
        let record = Record::parse(&line).unwrap();
        assert_eq!(record.seq, 3);
        assert_eq!(record.event, intent(1, 1, "select name from customers"));
        assert_eq!(record.time.as_microsecond(), 1_767_225_600_003_703);
    }

    #[test]
    fn a_sessions_events_are_written_the_same_way_behind_their_preamble() {
        let (long, short) = (intent(1, 7, "select \"é\""), result(1, 7));
        let Event::StmtIntent {
            session,
            who,
            stmt,
            protocol,
            statement,
            runs,
            decision,
            rule,
            verbs,
            tables,
            params,
            parameters,
        } = &long
        else {
            panic!("an intent");
        };
        let preamble = Preamble::new(*session, who).unwrap();
        let written = StmtIntent {
            stmt: *stmt,
            protocol: *protocol,
            statement,
            runs: runs.as_deref(),
            decision: *decision,
            rule,
            verbs,
            tables,
            params: *params,
            parameters,
        };
        let draft = Draft::of_session(at(1), &preamble, &written).unwrap();
        assert_eq!(
            draft.link(1, GENESIS),
            encode(1, at(1), &long, GENESIS).unwrap()
        );
        let Event::StmtResult {
            session,
            who,
            stmt,
            outcome,
            sqlstate,
            tag,
            rows,
            bytes,
            masked,
            duration_us,
        } = &short
        else {
            panic!("a result");
        };
        let preamble = Preamble::new(*session, who).unwrap();
        let written = StmtResult {
            stmt: *stmt,
            outcome: *outcome,
            sqlstate: sqlstate.as_deref(),
            tag: tag.as_deref(),
            rows: *rows,
            bytes: *bytes,
            masked: *masked,
            duration_us: *duration_us,
        };
        let draft = Draft::of_session(at(2), &preamble, &written).unwrap();
        assert_eq!(
            draft.link(2, GENESIS),
            encode(2, at(2), &short, GENESIS).unwrap()
        );
    }

    #[test]
    fn an_untouched_log_is_whole() {
        assert_eq!(verify(b"").unwrap().head, GENESIS);
        let lines = lines();
        let summary = verify(&lines.concat()).unwrap();
        assert_eq!(summary.events, 6);
        let last: serde_json::Value = serde_json::from_slice(&lines[5]).unwrap();
        assert_eq!(last["hash"], summary.head.to_string());
    }

    #[test]
    fn a_cut_end_shows_against_a_noted_head() {
        let lines = lines();
        let noted = verify(&lines.concat()).unwrap().head;
        let seen = |lines: &[Vec<u8>]| {
            let mut verifier = Verifier::default().expect_head(noted);
            for line in lines {
                verifier.line(line.strip_suffix(b"\n").unwrap()).unwrap();
            }
            verifier.summary().expected_head_seen
        };
        assert!(seen(&lines));
        assert!(!seen(&lines[..5]));
    }

    type Tamper = fn(&mut Vec<Vec<u8>>);

    #[test]
    fn every_tampering_names_its_first_broken_line() {
        let table: &[(&str, Tamper, u64, &str)] = &[
            (
                "edit a value",
                |l| {
                    l[3] = String::from_utf8(l[3].clone())
                        .unwrap()
                        .replace("\"rows\":3", "\"rows\":2")
                        .into()
                },
                4,
                "edited",
            ),
            (
                "edit the hash",
                |l| {
                    let at = l[3].len() - 4;
                    l[3][at] ^= 1;
                },
                4,
                "edited",
            ),
            (
                "edit with a new hash",
                |l| l[3] = forge(&l[3], "\"rows\":3", "\"rows\":2"),
                5,
                "replaced",
            ),
            (
                "edit prev with a new hash",
                |l| l[3] = forge(&l[3], "\"prev\":\"", "\"prev\":\"0"),
                4,
                "not a line",
            ),
            (
                "edit the first line",
                |l| l[0] = forge(&l[0], "0.1.0", "0.1.1"),
                2,
                "replaced",
            ),
            (
                "renumber with a new hash",
                |l| l[3] = forge(&l[3], "\"seq\":4", "\"seq\":5"),
                4,
                "removed",
            ),
            (
                "delete one",
                |l| {
                    l.remove(4);
                },
                5,
                "1 line(s) removed",
            ),
            (
                "delete two",
                |l| {
                    l.drain(1..3);
                },
                2,
                "2 line(s) removed",
            ),
            (
                "delete the first",
                |l| {
                    l.remove(0);
                },
                1,
                "1 line(s) removed",
            ),
            (
                "insert a line of another log",
                |l| {
                    let other = forge(&l[2], "name", "card_number");
                    l.insert(3, other);
                },
                4,
                "expected seq 4, found 3",
            ),
            (
                "insert a line that fits",
                |l| {
                    let next = encode(
                        4,
                        at(4),
                        &deny(1, 9, "x"),
                        verify(&l[..3].concat()).unwrap().head,
                    )
                    .unwrap();
                    l.insert(3, next.bytes);
                },
                5,
                "expected seq 5, found 4",
            ),
            (
                "insert an empty line",
                |l| l.insert(3, b"\n".to_vec()),
                4,
                "not a line",
            ),
            (
                "insert text",
                |l| l.insert(0, b"# log\n".to_vec()),
                1,
                "not a line",
            ),
            ("swap neighbours", |l| l.swap(2, 3), 3, "removed"),
            ("swap the ends", |l| l.swap(0, 5), 1, "removed"),
            (
                "duplicate",
                |l| {
                    let copy = l[2].clone();
                    l.insert(3, copy);
                },
                4,
                "expected seq 4, found 3",
            ),
            ("cut mid-line", |l| l[5].truncate(40), 6, "torn"),
            (
                "cut only the newline",
                |l| {
                    l[5].pop();
                },
                6,
                "torn",
            ),
            (
                "cut mid-line in the middle",
                |l| l[2].truncate(40),
                3,
                "edited",
            ),
            (
                "join two lines",
                |l| {
                    l[2].pop();
                },
                3,
                "edited",
            ),
            ("zero bytes at the end", |l| l.push(vec![0; 100]), 7, "torn"),
            (
                "carriage returns",
                |l| {
                    l[1].pop();
                    l[1].extend(b"\r\n");
                },
                2,
                "not a line",
            ),
            (
                "seq over 2^64",
                |l| l[1] = forge(&l[1], "\"seq\":2", "\"seq\":18446744073709551617"),
                2,
                "not a line",
            ),
        ];
        for (name, tamper, line, text) in table {
            let mut log = lines();
            tamper(&mut log);
            let broken = verify(&log.concat()).expect_err(name);
            assert_eq!(broken.line, *line, "{name}: {broken}");
            assert!(broken.to_string().contains(text), "{name}: {broken}");
        }
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_found_at_its_line(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut log = lines().concat();
            let at = at.index(log.len());
            let line = log[..at].iter().filter(|b| **b == b'\n').count() as u64 + 1;
            log[at] ^= flip;
            prop_assert_eq!(verify(&log).unwrap_err().line, line);
        }

        #[test]
        fn hostile_bytes_are_an_error_not_a_panic(log in prop::collection::vec(any::<u8>(), 1..400)) {
            prop_assert!(verify(&log).is_err());
        }

        #[test]
        fn any_statement_is_one_line(text in "\\PC*|[\\x00-\\x1f\"\\\\,{}:hash]*") {
            let line = encode(1, at(1), &intent(1, 1, &text), GENESIS).unwrap();
            prop_assert_eq!(verify(&line.bytes).unwrap().events, 1);
            prop_assert_eq!(Record::parse(&line.bytes).unwrap().event, intent(1, 1, &text));
        }
    }
}
