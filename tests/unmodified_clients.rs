//! Ordinary clients work as an agent without a change, and for statements that no rule touches they see
//! exactly what they see on a direct connection.

use std::process::Command;

use crate::harness::gateway::psql_words;
use crate::harness::postgres::PASSWORD;
use crate::harness::program::{Ended, run, run_with_input};
use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};

const READS: &str = r"
SELECT id, title, price, stock FROM products ORDER BY id;
SELECT name FROM customers ORDER BY name;
\x on
SELECT * FROM orders ORDER BY id LIMIT 3;
\x off
\pset format csv
SELECT p.title, sum(o.quantity) FROM orders o JOIN products p ON p.id = o.product_id GROUP BY p.title ORDER BY 1;
\pset format aligned
SELECT NULL, '', 'ä€😀', E'a\tb';
SELECT 1 AS one\; SELECT 2 AS two;
SELECT 1 / 0;
SELECT no_such_column FROM products;
SELECT * FROM no_such_table;
BEGIN;
SELECT count(*) FROM orders;
SAVEPOINT here;
SELECT 1 / 0;
SELECT 1;
ROLLBACK TO here;
SELECT 2;
COMMIT;
SET application_name = 'reports';
SHOW application_name;
\set FETCH_COUNT 7
SELECT id, placed_at FROM orders ORDER BY id;
\unset FETCH_COUNT
\dt
\d products
\conninfo
";

const WRITES: &str = r"
CREATE TABLE scratch (id integer PRIMARY KEY, note text);
INSERT INTO scratch VALUES (1, 'one'), (2, NULL) RETURNING *;
INSERT INTO scratch VALUES (1, 'again');
COPY scratch FROM STDIN;
3	three
4	\N
\.
COPY scratch TO STDOUT;
\copy scratch TO STDOUT (FORMAT csv)
UPDATE scratch SET note = 'changed' WHERE id > 2;
DELETE FROM scratch WHERE id = 2 RETURNING id;
DO $$ BEGIN RAISE NOTICE 'noticed %', 1; END $$;
PREPARE by_id AS SELECT note FROM scratch WHERE id = $1;
EXECUTE by_id(3);
DEALLOCATE by_id;
EXPLAIN (COSTS off) SELECT * FROM scratch;
BEGIN;
TRUNCATE scratch;
ROLLBACK;
SELECT count(*) FROM scratch;
DROP TABLE scratch;
";

#[test]
fn psql_reads() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    psql_sees_the_same(&server, &gateway, READS);
}

#[test]
fn psql_reads_a_hundred_thousand_rows() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    psql_sees_the_same(
        &server,
        &gateway,
        "SELECT n, repeat('row ', 20) FROM generate_series(1, 100000) AS n;\n",
    );
}

#[test]
fn psql_writes_where_it_may() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    psql_sees_the_same(&server, &gateway, WRITES);
}

/// While strings are not standard, a backslash in them escapes.
#[test]
fn psql_without_standard_strings() {
    const SCRIPT: &str = r"
SET standard_conforming_strings = off;
SET escape_string_warning = off;
SELECT 'it\'s', 'a\tb', '\\', 'plain';
SELECT 'it\'s' AS one\; SELECT 2 AS two;
SELECT U&'d!0061' UESCAPE '!';
SET standard_conforming_strings = on;
SELECT 'a\', 'b';
";
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = unmasked(&server);
    psql_sees_the_same(&server, &gateway, SCRIPT);
    assert_eq!(gateway.events().count("deny"), 0);
}

/// libpq's large-object functions are function calls outside of SQL.
#[test]
fn psql_handles_large_objects() {
    const SCRIPT: &str = r"
SELECT lo_from_bytea(424242, 'large');
\lo_export 424242 /dev/null
\lo_unlink 424242
\lo_unlink 424242
SELECT 1;
";
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = unmasked(&server);
    psql_sees_the_same(&server, &gateway, SCRIPT);
    let events = gateway.events();
    assert_eq!(events.count("deny"), 0, "{events}");
    let called = |statement: &str| {
        let mut intents = events.named("stmt.intent");
        intents.any(|intent| intent.text("statement") == statement)
    };
    assert!(called("SELECT pg_catalog.lo_unlink($1)"), "{events}");
}

fn unmasked(server: &Postgres) -> Gateway {
    let setup = Setup::in_front_of(server).policy("allow-all");
    setup.with_superuser_of_any_database().start()
}

#[track_caller]
fn psql_sees_the_same(server: &Postgres, gateway: &Gateway, script: &str) {
    // The server has no TLS, which the gateway offers: what psql says about that would differ.
    let address = format!("{} sslmode=disable", gateway.address("127.0.0.1"));
    let words = psql_words(&address, []);
    // psql's own alignment is part of what a person sees: leave out the two words that turn it off.
    let words = words
        .iter()
        .filter(|word| !["-A", "-t"].contains(&word.as_str()));
    let mut direct = Command::new("psql");
    direct
        .args(words.clone().skip(1))
        .env("PGPASSWORD", PASSWORD);
    let expected = run_with_input(direct, script.as_bytes()).succeeds();
    let seen = run_with_input(gateway.agent_command(words), script.as_bytes()).succeeds();
    same(&expected, &seen);
    assert!(server.log().contains("connection authorized"));
    assert!(gateway.event("session.close").number("statements") > 0);
}

#[track_caller]
fn same(expected: &Ended, seen: &Ended) {
    for (expected, seen) in expected.lines().iter().zip(seen.lines()) {
        assert_eq!(*expected, seen, "left: direct, right: through the gateway");
    }
    assert_eq!(expected.stdout.len(), seen.stdout.len(), "{seen}");
    assert!(expected.stdout == seen.stdout, "{seen}");
    assert_eq!(expected.stderr, seen.stderr, "{seen}");
}

/// Notices that come before the session is open.
#[test]
fn what_the_server_remarks_at_the_start() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let words = |address: String| {
        let address = format!("{address} application_name={}", "x".repeat(65));
        psql_words(&address, ["SELECT 'in'"])
    };
    let expected = server.directly(words(server.address("127.0.0.1")));
    let expected = expected.succeeds().complains("will be truncated to");
    let seen = gateway.as_agent(words(gateway.address("127.0.0.1")));
    same(&expected, &seen);
}

#[test]
fn every_byte_of_the_protocol() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Gateway::in_front_of(&server);
    let script = Script::plain(&gateway, "wire.py", include_str!("clients/wire.py"));
    let port = server.port().to_string();
    let words = script.words(["127.0.0.1", &port]);
    let expected = server.directly(&words).succeeds();
    let seen = gateway.as_agent(&words).succeeds();
    assert!(expected.lines().len() > 5000);
    same(&expected, &seen);
}

#[test]
fn pgbench_with_simple_queries() {
    pgbench("simple");
}

#[test]
fn pgbench_with_the_extended_protocol() {
    pgbench("extended");
}

#[test]
fn pgbench_with_prepared_statements() {
    pgbench("prepared");
}

fn pgbench(protocol: &str) {
    const CLIENTS: usize = 4;
    const EACH: usize = 150;
    let server = Postgres::start();
    server
        .directly(["pgbench", "-i", "-q", "-n", &server.address("127.0.0.1")])
        .succeeds();
    let gateway = Gateway::in_front_of(&server);
    let bench = gateway
        .as_agent([
            "pgbench",
            "-S",
            "-n",
            "-M",
            protocol,
            "-j",
            "2",
            "-c",
            &CLIENTS.to_string(),
            "-t",
            &EACH.to_string(),
            &gateway.address("127.0.0.1"),
        ])
        .succeeds();
    let all = CLIENTS * EACH;
    let bench = bench.prints(&format!("transactions actually processed: {all}/{all}"));
    bench.prints("failed transactions: 0 ");
    gateway.wait_for(CLIENTS, "session.close");
    let events = gateway.events();
    assert!(events.count("stmt.intent") >= all);
    assert_eq!(events.count("stmt.intent"), events.count("stmt.result"));
    assert_eq!(events.count("deny"), 0, "{events}");
}

#[test]
fn psycopg_3() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::with_drivers(
        &gateway,
        "psycopg_rows.py",
        include_str!("clients/psycopg_rows.py"),
    );
    let words = script.words([gateway.address("127.0.0.1").as_str()]);
    same(
        &server.directly(&words).succeeds(),
        &gateway.as_agent(&words).succeeds(),
    );
}

#[test]
fn asyncpg() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::with_drivers(
        &gateway,
        "asyncpg_rows.py",
        include_str!("clients/asyncpg_rows.py"),
    );
    let port = server.port().to_string();
    let mut direct = Command::new("env");
    direct.args(script.words(["127.0.0.1", &port, PASSWORD]));
    same(
        &run(direct).succeeds(),
        &gateway
            .as_agent(script.words(["127.0.0.1", &port]))
            .succeeds(),
    );
}
