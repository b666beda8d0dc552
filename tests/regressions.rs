//! What proxies of our field get wrong, one test for each: with the messages by hand, with real clients where
//! they would notice, and with the evidence.

use crate::harness::by_hand::by_hand;
use crate::harness::program::run_with_input;
use crate::harness::{Gateway, Postgres, Script, Setup};

/// One case of `deny_regressions.py`, run as the agent.
fn answers(server: &Postgres, gateway: &Gateway, case: &str) -> Vec<String> {
    let script = by_hand(
        gateway,
        "deny_regressions.py",
        include_str!("clients/deny_regressions.py"),
    );
    let port = server.port().to_string();
    let seen = gateway.as_agent(script.words(["127.0.0.1", &port, case]));
    seen.succeeds().lines()
}

/// The statements that ran, as their leaves show them.
fn ran(gateway: &Gateway) -> Vec<String> {
    let events = gateway.events();
    let intents = events.named("stmt.intent");
    intents.map(|intent| intent.text("statement")).collect()
}

/// A proxy that drops what follows a denial up to a Sync waits for one that a simple query never brings.
#[test]
fn a_denied_simple_query_does_not_hang() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    assert_eq!(
        answers(&server, &gateway, "a_denied_simple_query"),
        [
            "E:ERROR/42501 Z:I",
            "E:ERROR/42501 Z:I T D C:SELECT 1 Z:I",
            "E:ERROR/42501 Z:I",
            "T D C:SELECT 1 Z:I",
        ]
    );
    let seen = gateway.psql(["DELETE FROM orders", "SELECT 'goes on'"]);
    seen.complains("ERROR").prints("goes on");
    gateway.wait_for(4, "deny");
    gateway.wait_for(2, "session.close");
    assert_eq!(ran(&gateway), ["SELECT 1", "SELECT 1", "SELECT 'goes on'"]);
    assert_eq!(server.admin("SELECT count(*) FROM orders"), "40");
}

/// A proxy that answers alone says `I` inside a transaction, and the client believes that it is out of it.
#[test]
fn ready_for_query_tells_the_transaction_state() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    assert_eq!(
        answers(&server, &gateway, "transaction_states"),
        [
            "E:ERROR/42501 Z:I",
            "C:BEGIN Z:T",
            "E:ERROR/42501 Z:E",
            "E:ERROR/25P02 Z:E",
            "C:ROLLBACK Z:I",
            "C:BEGIN Z:T",
            "E:ERROR/42501 Z:E",
            "E:ERROR/25P02 Z:E",
            "C:ROLLBACK Z:I",
            "T D C:SELECT 1 Z:I",
        ]
    );
    gateway.wait_for(3, "deny");
    gateway.wait_for(1, "session.close");
    // What the server made of it: the transaction has really failed, and nothing is left of it.
    let events = gateway.events();
    let results = events.named("stmt.result");
    let ended: Vec<String> = results
        .map(|result| format!("{} {}", result.text("outcome"), result.text("sqlstate")))
        .collect();
    // In the extended transaction the Executes behind a failed Parse never ran.
    let expected = [
        "ok ",
        "error 25P02",
        "ok ",
        "ok ",
        "skipped ",
        "skipped ",
        "ok ",
        "ok ",
    ];
    assert_eq!(ended, expected);
}

#[test]
fn null_parameters_stay_null() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let three = "['t', 'f', 'f', None, '', 'NULL']";
    assert_eq!(
        answers(&server, &gateway, "null_parameters"),
        [three, three, three, "[None, '0']"]
    );
    let script = Script::with_drivers(
        &gateway,
        "deny_nulls.py",
        include_str!("clients/deny_nulls.py"),
    );
    let port = server.port().to_string();
    let seen = gateway.as_agent(script.words(["127.0.0.1", &port]));
    let row = "(None, '', None, b'')";
    let psycopg = format!("psycopg {row}");
    assert_eq!(
        seen.succeeds().lines(),
        [psycopg.clone(), psycopg, format!("asyncpg {row}")]
    );
    gateway.wait_for(2, "session.close");
    let events = gateway.events();
    let with_parameters: Vec<u64> = events
        .named("stmt.intent")
        .filter(|intent| intent.text("statement").contains("$3"))
        .map(|intent| intent.number("params"))
        .collect();
    assert_eq!(with_parameters, [3, 3, 3, 4, 4, 4]);
}

/// A message may come in as many pieces as it has bytes, and several in one.
#[test]
fn split_frames_are_put_together() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    assert_eq!(
        answers(&server, &gateway, "split_frames"),
        [
            "T D C:SELECT 1 Z:I",
            "E:ERROR/42501 Z:I",
            "T D C:SELECT 1 Z:I E:ERROR/42501 Z:I T D C:SELECT 1 Z:I",
            "1 2 D C:SELECT 1 Z:I",
        ]
    );
    gateway.wait_for(2, "deny");
    gateway.wait_for(1, "session.close");
    assert_eq!(
        ran(&gateway),
        [
            "SELECT 'in pieces'",
            "SELECT 'first'",
            "SELECT 'third'",
            "SELECT 'in a Parse'"
        ]
    );
}

/// A proxy that plans masks when it sees a RowDescription sees none where the client never asks for one.
#[test]
fn clients_that_never_describe_get_masked_rows() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let rows = "D D D D D C:SELECT 5";
    assert_eq!(
        answers(&server, &gateway, "never_described"),
        [
            format!("1 2 {rows} Z:I"),
            "1 Z:I".to_owned(),
            format!("2 {rows} Z:I"),
            "2 D D s D D D C:SELECT 3 Z:I".to_owned(),
            format!("2 {rows}"),
            "Z:I".to_owned(),
            "masked 4, clear 0".to_owned(),
        ]
    );
    gateway.wait_for(1, "session.close");
    let events = gateway.events();
    let results = events.named("stmt.result");
    let masked: Vec<u64> = results.map(|result| result.number("masked")).collect();
    assert_eq!(masked, [5, 5, 2, 3, 5]);
}

/// A statement that was prepared long ago is in the log each time it runs, with its text.
#[test]
fn prepared_statements_are_visible_each_time_they_run() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    assert_eq!(
        answers(&server, &gateway, "prepared_statements"),
        [
            "1 Z:I",
            "2 D C:SELECT 1 Z:I",
            "2 D C:SELECT 1 Z:I",
            "E:ERROR/42501 Z:I",
            "E:ERROR/26000 Z:I",
        ]
    );
    gateway.wait_for(1, "session.close");
    let text = "SELECT title FROM products WHERE id = 1";
    let known = ran(&gateway).iter().filter(|ran| *ran == text).count();
    assert_eq!(known, 2, "{:?}", ran(&gateway));
    assert_eq!(
        gateway.event("deny").text("statement"),
        "DELETE FROM orders"
    );
}

/// Messages and SQL share the names of prepared statements: whichever runs the other's, the log says what ran.
#[test]
fn sql_execute_of_a_protocol_prepared_statement_is_decided_as_what_it_runs() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    assert_eq!(
        answers(&server, &gateway, "sql_execute"),
        [
            "1 Z:I",
            "T D C:SELECT 1 Z:I",
            "1 Z:I",
            "T D C:SELECT 1 Z:I",
            "C:PREPARE Z:I",
            "2 D C:SELECT 1 Z:I",
            "masked 1, clear 0",
        ]
    );
    gateway.wait_for(1, "session.close");
    let events = gateway.events();
    for (runs, text, table) in [
        ("EXECUTE of_protocol", "title FROM products", "products"),
        ("EXECUTE masked", "card_number FROM customers", "customers"),
        ("", "SELECT price FROM products WHERE id = 3", "products"),
    ] {
        let shown = events.named("stmt.intent").any(|intent| {
            let prepares = intent.text("statement").starts_with("PREPARE");
            let says = intent.to_string().contains(text) && intent.text("tables").contains(table);
            !prepares && says && intent.text("statement").contains(runs)
        });
        assert!(shown, "{text}: {:?}", ran(&gateway));
    }
}

/// Of those in the field that answer a denial themselves, some keep what ran before it in the same segment.
#[test]
fn what_ran_before_a_denial_in_its_segment_is_rolled_back() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    // Denied by its mask, whatever the policies say.
    let script = "UPDATE orders SET quantity = 99 \\; SELECT upper(card_number) FROM customers;\n\
                  SELECT count(*) FROM orders WHERE quantity = 99;\n";
    let words = crate::harness::gateway::psql_words(&gateway.address("127.0.0.1"), []);
    let seen = run_with_input(gateway.agent_command(words), script.as_bytes());
    seen.complains("ERROR").prints("0\n");
    gateway.event("deny");
}

/// Each was proven against a bare server: what it would read must not come, what it would write must not be
/// there, and the connection is usable afterwards.
#[test]
fn messages_that_are_ways_around_a_policy() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let everything = "SELECT (SELECT count(*) FROM orders), (SELECT sum(stock) FROM products),
        (SELECT count(*) FROM pg_class), (SELECT rolname FROM pg_roles WHERE rolname = 'shop_app')";
    let before = server.admin(everything);
    let script = by_hand(
        &gateway,
        "deny_attacks.py",
        include_str!("clients/deny_attacks.py"),
    );
    let port = server.port().to_string();
    let seen = gateway
        .as_agent(script.words(["127.0.0.1", &port]))
        .succeeds();
    let lines = seen.lines();
    for line in &lines {
        let refused = line.starts_with("replication=") && line.contains(": E:FATAL/");
        assert!(refused || line.contains(": held, usable; "), "{line}");
    }
    assert!(lines.len() >= 43, "{seen}");
    assert_eq!(server.admin(everything), before);
}
