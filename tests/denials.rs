//! What a denied statement looks like, and that the session lives on, with the right transaction state.

use crate::harness::gateway::psql_words;
use crate::harness::program::{Ended, run_with_input};
use crate::harness::{Gateway, Postgres, Script, Setup};

const DRIVER_SEES: &str = "refused 42501, and usable";

fn psql_script(gateway: &Gateway, script: &str) -> Ended {
    let words = psql_words(&gateway.address("127.0.0.1"), []);
    run_with_input(gateway.agent_command(words), script.as_bytes()).succeeds()
}

#[test]
fn a_drop_table_is_refused_with_advice_and_the_session_goes_on() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let seen = psql_script(
        &gateway,
        "\\set VERBOSITY verbose\nDROP TABLE orders;\nSELECT 'still here', pg_backend_pid();\n",
    );
    let seen = seen
        .complains("ERROR:  42501:")
        .complains("DETAIL:")
        .complains("HINT:");
    seen.prints("still here");
    assert_eq!(server.admin("SELECT count(*) FROM orders"), "40");

    let denied = gateway.event("deny");
    assert_eq!(denied.text("stage"), "statement", "{denied}");
    assert_eq!(denied.text("statement"), "DROP TABLE orders", "{denied}");
    for member in [
        "rule", "reason", "hint", "session", "agent", "subject", "target",
    ] {
        assert_ne!(denied.text(member), "", "{member} is missing: {denied}");
    }
    let opened: Vec<_> = gateway.wait_for(1, "session.open");
    assert_eq!(opened.len(), 1, "one session for all of it");
    let closed = gateway.event("session.close");
    assert_eq!(closed.number("denied"), 1, "{closed}");
    assert_eq!(closed.number("statements"), 2, "{closed}");
}

/// Nothing of the text runs, and the error says because of which of its statements.
#[test]
fn of_several_statements_the_denied_one_is_named() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let text = "SELECT 1; DELETE FROM products WHERE id = 7; SELECT 2";
    let seen = gateway.psql([text]).fails();
    let seen =
        seen.complains("It is statement 2 of 3, and none of them has run: DELETE FROM products");
    assert_eq!(seen.text(), "", "{seen}");
    let denied = gateway.event("deny");
    assert_eq!(
        denied.text("statement"),
        "DELETE FROM products WHERE id = 7",
        "{denied}"
    );
}

#[test]
fn every_kind_of_write_is_refused() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let before = server.admin("SELECT count(*), sum(stock) FROM products");
    let writes = [
        "INSERT INTO products VALUES (9, 'x', 1, 1)",
        "UPDATE products SET stock = 0",
        "DELETE FROM products",
        "TRUNCATE products CASCADE",
        "WITH gone AS (DELETE FROM products RETURNING *) SELECT * FROM gone",
        "EXPLAIN ANALYZE DELETE FROM products",
        "PREPARE p AS DELETE FROM products",
        "SELECT 1; DELETE FROM products",
        "DO $$ BEGIN DELETE FROM products; END $$",
        "CREATE TABLE copy AS SELECT * FROM products",
        "SELECT * INTO copy FROM products",
        "COPY products FROM STDIN",
        "ALTER TABLE products DROP COLUMN stock",
        "GRANT ALL ON products TO PUBLIC",
        "SET ROLE postgres",
        "SELEC 1",
    ];
    let mut script = String::from("\\set VERBOSITY verbose\n");
    for (number, write) in writes.iter().enumerate() {
        script.push_str(&format!(
            "{};\nSELECT 'after', {number};\n",
            write.replace("; ", "\\; ")
        ));
    }
    // Newer psql takes what follows a COPY that failed for its data, up to this line.
    script = script.replace("FROM STDIN;\n", "FROM STDIN;\n\\.\n");
    let seen = psql_script(&gateway, &script);
    assert_eq!(
        seen.stderr.matches("ERROR:  42501:").count(),
        writes.len(),
        "{seen}"
    );
    for number in 0..writes.len() {
        assert!(
            seen.text().contains(&format!("after|{number}\n")),
            "{number}: {seen}"
        );
    }
    assert_eq!(
        server.admin("SELECT count(*), sum(stock) FROM products"),
        before
    );
    gateway.wait_for(writes.len(), "deny");
}

#[test]
fn a_statement_that_does_not_parse_is_a_named_case() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    psql_script(&gateway, "SELEC * FROM products;\n").complains("sql:unknown");
    assert_eq!(gateway.event("deny").text("rule"), "sql:unknown");
}

#[test]
fn a_denial_inside_a_transaction_aborts_it_as_a_native_error_does() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let seen = psql_script(
        &gateway,
        "BEGIN;\nDROP TABLE orders;\nSELECT 'too early';\nROLLBACK;\nSELECT 'after the rollback';\n",
    );
    let seen = seen.complains("current transaction is aborted");
    let seen = seen.prints("ROLLBACK").prints("after the rollback");
    assert!(!seen.text().contains("too early"), "{seen}");
}

#[test]
fn a_savepoint_survives_a_denial() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let seen = psql_script(
        &gateway,
        "BEGIN;\nSAVEPOINT here;\nDROP TABLE orders;\nROLLBACK TO here;\nSELECT 'goes on';\nCOMMIT;\n",
    );
    seen.prints("goes on\nCOMMIT");
}

#[test]
fn denials_through_psycopg_3_in_every_mode() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::with_drivers(
        &gateway,
        "psycopg_denied.py",
        include_str!("clients/psycopg_denied.py"),
    );
    let seen = gateway
        .as_agent(script.words([gateway.address("127.0.0.1").as_str()]))
        .succeeds();
    let expected = [
        "autocommit",
        "transaction",
        "savepoint",
        "prepared",
        "server cursor",
        "pipeline",
        "executemany",
        "copy",
    ]
    .map(|mode| format!("{mode}: {DRIVER_SEES}"));
    assert_eq!(seen.lines(), expected, "{seen}");
}

#[test]
fn denials_through_asyncpg_in_every_mode() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::with_drivers(
        &gateway,
        "asyncpg_denied.py",
        include_str!("clients/asyncpg_denied.py"),
    );
    let port = server.port().to_string();
    let seen = gateway
        .as_agent(script.words(["127.0.0.1", &port]))
        .succeeds();
    let expected =
        ["simple", "fetch", "transaction", "prepare"].map(|mode| format!("{mode}: {DRIVER_SEES}"));
    assert_eq!(seen.lines(), expected, "{seen}");
}

/// A setting in the start-up packet amounts to a SET, and is decided as one.
#[test]
fn settings_brought_along_are_decided_like_set() {
    let server = Postgres::start();
    let asks = |options: &str| format!("options='-c {options}'");
    for (policy, options, refused) in [
        ("read-only", "statement_timeout=0", true),
        ("allow-all", "statement_timeout=0", false),
        ("read-only", "extra_float_digits=1", false),
        ("allow-all", "search_path=hr", true),
    ] {
        let gateway = Setup::in_front_of(&server).policy(policy).start();
        let address = format!("{} {}", gateway.address("127.0.0.1"), asks(options));
        let seen = gateway.as_agent(["psql", "-X", "-d", &address, "-c", "SELECT 1"]);
        if refused {
            seen.fails().complains("FATAL");
            assert_eq!(gateway.event("deny").text("stage"), "startup", "{options}");
        } else {
            seen.succeeds();
        }
    }
}
