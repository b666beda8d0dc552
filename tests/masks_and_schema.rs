//! Masks hold when the schema moves: tables made anew, views, children, and tables nobody else can see yet.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{Gateway, Postgres, Setup};

const CLEAR: &str = "4111111111111111";

/// A migration replaces the table while a session is open: its columns have other numbers from then on.
#[test]
fn a_table_that_is_made_anew_is_masked_at_once() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let address = gateway.address("127.0.0.1");
    let mut psql = gateway
        .agent_command(["psql", "-X", "-A", "-t", "-d", &address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql starts");
    let mut input = psql.stdin.take().expect("piped");
    writeln!(
        input,
        "SELECT card_number AS x FROM customers WHERE id = 1;"
    )
    .expect("psql reads");
    gateway.wait_for(1, "stmt.result");
    server.admin(
        "CREATE TABLE fresh AS SELECT id, card_number, name, email FROM customers;
         GRANT SELECT ON fresh TO PUBLIC;
         DROP TABLE customers CASCADE;
         ALTER TABLE fresh RENAME TO customers",
    );
    writeln!(
        input,
        "SELECT card_number AS x FROM customers WHERE id = 1;"
    )
    .expect("psql reads");
    drop(input);
    let output = psql.wait_with_output().expect("psql ends");
    let seen = String::from_utf8_lossy(&output.stdout);
    assert_eq!(seen.lines().count(), 2, "{seen}");
    assert!(!seen.contains(CLEAR), "{seen}");
    assert!(seen.lines().all(|line| line.ends_with("1111")), "{seen}");
}

#[test]
fn views_and_children_of_a_masked_table_are_refused() {
    let server = Postgres::start();
    server.admin(
        "CREATE VIEW people AS SELECT id, card_number AS reference FROM customers;
         CREATE VIEW everybody AS SELECT * FROM people;
         CREATE MATERIALIZED VIEW stored AS SELECT card_number::text AS t FROM customers;
         CREATE TABLE vip (since date) INHERITS (customers);
         INSERT INTO vip (id, name, email, card_number) VALUES (99, 'V', 'v@example.com', '4111111111111111');
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC",
    );
    let gateway = Gateway::in_front_of(&server);
    for statement in [
        "SELECT reference FROM people",
        "SELECT reference FROM everybody",
        "SELECT t FROM stored",
        "SELECT upper(card_number) FROM vip",
        "SELECT p.reference FROM orders AS o JOIN people AS p ON p.id = o.customer_id",
    ] {
        let seen = gateway
            .psql(["\\set VERBOSITY verbose", statement])
            .complains("42501")
            .complains("mask:derived");
        assert!(!seen.text().contains(CLEAR), "{statement}: {seen}");
    }
    // Through the parent its rows are masked like the others.
    let seen = gateway
        .psql(["SELECT card_number FROM customers WHERE id = 99"])
        .succeeds();
    assert!(seen.lines()[0].ends_with("1111"), "{seen}");
    assert!(!seen.text().contains(CLEAR), "{seen}");
}

/// Nor do they come out by way of code: what it says is held against the catalogue, too.
#[test]
fn code_does_not_reach_views_and_children_of_a_masked_table() {
    let server = Postgres::start();
    server.admin(
        "CREATE VIEW people AS SELECT id, card_number AS reference FROM customers;
         CREATE TABLE vip (since date) INHERITS (customers);
         INSERT INTO vip (id, name, email, card_number) VALUES (99, 'V', 'v@example.com', '4111111111111111');
         ALTER TABLE vip OWNER TO shop_app;
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC",
    );
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    for statements in [
        &[
            "CREATE FUNCTION f() RETURNS SETOF text LANGUAGE sql AS 'SELECT reference FROM people'",
            "SELECT f()",
        ][..],
        &[r"DO E'BEGIN RAISE NOTICE \'%\', (SELECT max(reference) FROM peo\160le); END'"],
        &[
            "BEGIN",
            "DO 'BEGIN ALTER TABLE vip RENAME TO others; END'",
            "SELECT upper(card_number) FROM others",
        ],
    ] {
        let seen = gateway
            .psql(
                ["\\set VERBOSITY verbose"]
                    .into_iter()
                    .chain(statements.iter().copied()),
            )
            .complains("mask:derived");
        assert!(!seen.text().contains(CLEAR), "{statements:?}: {seen}");
    }
}

/// What is a second old is not in a catalogue that is two seconds old.
#[test]
fn a_view_made_behind_an_open_session_is_refused_too() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT id FROM customers"]).succeeds();
    server.admin(
        "CREATE VIEW fresh AS SELECT card_number AS x FROM customers; GRANT SELECT ON fresh TO PUBLIC",
    );
    for statement in ["SELECT x FROM fresh", "SELECT upper(x) FROM fresh"] {
        let seen = gateway
            .psql(["\\set VERBOSITY verbose", statement])
            .complains("mask:derived");
        assert!(!seen.text().contains(CLEAR), "{statement}: {seen}");
    }
}

/// A table of a transaction that is still open cannot be looked up by anybody else: a column of a masked
/// name is withheld.
#[test]
fn a_table_nobody_else_can_see_is_masked_by_name() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let seen = gateway
        .psql([
            "BEGIN",
            "CREATE TABLE newborn (id int, card_number text, note text)",
            "INSERT INTO newborn VALUES (1, '4111111111111111', 'seen')",
            "SELECT card_number, note FROM newborn",
            "ROLLBACK",
        ])
        .succeeds();
    assert!(!seen.text().contains(CLEAR), "{seen}");
    seen.prints("|seen");
}

/// Without this, `people` would be decided as public.people and read from another schema.
#[test]
fn a_search_path_other_than_public_gets_no_session() {
    for elsewhere in [
        "CREATE SCHEMA hr; GRANT USAGE ON SCHEMA hr TO PUBLIC; ALTER ROLE shop_app SET search_path = hr, public",
        "CREATE SCHEMA shop_app; GRANT USAGE ON SCHEMA shop_app TO PUBLIC",
    ] {
        let server = Postgres::start();
        server.admin(elsewhere);
        let gateway = Gateway::in_front_of(&server);
        gateway
            .psql(["SELECT 1"])
            .fails()
            .complains("FATAL")
            .complains("target:search-path");
        assert_eq!(gateway.event("deny").text("rule"), "target:search-path");
        server.admin("ALTER ROLE shop_app SET search_path = public");
        gateway.psql(["SELECT 1"]).succeeds();
    }
}
