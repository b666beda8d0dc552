//! Scripts of messages in both directions: what the agent is shown, and what the log is told.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::Conversation;
use crate::audit::event::StatementOutcome::{self, Error, Ok as Done, Skipped, Suspended};
use crate::policy::Denial;
use crate::protocol::postgres::{Message, ProtocolError, Sender, decode};
use crate::session::decide::Allowed;
use crate::session::driver::postgres::catalogue::Catalogue;
use crate::session::mask::Delivery;

fn conversation() -> Conversation {
    Conversation::new(Arc::new(Catalogue::default()))
}

fn allowed(statements: usize) -> Arc<Allowed> {
    Arc::new(Allowed::for_tests(statements))
}

fn denial() -> Denial {
    Denial {
        rule: "no-ddl".to_owned(),
        message: "not allowed".to_owned(),
        detail: "Rule no-ddl.".to_owned(),
        hint: "Ask.".to_owned(),
    }
}

fn message(tag: u8, body: &[u8]) -> Message {
    let mut bytes = BytesMut::new();
    bytes.put_u8(tag);
    bytes.put_u32(u32::try_from(body.len() + 4).unwrap());
    bytes.extend_from_slice(body);
    decode(&mut bytes, Sender::Backend).unwrap().unwrap()
}

fn complete() -> Message {
    message(b'C', b"SELECT 1\0")
}

fn error(sqlstate: &str) -> Message {
    message(
        b'E',
        format!("SERROR\0VERROR\0C{sqlstate}\0Mno\0\0").as_bytes(),
    )
}

fn ready(status: u8) -> Message {
    message(b'Z', &[status])
}

/// What came of the target's answers: the tags the agent gets, and the ends of statements.
#[derive(Debug, PartialEq)]
struct Seen {
    tags: String,
    outcomes: Vec<(u64, StatementOutcome)>,
}

fn answer(
    conversation: &mut Conversation,
    answers: &[Message],
) -> Result<(Seen, BytesMut), ProtocolError> {
    let mut delivery = Delivery::default();
    let mut done = Vec::new();
    for message in answers {
        conversation.answer(message, &mut delivery, &mut done)?;
    }
    let bytes = BytesMut::from(&delivery.finish().into_bytes()[..]);
    let mut rest = bytes.clone();
    let mut tags = String::new();
    while let Some(message) = decode(&mut rest, Sender::Backend)? {
        tags.push(char::from(message.tag()));
    }
    let outcomes = done.iter().map(|done| (done.stmt, done.outcome)).collect();
    Ok((Seen { tags, outcomes }, bytes))
}

fn check(
    conversation: &mut Conversation,
    answers: &[Message],
    tags: &str,
    outcomes: &[(u64, StatementOutcome)],
) {
    let (seen, _) = answer(conversation, answers).expect("in step");
    assert_eq!(seen.tags, tags);
    assert_eq!(seen.outcomes, outcomes);
}

fn extended(conversation: &mut Conversation, name: &[u8]) {
    conversation.parse(name, allowed(1));
    conversation.bind(b"", name, 0, false);
    let execution = conversation.execution(b"");
    conversation.execute(&execution);
}

#[test]
fn several_statements_in_one_query_each_get_their_result() {
    let mut it = conversation();
    it.query(&allowed(3));
    check(
        &mut it,
        &[complete(), complete(), error("22012"), ready(b'I')],
        "CCEZ",
        &[(1, Done), (2, Done), (3, Error)],
    );
}

#[test]
fn what_follows_an_error_in_a_query_never_ran() {
    let mut it = conversation();
    it.query(&allowed(3));
    check(
        &mut it,
        &[error("42P01"), ready(b'I')],
        "EZ",
        &[(1, Error), (2, Skipped), (3, Skipped)],
    );
}

#[test]
fn an_empty_query_is_no_statement() {
    let mut it = conversation();
    it.query(&allowed(0));
    check(&mut it, &[message(b'I', b""), ready(b'I')], "IZ", &[]);
}

#[test]
fn a_denied_query_shows_the_denial_and_the_servers_status() {
    let mut it = conversation();
    it.denied(denial(), true);
    it.query(&allowed(1));
    let (seen, bytes) = answer(
        &mut it,
        &[error("42601"), ready(b'T'), complete(), ready(b'T')],
    )
    .expect("in step");
    assert_eq!(seen.tags, "EZCZ");
    assert_eq!(seen.outcomes, [(2, Done)]);
    let text = String::from_utf8_lossy(&bytes);
    assert!(
        text.contains("C42501\0Mnot allowed\0DRule no-ddl.\0HAsk."),
        "{text}"
    );
    assert!(!text.contains("42601"), "{text}");
}

/// A server that goes away is not a denial: its own words reach the agent.
#[test]
fn a_fatal_error_is_not_taken_for_the_denial() {
    let mut it = conversation();
    it.denied(denial(), true);
    let fatal = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbye\0\0");
    let (seen, bytes) = answer(&mut it, &[fatal]).expect("in step");
    assert_eq!(seen.tags, "E");
    assert!(String::from_utf8_lossy(&bytes).contains("57P01"));
}

#[test]
fn after_an_error_everything_to_sync_was_skipped() {
    let mut it = conversation();
    extended(&mut it, b"");
    extended(&mut it, b"");
    it.query(&allowed(1));
    it.sync();
    extended(&mut it, b"");
    it.sync();
    check(
        &mut it,
        &[
            message(b'1', b""),
            message(b'2', b""),
            error("22012"),
            ready(b'I'),
            message(b'1', b""),
            message(b'2', b""),
            complete(),
            ready(b'I'),
        ],
        "12EZ12CZ",
        &[(1, Error), (2, Skipped), (3, Skipped), (4, Done)],
    );
}

#[test]
fn a_denied_parse_fails_its_segment_and_not_the_next() {
    let mut it = conversation();
    it.denied(denial(), false);
    it.bind(b"", b"", 0, false);
    let execution = it.execution(b"");
    it.execute(&execution);
    it.sync();
    extended(&mut it, b"");
    it.sync();
    check(
        &mut it,
        &[
            error("34000"),
            ready(b'E'),
            message(b'1', b""),
            message(b'2', b""),
            complete(),
            ready(b'I'),
        ],
        "EZ12CZ",
        &[(2, Skipped), (3, Done)],
    );
}

#[test]
fn a_failed_parse_leaves_the_earlier_statement_of_that_name() {
    let mut it = conversation();
    it.parse(b"s", allowed(1));
    it.sync();
    check(&mut it, &[message(b'1', b""), ready(b'I')], "1Z", &[]);
    let before = Arc::clone(&it.statements[&b"s"[..]]);
    it.parse(b"s", allowed(1));
    it.sync();
    check(&mut it, &[error("42P05"), ready(b'I')], "EZ", &[]);
    assert!(Arc::ptr_eq(&before, &it.statements[&b"s"[..]]));
}

#[test]
fn a_skipped_close_leaves_the_statement() {
    use crate::protocol::postgres::frontend::Object;
    let mut it = conversation();
    it.parse(b"s", allowed(1));
    it.sync();
    check(&mut it, &[message(b'1', b""), ready(b'I')], "1Z", &[]);
    it.bind(b"", b"missing", 0, false);
    it.close(Object::Statement(b"s"));
    it.sync();
    check(&mut it, &[error("26000"), ready(b'I')], "EZ", &[]);
    assert!(it.statements.contains_key(&b"s"[..]));
}

#[test]
fn a_suspended_portal_is_one_statement_per_execute() {
    let mut it = conversation();
    extended(&mut it, b"");
    let execution = it.execution(b"");
    it.execute(&execution);
    it.sync();
    check(
        &mut it,
        &[
            message(b'1', b""),
            message(b'2', b""),
            message(b's', b""),
            complete(),
            ready(b'I'),
        ],
        "12sCZ",
        &[(1, Suspended), (2, Done)],
    );
}

/// libpq sends Sync right behind the Execute of a COPY, and another when the data has ended.
#[test]
fn a_sync_during_copy_in_is_not_answered() {
    for copy_end_first in [false, true] {
        let mut it = conversation();
        extended(&mut it, b"");
        it.sync();
        if copy_end_first {
            it.copy_end();
            it.sync();
        }
        check(
            &mut it,
            &[
                message(b'1', b""),
                message(b'2', b""),
                message(b'G', b"\0\0\0"),
            ],
            "12G",
            &[],
        );
        if !copy_end_first {
            it.copy_end();
            it.sync();
        }
        check(&mut it, &[complete(), ready(b'I')], "CZ", &[(1, Done)]);
        assert_eq!(it.in_flight(), 0);
    }
}

#[test]
fn the_gateways_own_describe_is_not_shown() {
    let mut it = conversation();
    it.parse(b"", allowed(1));
    it.bind(b"", b"", 0, true);
    let mut waiting = it.own_describe(true).expect("waits");
    let execution = it.execution(b"");
    it.execute(&execution);
    it.sync();
    check(
        &mut it,
        &[
            message(b'1', b""),
            message(b'2', b""),
            message(b'n', b""),
            complete(),
            ready(b'I'),
        ],
        "12CZ",
        &[(1, Done)],
    );
    assert_eq!(waiting.try_recv(), Ok(None));
}

#[test]
fn a_wait_for_columns_ends_when_the_server_skips() {
    let mut it = conversation();
    it.parse(b"", allowed(1));
    it.bind(b"", b"", 0, true);
    let mut waiting = it.own_describe(true).expect("waits");
    it.sync();
    check(&mut it, &[error("42P01"), ready(b'I')], "EZ", &[]);
    assert!(waiting.try_recv().is_err());
}

/// asyncpg's `SELECT 1 / 0` fails at Bind, while its Execute is held back behind it: the Sync that ends
/// the error would never be sent.
#[test]
fn a_wait_for_columns_ends_when_the_bind_fails() {
    let mut it = conversation();
    it.bind(b"", b"s", 0, true);
    let mut waiting = it.own_describe(true).expect("waits");
    check(&mut it, &[error("22012")], "E", &[]);
    assert!(waiting.try_recv().is_err());
    assert!(it.own_describe(true).is_none());
    it.sync();
    check(&mut it, &[ready(b'I')], "Z", &[]);
    assert_eq!(it.in_flight(), 0);
}

#[test]
fn notices_notifications_and_parameters_come_at_any_time() {
    let mut it = conversation();
    check(
        &mut it,
        &[
            message(b'N', b"SNOTICE\0C00000\0Mhi\0\0"),
            message(b'A', b"\0\0\0\x01chan\0load\0"),
            message(b'S', b"TimeZone\0UTC\0"),
        ],
        "NAS",
        &[],
    );
}

#[test]
fn answers_to_nothing_end_the_session() {
    for (name, answers) in [
        ("row", vec![message(b'D', b"\0\0")]),
        ("ready", vec![ready(b'I')]),
        ("parse complete", vec![message(b'1', b"")]),
        ("copy both", vec![message(b'W', b"\0\0\0")]),
        ("authentication", vec![message(b'R', b"\0\0\0\0")]),
        ("function result", vec![message(b'V', b"\xff\xff\xff\xff")]),
        ("unknown", vec![message(b'~', b"")]),
    ] {
        assert!(answer(&mut conversation(), &answers).is_err(), "{name}");
    }
}

#[test]
fn settings_that_change_how_text_is_read_end_the_session() {
    for (name, body) in [
        ("strings", &b"standard_conforming_strings\0off\0"[..]),
        ("encoding", b"client_encoding\0SJIS\0"),
    ] {
        let answers = [message(b'S', body)];
        assert!(answer(&mut conversation(), &answers).is_err(), "{name}");
    }
}

#[test]
fn what_was_running_when_the_session_ended_is_aborted() {
    let mut it = conversation();
    it.query(&allowed(2));
    extended(&mut it, b"");
    let aborted: Vec<u64> = it.abandon().iter().map(|done| done.stmt).collect();
    assert_eq!(aborted, [1, 2, 3]);
}
