//! What names stand for, as far as it can be known when they are used.

use super::*;
use crate::protocol::postgres::frontend::Object;
use crate::session::driver::postgres::bound::Bound;

/// Sends a simple query, and tells what each of its statements runs by name.
fn query(conversation: &mut Conversation, text: &str) -> Vec<String> {
    let statements = read(text);
    let runs = conversation.follow_query(&statements);
    conversation.query(&allowed(statements.len()));
    runs.iter().map(shown).collect()
}

fn answered(it: &mut Conversation, answers: &[Message]) {
    answer(it, answers).expect("in step");
}

/// The answers to simple queries, each done by itself: that many statements, outside of transactions.
fn done(it: &mut Conversation, queries: &[usize]) {
    for statements in queries {
        let complete: Vec<Message> = (0..*statements).map(|_| complete()).collect();
        answered(it, &complete);
        answered(it, &[ready(b'I')]);
    }
}

/// A conversation in which this statement was prepared, and that was answered.
fn with_prepared(name: &[u8], text: &str) -> Conversation {
    let mut it = conversation();
    parse(&mut it, name, text);
    it.sync().expect("no COPY");
    answered(&mut it, &[message(b'1', b""), ready(b'I')]);
    it
}

#[test]
fn sql_and_protocol_share_their_names() {
    let mut it = with_prepared(b"s", "DELETE FROM t");
    for text in [
        "EXECUTE s",
        "EXPLAIN ANALYZE EXECUTE S",
        "CREATE TABLE z AS EXECUTE s",
    ] {
        assert_eq!(query(&mut it, text), ["DELETE FROM t"], "{text}");
    }
    assert_eq!(query(&mut it, "EXECUTE \"S\""), ["?"]);
    done(&mut it, &[1, 1, 1, 1]);

    query(&mut it, "PREPARE q (int) AS DELETE FROM u WHERE id = $1");
    query(
        &mut it,
        "DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT a FROM v",
    );
    done(&mut it, &[1, 1]);
    it.bind(b"", b"q", Bound::default());
    assert_eq!(runs(&it, b""), "DELETE FROM u WHERE id = $1");
    assert_eq!(runs(&it, b"c"), "SELECT a FROM v");
    it.bind(b"p", b"q", Bound::default());
    it.sync().expect("no COPY");
    answered(
        &mut it,
        &[message(b'2', b""), message(b'2', b""), ready(b'T')],
    );
    assert_eq!(
        query(&mut it, "FETCH 1 FROM c; MOVE p"),
        ["SELECT a FROM v", "DELETE FROM u WHERE id = $1"]
    );
}

/// `PREPARE q` fails because there is one: it still is what it was.
#[test]
fn a_prepare_that_failed_changes_nothing() {
    let mut it = conversation();
    query(&mut it, "PREPARE q AS DELETE FROM t");
    done(&mut it, &[1]);
    query(&mut it, "PREPARE q AS SELECT 1");
    assert_eq!(query(&mut it, "EXECUTE q"), ["SELECT 1 | DELETE FROM t"]);
    answered(
        &mut it,
        &[error("42P05"), ready(b'I'), complete(), ready(b'I')],
    );
    assert_eq!(query(&mut it, "EXECUTE q"), ["DELETE FROM t"]);
    // Within one text, the second is reached only if the first has succeeded.
    assert_eq!(
        query(&mut it, "PREPARE q AS SELECT 2; EXECUTE q")[1],
        "SELECT 2"
    );
}

#[test]
fn a_parse_in_flight_is_certain_where_its_failure_skips_what_follows() {
    let mut it = with_prepared(b"s", "DELETE FROM t");
    parse(&mut it, b"s", "SELECT 1");
    it.bind(b"", b"s", Bound::default());
    assert_eq!(runs(&it, b""), "SELECT 1");
    it.sync().expect("no COPY");
    it.bind(b"", b"s", Bound::default());
    assert_eq!(runs(&it, b""), "SELECT 1 | DELETE FROM t");
    it.sync().expect("no COPY");
    // The failed Parse, and the Bind that was skipped with it.
    answered(&mut it, &[error("42P05"), ready(b'I')]);
    it.bind(b"", b"s", Bound::default());
    assert_eq!(runs(&it, b""), "DELETE FROM t");
}

/// The Close is skipped with its segment, so the Parse behind it fails: the name still is the DELETE.
#[test]
fn what_was_not_closed_after_all_is_still_possible() {
    let mut it = with_prepared(b"s", "DELETE FROM t");
    it.bind(b"", b"missing", Bound::default());
    it.close(Object::Statement(b"s"));
    it.sync().expect("no COPY");
    parse(&mut it, b"s", "SELECT 1");
    it.sync().expect("no COPY");
    assert_eq!(query(&mut it, "EXECUTE s"), ["SELECT 1 | DELETE FROM t"]);
    let failed = [error("26000"), ready(b'I'), error("42P05"), ready(b'I')];
    answered(&mut it, &failed);
    done(&mut it, &[1]);
    assert_eq!(query(&mut it, "EXECUTE s"), ["DELETE FROM t"]);
}

#[test]
fn names_can_run_names() {
    let mut it = conversation();
    for (name, text) in [
        (&b"a"[..], "EXECUTE b"),
        (b"b", "EXECUTE c"),
        (b"c", "PREPARE made AS DELETE FROM t"),
        (b"f", "FETCH ALL FROM k"),
    ] {
        parse(&mut it, name, text);
        answered(&mut it, &[message(b'1', b"")]);
    }
    let seen = query(
        &mut it,
        "EXECUTE a; EXECUTE made; DECLARE k CURSOR FOR SELECT 1; EXECUTE f",
    );
    assert_eq!(
        seen[0],
        "EXECUTE b | EXECUTE c | PREPARE made AS DELETE FROM t"
    );
    assert_eq!(seen[1], "DELETE FROM t");
    assert_eq!(seen[3], "FETCH ALL FROM k | SELECT 1");
}

#[test]
fn circles_and_long_chains_end() {
    let mut it = conversation();
    parse(&mut it, b"o", "EXECUTE o");
    it.bind(b"", b"o", Bound::default());
    assert_eq!(runs(&it, b""), "EXECUTE o -> EXECUTE o");
    for number in 0..1000 {
        let text = format!("EXECUTE n{}", number + 1);
        parse(&mut it, format!("n{number}").as_bytes(), &text);
    }
    it.bind(b"", b"n0", Bound::default());
    assert!(
        runs(&it, b"").ends_with("EXECUTE n17 | ?"),
        "{}",
        runs(&it, b"")
    );
}

#[test]
fn what_was_deallocated_or_closed_is_gone() {
    for (make, gone, used) in [
        ("PREPARE q AS SELECT 1", "DEALLOCATE q", "EXECUTE q"),
        ("PREPARE q AS SELECT 1", "DEALLOCATE ALL", "EXECUTE q"),
        ("PREPARE q AS SELECT 1", "DISCARD ALL", "EXECUTE q"),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "CLOSE c",
            "FETCH c",
        ),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "CLOSE ALL",
            "FETCH c",
        ),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "DISCARD ALL",
            "FETCH c",
        ),
    ] {
        let mut it = conversation();
        query(&mut it, make);
        query(&mut it, gone);
        assert_eq!(query(&mut it, used), ["SELECT 1"], "{gone} may fail");
        done(&mut it, &[1, 1, 1]);
        assert!(it.statements.len() + it.portals.len() == 0, "{gone}");
        let mut it = conversation();
        assert_eq!(query(&mut it, &format!("{make}; {gone}; {used}"))[2], "");
    }
}

#[test]
fn cursors_end_with_their_transaction_unless_held() {
    let mut it = conversation();
    query(
        &mut it,
        "BEGIN; DECLARE c CURSOR FOR SELECT 1; DECLARE h CURSOR WITH HOLD FOR SELECT 2",
    );
    answered(&mut it, &[complete(), complete(), complete(), ready(b'T')]);
    assert_eq!(query(&mut it, "FETCH c; FETCH h"), ["SELECT 1", "SELECT 2"]);
    query(&mut it, "COMMIT");
    answered(&mut it, &[complete(), complete(), ready(b'T')]);
    done(&mut it, &[1]);
    assert!(it.portals.settled(b"c").is_empty());
    assert_eq!(query(&mut it, "FETCH h"), ["SELECT 2"]);
}

/// A name that nothing in the session can have made does not exist, and the server may say so.
#[test]
fn an_unknown_name_is_nothing_until_code_has_run() {
    let mut it = conversation();
    for quiet in [
        "SELECT 1",
        "BEGIN",
        "SET application_name = 'x'",
        "PREPARE q AS SELECT 1 FROM t",
    ] {
        query(&mut it, quiet);
    }
    assert_eq!(query(&mut it, "EXECUTE nobody"), [""]);
    for noisy in [
        "SELECT f()",
        "TABLE t",
        "INSERT INTO t VALUES (1)",
        "CALL p()",
    ] {
        let mut it = conversation();
        query(&mut it, noisy);
        assert_eq!(query(&mut it, "EXECUTE nobody"), ["?"], "{noisy}");
        query(&mut it, "PREPARE known AS SELECT 1");
        assert_eq!(query(&mut it, "EXECUTE known"), ["SELECT 1"], "{noisy}");
        query(&mut it, "DISCARD ALL");
        done(&mut it, &[1, 1, 1, 1, 1]);
        assert_eq!(query(&mut it, "EXECUTE nobody"), [""], "{noisy}");
    }
}

#[test]
fn a_code_block_that_prepares_makes_every_name_uncertain() {
    let mut it = with_prepared(b"s", "SELECT 1");
    query(&mut it, "DO $$ BEGIN NULL; END $$");
    assert_eq!(query(&mut it, "EXECUTE s"), ["SELECT 1"]);
    query(&mut it, "DO $$ BEGIN EXECUTE 'DEALLOCATE s'; END $$");
    assert_eq!(query(&mut it, "EXECUTE s"), ["SELECT 1 | ?"]);
    // Also when it fails: what is prepared stays prepared.
    let mut it = conversation();
    query(&mut it, "DO $$ BEGIN EXECUTE 'x'; END $$");
    answered(&mut it, &[error("P0001"), ready(b'I')]);
    parse(&mut it, b"s", "SELECT 1");
    it.bind(b"", b"s", Bound::default());
    assert_eq!(runs(&it, b""), "SELECT 1");
    assert_eq!(runs(&it, b"other"), "?");
}

#[test]
fn a_simple_query_takes_the_unnamed_ones_away() {
    let mut it = conversation();
    parse(&mut it, b"", "SELECT 1");
    it.bind(b"", b"", Bound::default());
    it.sync().expect("no COPY");
    let made = [message(b'1', b""), message(b'2', b""), ready(b'T')];
    answered(&mut it, &made);
    assert_eq!(runs(&it, b""), "SELECT 1");
    query(&mut it, "SELECT 2");
    answered(&mut it, &[complete(), ready(b'T')]);
    assert_eq!(runs(&it, b""), "");
    it.bind(b"", b"", Bound::default());
    assert_eq!(runs(&it, b""), "");
}

/// What it holds back is of the cursor that bore the name then.
#[test]
fn a_portal_that_ran_a_name_keeps_what_it_ran() {
    let mut it = conversation();
    query(&mut it, "BEGIN; DECLARE k CURSOR FOR SELECT 1");
    answered(&mut it, &[complete(), complete(), ready(b'T')]);
    parse(&mut it, b"", "FETCH ALL FROM k");
    it.bind(b"p", b"", Bound::default());
    execute(&mut it, b"p");
    it.sync().expect("no COPY");
    let suspended = [
        message(b'1', b""),
        message(b'2', b""),
        message(b's', b""),
        ready(b'T'),
    ];
    answered(&mut it, &suspended);
    query(&mut it, "CLOSE k; DECLARE k CURSOR FOR SELECT 2");
    answered(&mut it, &[complete(), complete(), ready(b'T')]);
    assert_eq!(runs(&it, b"p"), "FETCH ALL FROM k -> SELECT 2 | SELECT 1");
}

#[test]
fn long_names_are_cut_as_the_server_cuts_them() {
    let mut it = conversation();
    let (long, longer) = ("n".repeat(63), "n".repeat(70));
    query(&mut it, &format!("PREPARE {longer} AS SELECT 1"));
    done(&mut it, &[1]);
    assert_eq!(query(&mut it, &format!("EXECUTE {long}")), ["SELECT 1"]);
    it.bind(b"", longer.as_bytes(), Bound::default());
    assert_eq!(runs(&it, b""), "SELECT 1");
    // SQL cuts between characters, the protocol between bytes.
    let mut it = conversation();
    let cut = "n".repeat(62);
    query(&mut it, &format!("PREPARE \"{cut}ä\" AS SELECT 2"));
    done(&mut it, &[1]);
    assert_eq!(query(&mut it, &format!("EXECUTE {cut}")), ["SELECT 2"]);
}

#[test]
fn a_denied_text_changes_nothing() {
    let mut it = with_prepared(b"s", "SELECT 1");
    it.follow_query(&read("DEALLOCATE s; PREPARE s AS DELETE FROM t"));
    it.retract();
    it.denied(denial(), Refused::Query);
    assert_eq!(query(&mut it, "EXECUTE s"), ["SELECT 1"]);
}

/// The server drops it before it reads the text that is to replace it.
#[test]
fn the_unnamed_statement_is_gone_when_what_replaces_it_fails() {
    for (refused, status) in [(Refused::UnnamedParse, b'E'), (Refused::Query, b'I')] {
        let mut it = with_prepared(b"", "SELECT 1");
        it.denied(denial(), refused);
        if refused == Refused::UnnamedParse {
            it.sync().expect("no COPY");
        }
        // It is not known yet whether the server gets there.
        it.bind(b"", b"", Bound::default());
        assert_eq!(runs(&it, b""), "SELECT 1", "{refused:?}");
        answered(&mut it, &[error("42601"), ready(status)]);
        it.bind(b"", b"", Bound::default());
        assert_eq!(runs(&it, b""), "", "{refused:?}");
    }
    let mut it = with_prepared(b"", "SELECT 1");
    query(&mut it, "SELECT no_such_column");
    answered(&mut it, &[error("42703"), ready(b'I')]);
    it.bind(b"", b"", Bound::default());
    assert_eq!(runs(&it, b""), "");
}

/// It might have given any name away, had it run.
#[test]
fn denied_code_makes_no_names() {
    let mut it = conversation();
    let runs_code = "SELECT made_by_somebody()";
    it.follow_query(&read(runs_code));
    it.retract();
    it.denied(denial(), Refused::Query);
    assert_eq!(query(&mut it, "EXECUTE nobody"), [""]);
    assert_eq!(query(&mut it, runs_code), [""]);
    assert_eq!(query(&mut it, "EXECUTE nobody"), ["?"]);
    // What ran before stays noted.
    it.follow_query(&read(runs_code));
    it.retract();
    assert_eq!(query(&mut it, "EXECUTE nobody"), ["?"]);
}

/// However the denial's segment ends: nothing behind the denial is reached.
#[test]
fn what_stands_behind_a_denial_gives_no_names_away() {
    for refused in [Refused::UnnamedParse, Refused::Extended] {
        let mut it = with_prepared(b"s", "SELECT 1");
        it.bind(b"before", b"s", Bound::default());
        it.denied(denial(), refused);
        it.bind(b"p", b"s", Bound::default());
        it.close(Object::Statement(b"s"));
        parse(&mut it, b"t", "SELECT 2");
        query(&mut it, "PREPARE u AS SELECT 3");
        it.sync().expect("no COPY");
        for (portal, what) in [(&b"before"[..], "SELECT 1"), (b"p", "")] {
            assert_eq!(runs(&it, portal), what, "{refused:?}");
        }
        for (statement, what) in [(&b"s"[..], "SELECT 1"), (b"t", ""), (b"u", "")] {
            it.bind(b"", statement, Bound::default());
            assert_eq!(runs(&it, b""), what, "{refused:?}");
        }
        // The next segment is another matter.
        parse(&mut it, b"t", "SELECT 4");
        it.bind(b"", b"t", Bound::default());
        assert_eq!(runs(&it, b""), "SELECT 4");
    }
    // A denied simple query fails alone.
    let mut it = conversation();
    it.denied(denial(), Refused::Query);
    parse(&mut it, b"t", "SELECT 2");
    it.bind(b"", b"t", Bound::default());
    assert_eq!(runs(&it, b""), "SELECT 2");
}

/// Were it forgotten, it could run as what nobody has prepared.
#[test]
fn the_unnamed_statement_stays_where_the_server_has_not_come_to_it() {
    let stays = |it: &mut Conversation| {
        it.bind(b"", b"", Bound::default());
        assert_eq!(runs(it, b""), "SELECT 1");
    };
    for refused in [Refused::Extended, Refused::Call] {
        let mut it = with_prepared(b"", "SELECT 1");
        it.denied(denial(), refused);
        if !refused.ends_with_ready() {
            it.sync().expect("no COPY");
        }
        answered(&mut it, &[error("34000"), ready(b'I')]);
        stays(&mut it);
    }
    // Skipped.
    let mut it = with_prepared(b"", "SELECT 1");
    it.bind(b"", b"nobody", Bound::default());
    it.denied(denial(), Refused::UnnamedParse);
    it.sync().expect("no COPY");
    answered(&mut it, &[error("26000"), ready(b'I')]);
    stays(&mut it);
    // Not even converted, or held.
    for sqlstate in ["22021", "22P05", "53200", "54000"] {
        let mut it = with_prepared(b"", "SELECT 1");
        parse(&mut it, b"", "SELECT 2");
        it.sync().expect("no COPY");
        answered(&mut it, &[error(sqlstate), ready(b'I')]);
        stays(&mut it);
        let mut it = with_prepared(b"", "SELECT 1");
        query(&mut it, "SELECT 2");
        answered(&mut it, &[error(sqlstate), ready(b'I')]);
        stays(&mut it);
    }
}

#[test]
fn what_a_session_may_hold_is_bounded() {
    let mut it = conversation();
    let text = format!("SELECT '{}'", "x".repeat(200_000));
    let statements = read(&text);
    for number in 0..400_u32 {
        it.parse(&number.to_be_bytes(), &statements, false);
    }
    assert!(!it.is_overfull(), "one statement under many names");
    let meaning = |_: u32| {
        let facts = crate::sql::code_made(&text);
        Arc::new(Meaning::new(facts, String::new(), None))
    };
    for number in 0..400_u32 {
        it.parse(&number.to_be_bytes(), &[meaning(number)], false);
    }
    assert!(it.is_overfull(), "many statements");
}

/// What code opens behind a CLOSE ALL of the same text is there still; before and after that is answered.
#[test]
fn what_code_makes_behind_close_all_is_not_known() {
    let mut it = conversation();
    for close in ["CLOSE ALL", "CLOSE c"] {
        let text = format!("{close}; SELECT opens('c'); FETCH ALL FROM c");
        assert_eq!(query(&mut it, &text)[2], "?", "{text}");
        done(&mut it, &[3]);
    }
    query(&mut it, "CLOSE ALL; SELECT opens('c')");
    done(&mut it, &[2]);
    assert_eq!(query(&mut it, "FETCH ALL FROM c"), ["?"]);
    done(&mut it, &[1]);
    query(&mut it, "SELECT opens('c'); CLOSE ALL");
    done(&mut it, &[2]);
    assert_eq!(query(&mut it, "FETCH ALL FROM c"), [""]);
}
