//! Scripts of messages in both directions: what the agent is shown, and what the log is told.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::{Alternative, Conversation, Refused};
use crate::audit::event::StatementOutcome::{self, Error, Ok as Done, Skipped, Suspended};
use crate::policy::Denial;
use crate::protocol::postgres::frontend::Object;
use crate::protocol::postgres::{Decoder, Frame, Message, ProtocolError, Sender, decode};
use crate::session::decide::{Allowed, Analysed, Meaning, Runs};
use crate::session::driver::postgres::bound::Bound;
use crate::session::driver::postgres::catalogue::Catalogue;
use crate::session::mask::Delivery;
use crate::session::record::Outcome;
use crate::sql::strings::Strings;

mod copy;
mod model;
mod names;

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
    decode(&mut bytes, Sender::Backend, 1 << 20)
        .unwrap()
        .unwrap()
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
    let delivered = delivery.finish().into_bytes();
    let bytes = BytesMut::from(&delivered.pieces().collect::<Vec<_>>().concat()[..]);
    let mut rest = bytes.clone();
    let mut tags = String::new();
    while let Some(message) = decode(&mut rest, Sender::Backend, 1 << 20)? {
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
    parse(conversation, name, "SELECT 1");
    conversation.bind(b"", name, Bound::default());
    execute(conversation, b"");
}

fn read(text: &str) -> Vec<Arc<Meaning>> {
    Analysed::for_tests(text).statements().to_vec()
}

fn parse(conversation: &mut Conversation, name: &[u8], text: &str) {
    conversation.parse(name, &read(text), false);
}

fn execute(conversation: &mut Conversation, portal: &[u8]) -> Vec<Outcome> {
    let execution = conversation.execution(portal);
    conversation.execute(&execution, &allowed(1)).1
}

fn shown(runs: &Runs) -> String {
    let statements = runs.statements.iter();
    let mut texts: Vec<&str> = statements.map(|it| it.shown()).collect();
    if runs.unknown {
        texts.push("?");
    }
    texts.join(" | ")
}

/// What an Execute of the portal would run.
fn runs(conversation: &Conversation, portal: &[u8]) -> String {
    let execution = conversation.execution(portal);
    let one = |Alternative { meaning, runs, .. }: &Alternative| match runs.is_nothing() {
        true => meaning.shown().to_owned(),
        false => format!("{} -> {}", meaning.shown(), shown(runs)),
    };
    let mut texts: Vec<String> = execution.alternatives.iter().map(one).collect();
    if execution.unknown {
        texts.push("?".to_owned());
    }
    texts.join(" | ")
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
    it.denied(denial(), Refused::Query);
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
    it.denied(denial(), Refused::Query);
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
    it.sync().expect("no COPY");
    extended(&mut it, b"");
    it.sync().expect("no COPY");
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
    it.denied(denial(), Refused::UnnamedParse);
    it.bind(b"", b"", Bound::default());
    execute(&mut it, b"");
    it.sync().expect("no COPY");
    extended(&mut it, b"");
    it.sync().expect("no COPY");
    check(
        &mut it,
        &[
            error("42601"),
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
    parse(&mut it, b"s", "SELECT 1");
    it.sync().expect("no COPY");
    check(&mut it, &[message(b'1', b""), ready(b'I')], "1Z", &[]);
    parse(&mut it, b"s", "SELECT 2");
    it.sync().expect("no COPY");
    check(&mut it, &[error("42P05"), ready(b'I')], "EZ", &[]);
    it.bind(b"", b"s", Bound::default());
    assert_eq!(runs(&it, b""), "SELECT 1");
}

#[test]
fn a_skipped_close_leaves_the_statement() {
    let mut it = conversation();
    parse(&mut it, b"s", "SELECT 1");
    it.sync().expect("no COPY");
    check(&mut it, &[message(b'1', b""), ready(b'I')], "1Z", &[]);
    it.bind(b"", b"missing", Bound::default());
    it.close(Object::Statement(b"s"));
    it.sync().expect("no COPY");
    check(&mut it, &[error("26000"), ready(b'I')], "EZ", &[]);
    it.bind(b"", b"s", Bound::default());
    assert_eq!(runs(&it, b""), "SELECT 1");
}

#[test]
fn a_suspended_portal_is_one_statement_per_execute() {
    let mut it = conversation();
    extended(&mut it, b"");
    execute(&mut it, b"");
    it.sync().expect("no COPY");
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

#[test]
fn the_gateways_own_describe_is_not_shown() {
    let mut it = conversation();
    parse(&mut it, b"", "SELECT 1");
    it.bind(b"", b"", Bound::default());
    it.own_describe(&it.execution(b""));
    execute(&mut it, b"");
    it.sync().expect("no COPY");
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
}

/// What the server says of a statement's parameters is known at the next Bind.
#[test]
fn a_described_statement_has_its_parameters_types() {
    let mut it = conversation();
    let read_as = |text: &str, types: &[u32]| {
        let statements = read(text);
        for statement in &statements {
            statement.give_parameter_types(types);
        }
        statements
    };
    it.parse(b"s", &read_as("SELECT $1, $2", &[20, 0]), false);
    assert_eq!(*it.keeping(b"s").types, [20, 0]);
    it.describe(Object::Statement(b"s"));
    it.sync().expect("no COPY");
    let answers = [
        message(b'1', b""),
        message(b't', b"\0\x02\0\0\0\x14\0\0\0\x19"),
        message(b'n', b""),
        ready(b'I'),
    ];
    check(&mut it, &answers, "1tnZ", &[]);
    assert_eq!(*it.keeping(b"s").types, [20, 25]);
    // An earlier statement of the name is the one that counts when its successor fails.
    it.parse(b"s", &read_as("SELECT $1", &[17]), false);
    it.sync().expect("no COPY");
    check(&mut it, &[error("42P05"), ready(b'I')], "EZ", &[]);
    assert_eq!(*it.keeping(b"s").types, [20, 25]);
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
fn a_text_that_could_not_be_read_may_be_several_statements() {
    let row = || message(b'D', b"\0\0");
    let mut it = conversation();
    it.query(&sql("sql:unknown"));
    let answers = [row(), complete(), row(), row(), complete(), ready(b'I')];
    check(&mut it, &answers, "DCDDCZ", &[(1, Done)]);
    it.query(&sql("sql:unknown"));
    check(
        &mut it,
        &[complete(), error("22012"), ready(b'I')],
        "CEZ",
        &[(2, Error)],
    );
    it.query(&sql("sql:unknown"));
    check(&mut it, &[error("42601"), ready(b'I')], "EZ", &[(3, Error)]);
    assert_eq!(it.in_flight(), 0);
}

#[test]
fn a_function_call_is_answered_by_one_value() {
    let value = || message(b'V', b"\xff\xff\xff\xff");
    let mut it = conversation();
    it.call(&allowed(1));
    check(&mut it, &[value(), ready(b'I')], "VZ", &[(1, Done)]);
    it.call(&allowed(1));
    check(&mut it, &[error("42501"), ready(b'I')], "EZ", &[(2, Error)]);
    it.query(&allowed(1));
    assert!(answer(&mut it, &[value()]).is_err(), "to a query");
    let mut it = conversation();
    it.call(&allowed(1));
    assert!(answer(&mut it, &[complete()]).is_err(), "a command's end");
}

#[test]
fn an_encoding_that_can_hide_text_ends_the_session() {
    let answers = [message(b'S', b"client_encoding\0SJIS\0")];
    assert!(answer(&mut conversation(), &answers).is_err());
}

#[test]
fn strings_that_were_off_once_stay_uncertain() {
    let reports = |it: &mut Conversation, value: &str| {
        let body = format!("standard_conforming_strings\0{value}\0");
        check(it, &[message(b'S', body.as_bytes())], "S", &[]);
        it.strings()
    };
    let mut it = conversation();
    assert_eq!(reports(&mut it, "on"), Strings::Standard);
    assert_eq!(reports(&mut it, "off"), Strings::Uncertain);
    assert_eq!(reports(&mut it, "on"), Strings::Uncertain);
}

#[test]
fn what_was_running_when_the_session_ended_is_aborted() {
    let mut it = conversation();
    it.query(&allowed(2));
    extended(&mut it, b"");
    let aborted: Vec<u64> = it.abandon().iter().map(|done| done.stmt).collect();
    assert_eq!(aborted, [1, 2, 3]);
}

fn sql(verb: &str) -> Arc<Allowed> {
    Arc::new(Allowed::of_verb(verb))
}

fn row_description(table: u32, attribute: u16) -> Message {
    let mut body = BytesMut::new();
    body.put_u16(1);
    body.extend_from_slice(b"c\0");
    body.put_u32(table);
    body.put_u16(attribute);
    body.extend_from_slice(&[0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    message(b'T', &body)
}

/// A portal that runs FETCH or EXECUTE keeps its rows; its description follows the name.
#[test]
fn a_suspended_portal_stays_masked_when_its_cursor_becomes_another() {
    const CARD: &[u8] = b"\0\x01\0\0\0\x0fclear card text";
    let mut it = Conversation::new(Arc::new(Catalogue::masking_for_tests(7, 1)));
    parse(&mut it, b"", "SELECT 1");
    it.bind(b"p", b"", Bound::default());
    for _ in 0..2 {
        let execution = it.execution(b"p");
        it.own_describe(&execution);
        it.execute(&execution, &allowed(1));
    }
    it.sync().expect("no COPY");
    let answers = [
        message(b'1', b""),
        message(b'2', b""),
        row_description(7, 1),
        message(b'D', CARD),
        message(b's', b""),
        row_description(8, 1),
        message(b'D', CARD),
        complete(),
        ready(b'I'),
    ];
    let (seen, bytes) = answer(&mut it, &answers).expect("in step");
    assert_eq!(seen.tags, "12DsDCZ");
    assert!(!bytes.windows(10).any(|window| window == b"clear card"));
}

#[test]
fn the_agents_own_describe_tells_how_rows_are_masked() {
    const CARD: &[u8] = b"\0\x01\0\0\0\x0fclear card text";
    let clear = |bytes: &BytesMut| bytes.windows(10).any(|window| window == b"clear card");
    let masking = || Conversation::new(Arc::new(Catalogue::masking_for_tests(7, 1)));
    let mut it = masking();
    parse(&mut it, b"", "SELECT 1");
    it.bind(b"p", b"", Bound::default());
    it.describe(Object::Portal(b"p"));
    let execution = it.execution(b"p");
    assert!(it.is_described(&execution));
    it.execute(&execution, &allowed(1));
    it.sync().expect("no COPY");
    let answers = [
        message(b'1', b""),
        message(b'2', b""),
        row_description(7, 1),
        message(b'D', CARD),
        complete(),
        ready(b'I'),
    ];
    let (seen, bytes) = answer(&mut it, &answers).expect("in step");
    assert_eq!(seen.tags, "12TDCZ");
    assert!(!clear(&bytes));
    // Of another portal, of the statement, or with something in between: it is not what will run.
    for between in [0, 1, 2] {
        let mut it = masking();
        parse(&mut it, b"", "SELECT 1");
        it.bind(b"p", b"", Bound::default());
        match between {
            0 => it.describe(Object::Portal(b"q")),
            1 => it.describe(Object::Statement(b"")),
            _ => {
                it.describe(Object::Portal(b"p"));
                it.bind(b"p", b"", Bound::default());
            }
        }
        let execution = it.execution(b"p");
        assert!(!it.is_described(&execution), "{between}");
    }
}

#[test]
fn what_a_failed_server_skips_is_not_waited_for() {
    let mut it = conversation();
    parse(&mut it, b"", "SELECT 1");
    check(&mut it, &[error("42601")], "E", &[]);
    let mut skipped = Vec::new();
    for _ in 0..20_000 {
        it.bind(b"", b"", Bound::default());
        skipped.extend(execute(&mut it, b""));
        assert!(!it.is_full());
    }
    assert_eq!(skipped.len(), 20_000);
    assert!(skipped.iter().all(|outcome| outcome.outcome == Skipped));
    it.sync().expect("no COPY");
    check(&mut it, &[ready(b'I')], "Z", &[]);
    assert_eq!(it.in_flight(), 0);
}

#[test]
fn ends_of_no_copy_are_not_waited_for() {
    let mut it = conversation();
    for _ in 0..20_000 {
        it.copy_end();
    }
    assert!(!it.is_full());
}

#[test]
fn names_the_server_cuts_short_are_one_name() {
    let (one, two) = ([b'a'; 64], [[b'a'; 63].as_slice(), b"b"].concat());
    let mut it = conversation();
    parse(&mut it, &one, "SELECT 0");
    it.close(Object::Statement(&two));
    it.bind(b"", &one, Bound::default());
    assert_eq!(runs(&it, b""), "");
    parse(&mut it, &one, "SELECT 1");
    parse(&mut it, &two, "SELECT 2");
    it.bind(&one, &one, Bound::default());
    assert_eq!(runs(&it, &two), "SELECT 2");
}

#[test]
fn a_skipped_bind_or_close_leaves_the_portal() {
    let mut it = conversation();
    parse(&mut it, b"s", "SELECT 1");
    it.bind(b"p", b"s", Bound::default());
    it.sync().expect("no COPY");
    let bound = [message(b'1', b""), message(b'2', b""), ready(b'T')];
    check(&mut it, &bound, "12Z", &[]);
    parse(&mut it, b"bad", "SELECT 1");
    it.bind(b"p", b"bad", Bound::default());
    it.close(Object::Portal(b"p"));
    it.sync().expect("no COPY");
    check(&mut it, &[error("42601"), ready(b'E')], "EZ", &[]);
    assert_eq!(runs(&it, b"p"), "SELECT 1");
}

/// The server refuses it, so nothing can run.
#[test]
fn several_statements_in_a_parse_are_none() {
    let mut it = conversation();
    parse(&mut it, b"", "SELECT 1; SELECT 2");
    it.bind(b"", b"", Bound::default());
    assert_eq!(runs(&it, b""), "");
}

/// A long message is one row, or one part of COPY data, in however many pieces it passes.
#[test]
fn a_message_in_pieces_counts_once() {
    let mut conversation = conversation();
    conversation.query(&allowed(1));
    let mut delivery = Delivery::default();
    let mut done = Vec::new();
    let mut wire = BytesMut::from(&message(b'D', &[0; 100_000]).bytes()[..]);
    let mut decoder = Decoder::new(Sender::Backend, 1 << 20);
    let mut late = wire.split_off(70_000);
    for arrived in [&mut wire, &mut late] {
        let frame = decoder.next(arrived, |tag| conversation.passes_unread(tag));
        let Ok(Some(Frame::Piece(piece))) = frame else {
            panic!("not a piece");
        };
        conversation.piece(&piece, &mut delivery).unwrap();
    }
    let complete = [complete(), ready(b'I')];
    for message in &complete {
        conversation
            .answer(message, &mut delivery, &mut done)
            .unwrap();
    }
    assert_eq!((done[0].rows, done[0].bytes), (1, 100_000));
    assert!(conversation.is_settled());
    // Nothing runs any more.
    wire = BytesMut::from(&message(b'd', &[0; 100_000]).bytes()[..70_000]);
    let frame = Decoder::new(Sender::Backend, 1 << 20).next(&mut wire, |_| true);
    let Ok(Some(Frame::Piece(piece))) = frame else {
        panic!("not a piece");
    };
    assert!(conversation.piece(&piece, &mut delivery).is_err());
}
