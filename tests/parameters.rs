//! Bound parameters: read in both formats into evidence and into facts that policies go by, and withheld
//! where they may be values of masked columns.

use std::fs;

use serde_json::Value;

use crate::harness::events::Event;
use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};

/// Forbids one title and one number, however they are sent.
const NO_TEAPOTS: &str = r#"@id("no-teapots") @reason("teapots are counted by hand.")
forbid (principal, action == Sluice::Action::"sql:update", resource)
when { context.parameters.contains("teapot") || context.parameters.contains("666") };"#;

/// The scripts import from the first one.
fn script(gateway: &Gateway, name: &str, text: &str) -> Script {
    Script::plain(
        gateway,
        "parameters.py",
        include_str!("clients/parameters.py"),
    );
    Script::with_drivers(gateway, name, text)
}

fn run(server: &Postgres, gateway: &Gateway, script: &Script) -> Vec<String> {
    let (port, address) = (server.port().to_string(), gateway.address("127.0.0.1"));
    let words = script.words(["127.0.0.1", port.as_str(), address.as_str()]);
    gateway.as_agent(words).succeeds().lines().to_vec()
}

/// The parameters of each statement that had some.
fn shown(gateway: &Gateway) -> Vec<Vec<Value>> {
    gateway.event("session.close");
    let events = gateway.events();
    let with_some = |event: &&Event| event.0["params"].as_u64().is_some_and(|count| count > 0);
    let parameters = |event: &Event| event.0["parameters"].as_array().cloned();
    let intents = events.named("stmt.intent").filter(with_some);
    intents
        .map(|it| parameters(it).unwrap_or_default())
        .collect()
}

#[test]
fn parameters_are_shown_as_the_server_prints_them() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let text = include_str!("clients/parameters.py");
    let script = script(&gateway, "parameters.py", text);
    let printed = run(&server, &gateway, &script);
    assert!(printed.len() >= 60, "{printed:?}");
    let mut seen = shown(&gateway).into_iter();
    for (line, parameters) in printed.iter().zip(seen.by_ref()) {
        let [parameter] = parameters.as_slice() else {
            panic!("{line}: {parameters:?}");
        };
        let shown = format!(
            "{}|{}",
            parameter["type"].as_str().unwrap_or_default(),
            parameter["value"].as_str().unwrap_or_default()
        );
        assert_eq!(*line, shown);
        assert_eq!(parameter.get("hex"), None, "{line}");
    }
    let rest: Vec<Value> = seen.map(Value::from).collect();
    assert_eq!(
        Value::from(rest),
        serde_json::json!([
            [{"value": "text"}, {"value": null}],
            [{"value": "\\x616263", "hex": true}],
            [{"type": "int4", "value": "4"}, {"type": "int4", "value": "7"}],
        ])
    );
}

#[test]
fn parameters_of_drivers_are_shown() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let text = include_str!("clients/parameters_drivers.py");
    let script = script(&gateway, "parameters_drivers.py", text);
    run(&server, &gateway, &script);
    gateway.wait_for(2, "session.close");
    let expected = [
        "42",
        "ä€",
        "t",
        "2.5",
        "12.50",
        "2024-02-29",
        "2024-02-29 13:14:15+00",
        "c2f0e1a4-0000-4000-8000-000000000001",
        "\\x00ff",
        "{1,2}",
    ];
    let seen = shown(&gateway);
    let seen: Vec<_> = seen
        .iter()
        .filter(|it| it.len() == expected.len())
        .collect();
    assert_eq!(seen.len(), 2, "{seen:?}");
    for parameters in seen {
        let values: Vec<&str> = parameters
            .iter()
            .map(|parameter| parameter["value"].as_str().unwrap_or_default())
            .collect();
        assert_eq!(values, expected);
    }
}

#[test]
fn values_of_masked_columns_and_card_numbers_are_withheld() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let seen = sends_secrets(&server, &gateway);
    let withheld =
        |of_type: &str| serde_json::json!({"type": of_type, "value": null, "withheld": true});
    let value = |of_type: &str, value: &str| serde_json::json!({"type": of_type, "value": value});
    let masked = vec![withheld("text"), withheld("int4")];
    let expected = vec![
        masked.clone(),
        masked,
        vec![value("text", "pay [card number] now")],
        vec![value("text", "pay [card number] now")],
        vec![value("int8", "[card number]")],
        vec![value("int8", "[card number]")],
        vec![value("numeric", "[card number]")],
        vec![value("jsonb", r#"{"card": "[card number]"}"#)],
        vec![withheld("text[]")],
        vec![value("int8[]", "{1,[card number]}")],
        vec![withheld("bytea")],
        vec![serde_json::json!({"value": "[card number]"})],
        vec![value("text", "nothing of the kind")],
    ];
    assert_eq!(seen, expected);
}

/// The same where nothing is masked, and functions may be called outside of SQL.
#[test]
fn card_numbers_are_withheld_where_nothing_is_masked() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .with_superuser_of_any_database()
        .start();
    let seen = sends_secrets(&server, &gateway);
    let value = |of_type: &str, value: &str| serde_json::json!({"type": of_type, "value": value});
    let card = value("text", "[card number]");
    assert_eq!(seen[0], [card, value("int4", "1")]);
    assert_eq!(seen.last(), Some(&vec![value("int8", "[card number]")]));
}

/// Runs the script, looks through the recording, and answers what the leaves show.
#[track_caller]
fn sends_secrets(server: &Postgres, gateway: &Gateway) -> Vec<Vec<Value>> {
    let text = include_str!("clients/parameters_secret.py");
    let script = script(gateway, "parameters_secret.py", text);
    run(server, gateway, &script);
    let seen = shown(gateway);
    let card: i64 = 4_111_111_111_111_111;
    let groups = [4111_u16, 1111, 1111, 1111].map(u16::to_be_bytes).concat();
    for entry in fs::read_dir(gateway.recordings()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let recorded = fs::read(&path).expect("a recording");
        let holds = |needle: &[u8]| recorded.windows(needle.len()).any(|it| it == needle);
        for needle in [
            &card.to_be_bytes()[..],
            &groups,
            b"4222222222222",
            b"4222222222222",
            b"1111-1111-1111",
            b"1111 1111 1111",
        ] {
            assert!(!holds(needle), "{needle:?} in {}", path.display());
        }
        assert!(holds(b"nothing of the kind"));
    }
    seen
}

#[test]
fn a_policy_goes_by_parameters() {
    let server = Postgres::asking_for(Authentication::Trust);
    let mut gateway = Setup::in_front_of(&server).policy("allow-all").start();
    gateway.stop();
    gateway.write_policy("no-teapots", NO_TEAPOTS);
    gateway.start();
    let text = include_str!("clients/parameters_denied.py");
    let script = script(&gateway, "parameters_denied.py", text);
    let seen = run(&server, &gateway, &script);
    assert_eq!(
        seen,
        [
            "prepare: 1 ZI",
            "allowed: 2 C ZI",
            "by text: 2 E 42501 ZI",
            "in binary: 2 E 42501 ZI",
            "by number: 2 E 42501 ZI",
            "allowed again: 2 C ZI",
            "in a transaction: 2 E 42501 ZE",
            "after it: 2 C ZI",
            "psycopg: mug UPDATE 0",
            "psycopg: teapot refused 42501",
            "psycopg: mug UPDATE 0",
            "asyncpg: mug 4 UPDATE 0",
            "asyncpg: teapot 4 refused 42501",
            "asyncpg: mug 666 refused 42501",
            "asyncpg: mug 4 UPDATE 0",
        ]
    );
    let denied = gateway.wait_for(7, "deny");
    assert!(
        denied
            .iter()
            .all(|event| event.text("rule") == "no-teapots")
    );
    let statement = denied[0].text("statement");
    assert!(statement.starts_with("UPDATE products"), "{statement}");
}
