//! A running statement is cancelled the way clients do it: by a second connection with the session's key.

use std::time::Duration;

use crate::harness::gateway::psql_words;
use crate::harness::{Gateway, Postgres, Script, Setup};

fn gateway_that_may_sleep(server: &Postgres) -> Gateway {
    Setup::in_front_of(server).policy("allow-all").start()
}

#[test]
fn control_c_in_psql() {
    let server = Postgres::start();
    let gateway = gateway_that_may_sleep(&server);
    let mut words: Vec<String> = ["timeout", "--foreground", "-s", "INT", "2"]
        .map(str::to_owned)
        .into();
    words.extend(psql_words(
        &gateway.address("127.0.0.1"),
        ["SELECT pg_sleep(60)"],
    ));
    let seen = gateway
        .as_agent(words)
        .fails()
        .complains("canceling statement due to user request");
    assert!(seen.took < Duration::from_secs(20), "{seen}");
    let result = gateway.event("stmt.result");
    assert_eq!(result.text("outcome"), "error", "{result}");
    assert_eq!(result.text("sqlstate"), "57014", "{result}");
}

#[test]
fn psycopg_3_cancels_and_goes_on() {
    let server = Postgres::start();
    let gateway = gateway_that_may_sleep(&server);
    let script = Script::with_drivers(
        &gateway,
        "psycopg_cancel.py",
        include_str!("clients/psycopg_cancel.py"),
    );
    let seen = gateway
        .as_agent(script.words([gateway.address("127.0.0.1").as_str()]))
        .succeeds();
    assert_eq!(seen.lines(), ["cancelled 57014", "usable 42"], "{seen}");
}

#[test]
fn a_forged_key_cancels_nothing() {
    let server = Postgres::start();
    let mut gateway = gateway_that_may_sleep(&server);
    let script = Script::plain(
        &gateway,
        "forged_cancel.py",
        include_str!("clients/forged_cancel.py"),
    );
    let port = server.port().to_string();
    gateway
        .as_agent(script.words(["127.0.0.1", &port]))
        .succeeds()
        .prints("not cancelled\nthe backend's own process id");
    gateway.is_alive();
}
