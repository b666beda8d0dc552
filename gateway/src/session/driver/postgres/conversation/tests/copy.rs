//! COPY in both directions, and the Syncs amid it.

use super::super::{Data, Synced};
use super::*;
use crate::policy::masking::Transform;
use crate::protocol::postgres::copy::Format;
use crate::session::decide::Copying;
use crate::session::mask::{CopyPlan, MaskedColumn};

fn text() -> Format {
    Format::Text {
        delimiter: b'\t',
        null: b"\\N".to_vec(),
        header: false,
    }
}

fn copies(copies: &[Copying]) -> Arc<Allowed> {
    Arc::new(Allowed::of_copies(copies.to_vec()))
}

fn from_stdin() -> Arc<Allowed> {
    copies(&[Copying::In(Some(text()))])
}

fn execute(conversation: &mut Conversation, allowed: Arc<Allowed>) {
    parse(conversation, b"", "COPY t FROM STDIN");
    conversation.bind(b"", b"", Bound::default());
    let execution = conversation.execution(b"");
    conversation.execute(&execution, &allowed);
}

fn begun() -> [Message; 3] {
    [message(b'1', b""), message(b'2', b""), copy_in()]
}

fn copy_in() -> Message {
    message(b'G', b"\0\0\x01\0\0")
}

fn fatal() -> Message {
    message(b'E', b"SFATAL\0VFATAL\0C08P01\0Mlost\0\0")
}

/// libpq sends Sync right behind the Execute of a COPY, and another when the data has ended.
#[test]
fn a_sync_ahead_of_the_data_is_not_answered() {
    let mut it = conversation();
    execute(&mut it, from_stdin());
    assert_eq!(it.awaits_copy(), Some(false));
    assert!(it.sync().is_err(), "not before the server's word");
    check(&mut it, &begun(), "12G", &[]);
    assert_eq!(it.sync(), Ok(Synced::Kept));
    assert!(!it.owes_sync(true));
    it.copy_data(b"1\n");
    assert!(!it.keeps_sync(), "the server has read it");
    assert_eq!(it.sync(), Ok(Synced::Kept));
    it.copy_end();
    assert_eq!(it.sync(), Ok(Synced::Sent));
    let ended = [message(b'C', b"COPY 1\0"), ready(b'I')];
    check(&mut it, &ended, "CZ", &[(1, Done)]);
    assert_eq!(it.in_flight(), 0);
}

/// `COPY view FROM STDIN` fails when the server has asked for data already: it answers the Sync.
#[test]
fn a_copy_that_fails_before_its_data_answers_the_sync() {
    let mut it = conversation();
    execute(&mut it, from_stdin());
    check(&mut it, &begun(), "12G", &[]);
    assert_eq!(it.sync(), Ok(Synced::Kept));
    check(&mut it, &[error("42809")], "E", &[(1, Error)]);
    assert!(it.owes_sync(true));
    assert!(!it.owes_sync(true), "once");
    check(&mut it, &[ready(b'I')], "Z", &[]);
    // What was on its way is discarded.
    it.copy_data(b"1\n");
    it.copy_end();
    assert_eq!(it.sync(), Ok(Synced::Sent));
    check(&mut it, &[ready(b'I')], "Z", &[]);
}

#[test]
fn a_refused_copy_answers_the_sync() {
    let mut it = conversation();
    execute(&mut it, from_stdin());
    check(&mut it, &[error("42501")], "E", &[]);
    assert_eq!(it.awaits_copy(), None);
    assert_eq!(it.sync(), Ok(Synced::Sent));
    check(&mut it, &[ready(b'I')], "Z", &[(1, Skipped)]);
}

#[test]
fn data_sent_ahead_is_the_copys_or_nobodys() {
    for refused in [false, true] {
        let mut it = conversation();
        execute(&mut it, from_stdin());
        it.copy_data(b"1\n");
        assert_eq!(it.awaits_copy(), Some(false));
        it.copy_end();
        assert_eq!(it.awaits_copy(), None);
        assert_eq!(it.sync(), Ok(Synced::Sent));
        if refused {
            check(
                &mut it,
                &[error("42501"), ready(b'I')],
                "EZ",
                &[(1, Skipped)],
            );
        } else {
            check(&mut it, &begun(), "12G", &[]);
            check(&mut it, &[complete(), ready(b'I')], "CZ", &[(1, Done)]);
        }
        assert_eq!(it.in_flight(), 0);
        assert_eq!(it.sync(), Ok(Synced::Sent));
    }
}

/// 08P01, and the server closes: what was sent has not run.
#[test]
fn a_query_amid_the_data_ends_the_session() {
    let mut it = conversation();
    it.query(&from_stdin());
    check(&mut it, &[copy_in()], "G", &[]);
    assert_eq!(it.sync(), Ok(Synced::Kept));
    assert!(it.owes_sync(false), "ahead of what is no data");
    it.query(&allowed(2));
    check(
        &mut it,
        &[error("08P01"), fatal()],
        "EE",
        &[(1, Error), (2, Skipped), (3, Skipped)],
    );
    assert_eq!(it.abandon().len(), 0);
}

#[test]
fn several_copies_in_one_text() {
    let mut it = conversation();
    it.query(&copies(&[
        Copying::In(Some(text())),
        Copying::Out(None),
        Copying::In(None),
    ]));
    check(&mut it, &[copy_in()], "G", &[]);
    it.copy_data(b"1\n");
    it.copy_end();
    let out = [
        complete(),
        message(b'H', b"\0\0\x01\0\0"),
        message(b'd', b"1\n"),
        message(b'c', b""),
        message(b'C', b"COPY 1\0"),
    ];
    check(&mut it, &out, "CHdcC", &[(1, Done), (2, Done)]);
    assert_eq!(it.awaits_copy(), Some(false));
    check(&mut it, &[copy_in()], "G", &[]);
    it.copy_end();
    check(&mut it, &[complete(), ready(b'I')], "CZ", &[(3, Done)]);
}

/// A text that could not be read may hold any number of them.
#[test]
fn a_text_that_could_not_be_read_may_copy() {
    let mut it = conversation();
    execute(&mut it, sql("sql:unknown"));
    assert_eq!(it.awaits_copy(), Some(true), "its answer must be flushed");
    check(&mut it, &begun(), "12G", &[]);
    it.copy_end();
    check(&mut it, &[complete()], "C", &[(1, Done)]);
    assert_eq!(it.awaits_copy(), None);
    let mut it = conversation();
    execute(&mut it, sql("sql:select"));
    assert_eq!(it.awaits_copy(), None);
    assert!(answer(&mut it, &begun()).is_err(), "a SELECT takes no data");
}

#[test]
fn rows_are_those_of_the_command_tag() {
    let mut it = conversation();
    it.query(&from_stdin());
    check(&mut it, &[copy_in()], "G", &[]);
    it.copy_data(b"1\n2\n");
    it.copy_data(b"3\n");
    it.copy_end();
    let mut done = Vec::new();
    let tag = message(b'C', b"COPY 3\0");
    it.answer(&tag, &mut Delivery::default(), &mut done)
        .expect("in step");
    assert_eq!((done[0].rows, done[0].bytes), (3, 6));
}

#[test]
fn evidence_shows_no_card_of_the_data() {
    let mut it = conversation();
    it.query(&from_stdin());
    assert_eq!(it.copy_data(b"1\tx\n"), Data::AsSent);
    let blanked = Data::Blanked(b"1\t****************\n".to_vec());
    assert_eq!(it.copy_data(b"1\t4111111111111111\n"), blanked);
    // Nobody asks for it.
    let mut it = conversation();
    assert_eq!(it.copy_data(b"a17"), Data::Blanked(b"a**".to_vec()));
    // With masks, nothing is shown of what is not known to be harmless.
    let mut it = Conversation::new(Arc::new(Catalogue::masking_for_tests(1, 1)));
    assert_eq!(it.copy_data(b"x\n"), Data::Withheld);
    it.query(&from_stdin());
    assert_eq!(it.copy_data(b"x\n"), Data::AsSent);
}

fn plan() -> Copying {
    let column = MaskedColumn {
        name: "public.t.c".to_owned(),
        transform: Transform::Redact,
        text_like: true,
    };
    let plan = CopyPlan::new(text(), 2, vec![(1, column)]);
    Copying::Out(Some(Arc::new(plan)))
}

#[test]
fn masked_columns_are_copied_masked() {
    let mut it = Conversation::new(Arc::new(Catalogue::masking_for_tests(1, 1)));
    it.query(&copies(&[plan()]));
    let (seen, bytes) = answer(
        &mut it,
        &[
            message(b'H', b"\0\0\x02\0\0\0\0"),
            message(b'd', b"1\tsec"),
            message(b'd', b"ret\n2\t\\N\n"),
            message(b'c', b""),
            message(b'C', b"COPY 2\0"),
            ready(b'I'),
        ],
    )
    .expect("in step");
    assert_eq!(seen.tags, "HdcCZ");
    let shown = String::from_utf8_lossy(&bytes);
    assert!(shown.contains("1\t[redacted]\n2\t\\N\n"), "{shown}");
    assert!(!shown.contains("sec"), "{shown}");
}

#[test]
fn what_cannot_be_masked_is_not_delivered() {
    let shape = |body: &'static [u8]| message(b'H', body);
    for (name, allowed, answers) in [
        (
            "binary",
            copies(&[plan()]),
            vec![shape(b"\x01\0\x02\0\x01\0\x01")],
        ),
        ("columns", copies(&[plan()]), vec![shape(b"\0\0\x01\0\0")]),
        (
            "values",
            copies(&[plan()]),
            vec![shape(b"\0\0\x02\0\0\0\0"), message(b'd', b"1\n")],
        ),
        (
            "half a row",
            copies(&[plan()]),
            vec![
                shape(b"\0\0\x02\0\0\0\0"),
                message(b'd', b"1\tx"),
                message(b'c', b""),
            ],
        ),
        ("no COPY", sql("sql:execute"), vec![shape(b"\0\0\x01\0\0")]),
    ] {
        let mut it = Conversation::new(Arc::new(Catalogue::masking_for_tests(1, 1)));
        it.query(&allowed);
        assert!(answer(&mut it, &answers).is_err(), "{name}");
    }
}

#[test]
fn both_directions_are_replications_alone() {
    let both = || message(b'W', b"\0\0\0");
    let mut it = conversation();
    it.query(&allowed(1));
    assert!(answer(&mut it, &[both()]).is_err());
    let mut it = conversation();
    it.query(&Allowed::replication("START_REPLICATION 0/0", "r"));
    check(&mut it, &[both(), message(b'd', b"k")], "Wd", &[]);
    assert_eq!(it.copy_data(b"r4111111111111111"), Data::AsSent);
    it.copy_end();
    let ended = [message(b'c', b""), complete(), complete(), ready(b'I')];
    check(&mut it, &ended, "cCCZ", &[(1, Done)]);
}
