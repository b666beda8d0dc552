//! Masks hold for rows that the server holds back: for portals whose names have come to stand for something
//! else, and for tables that are gone.

use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};

const SCRIPT: &str = include_str!("clients/held_back.py");

/// Answers one scene's lines, none of which has a card number in clear.
fn scene(name: &str) -> (Gateway, Vec<String>) {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let port = server.port().to_string();
    let words = Script::plain(&gateway, "held_back.py", SCRIPT).words(["127.0.0.1", &port, name]);
    let seen = gateway.as_agent(words).succeeds();
    for card in ["4111111111111111", "5500005555555559", "4012888888881881"] {
        assert!(!seen.text().contains(card), "{seen}");
    }
    (gateway, seen.lines())
}

/// FETCH describes the rows of a portal that runs EXECUTE as those of what has that name now.
#[test]
fn rows_held_back_by_a_portal_that_runs_execute() {
    let (gateway, lines) = scene("executed");
    assert_eq!(
        lines,
        [
            "C C Z:T",
            "1 2 D:************1111 s Z:T",
            "C C Z:T",
            "D:************5559 s Z:T",
            "C Z:T",
            "E:42501 Z:E",
            "C Z:T",
            "1 2 E:42501 Z:E",
            "C Z:I",
        ]
    );
    assert_eq!(gateway.event("deny").text("rule"), "mask:held-rows");
}

#[test]
fn rows_held_back_by_a_portal_that_runs_fetch() {
    let (_gateway, lines) = scene("fetched");
    assert_eq!(
        lines,
        [
            "C C Z:T",
            "1 2 D:************1111 s Z:T",
            "1 2 Z:T",
            "C C C Z:T",
            "E:42501 Z:E",
            "C Z:T",
            "E:42501 Z:E",
            "C Z:I",
        ]
    );
}

#[test]
fn a_portal_that_runs_execute_is_not_begun_by_fetch() {
    let (_gateway, lines) = scene("begun");
    assert_eq!(
        lines,
        [
            "C C Z:T",
            "1 2 Z:T",
            "C Z:T",
            "E:42501 Z:E",
            "C Z:T",
            "C C Z:T",
            "D:Espresso cup s Z:T",
            "C Z:I",
        ]
    );
}

/// A cursor WITH HOLD has its rows still, and says of which table they were.
#[test]
fn a_cursor_outlives_its_masked_table() {
    let (_gateway, lines) = scene("dropped");
    assert_eq!(
        lines,
        [
            "C Z:I",
            "T D:************1111 C Z:I",
            "N C Z:I",
            "T D:************5559 C Z:I",
        ]
    );
}

/// What it sends could not be masked: it is refused before it runs, and the session goes on.
#[test]
fn a_prepared_copy_is_not_run_by_execute() {
    let (gateway, lines) = scene("copied");
    assert_eq!(lines[..2], ["1 Z:I", "E:42501 Z:I"]);
    assert!(lines[2].starts_with("2 H d"), "{lines:?}");
    assert_eq!(gateway.event("deny").text("rule"), "mask:copy");
}

/// As one does that the server refuses.
#[test]
fn a_denied_parse_takes_the_unnamed_statement_away() {
    let (_gateway, lines) = scene("unnamed");
    assert_eq!(
        lines,
        [
            "1 Z:I",
            "E:42501 Z:I",
            "E:26000 Z:I",
            "C Z:T",
            "E:42501 Z:E",
            "E:25P02 Z:E",
            "C Z:I",
            "1 Z:I",
            "E:26000 Z:I",
            "2 D:2 C Z:I",
        ]
    );
}
