//! Names for statements and cursors: whoever runs one is decided, and logged, as what it stands for.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::harness::events::Event;
use crate::harness::gateway::psql_words;
use crate::harness::program::run_with_input;
use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};

const SCRIPT: &str = include_str!("clients/prepared.py");

fn script(gateway: &Gateway) -> Script {
    Script::plain(gateway, "prepared.py", SCRIPT)
}

/// Runs a scene as an agent.
fn scene(gateway: &Gateway, server: &Postgres, name: &str) -> Vec<String> {
    let port = server.port().to_string();
    let words = script(gateway).words(["127.0.0.1", &port, name]);
    let seen = gateway.as_agent(words).succeeds();
    gateway.wait_for(1, "session.close");
    seen.lines().iter().map(ToString::to_string).collect()
}

/// Runs a scene without the gateway.
fn directly(gateway: &Gateway, server: &Postgres, name: &str) -> Vec<String> {
    let port = server.port().to_string();
    let words = script(gateway).words(["127.0.0.1", &port, name]);
    let seen = server.directly(words).succeeds();
    seen.lines().iter().map(ToString::to_string).collect()
}

fn allowing_all(server: &Postgres) -> Gateway {
    Setup::in_front_of(server).policy("allow-all").start()
}

/// The leaves of statements of this text.
fn intents(gateway: &Gateway, text: &str) -> Vec<Event> {
    let found: Vec<Event> = gateway
        .events()
        .named("stmt.intent")
        .filter(|intent| intent.text("statement") == text)
        .cloned()
        .collect();
    assert!(!found.is_empty(), "no leaf of {text}: {}", gateway.events());
    found
}

fn words(event: &Event, member: &str) -> Vec<String> {
    let list = event.0[member].as_array().expect("a list");
    list.iter()
        .map(|word| word.as_str().expect("a word").to_owned())
        .collect()
}

#[test]
fn what_runs_by_name_is_logged_as_what_it_is() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = allowing_all(&server);
    let native = directly(&gateway, &server, "known");
    let seen = scene(&gateway, &server, "known");
    assert_eq!(seen.len(), native.len());
    for (seen, native) in seen.iter().zip(&native) {
        // The FETCH and the Execute of the cursor over the masked column.
        match native.contains("D:4111111111111111") || native.contains("D:5500005555555559") {
            true => {
                assert_ne!(seen, native);
                assert_eq!(seen.len(), native.len(), "{seen} {native}");
                assert!(seen.contains("1111 ") || seen.contains("5559 "), "{seen}");
            }
            false => assert_eq!(seen, native),
        }
    }

    const DELETE: &str = "DELETE FROM products WHERE id = -1";
    for text in [
        "EXECUTE del",
        "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE del",
    ] {
        let leaf = &intents(&gateway, text)[0];
        assert_eq!(leaf.text("runs"), DELETE, "{leaf}");
        assert!(
            words(leaf, "verbs").contains(&"sql:delete".into()),
            "{leaf}"
        );
        assert_eq!(words(leaf, "tables"), ["products"], "{leaf}");
    }
    // Nothing of it is left behind the name after DEALLOCATE.
    let gone = intents(&gateway, "EXECUTE del").pop().expect("several");
    assert!(!gone.text("runs").contains("DELETE"), "{gone}");
    // The Bind of what SQL has prepared.
    let update = &intents(&gateway, "UPDATE products SET stock = stock WHERE id = $1")[0];
    assert_eq!(update.text("protocol"), "extended", "{update}");
    assert_eq!(update.number("params"), 1, "{update}");
    assert_eq!(words(update, "verbs"), ["sql:update"], "{update}");
    const CARDS: &str = "SELECT card_number FROM customers ORDER BY id";
    for text in ["FETCH $1 FROM cards", "MOVE $1 IN cards"] {
        let leaf = &intents(&gateway, text)[0];
        assert_eq!(leaf.text("runs"), CARDS, "{leaf}");
        assert_eq!(words(leaf, "tables"), ["customers"], "{leaf}");
    }
    assert_eq!(intents(&gateway, CARDS)[0].text("protocol"), "extended");
    let portal = &intents(&gateway, "FETCH $1 FROM shown")[0];
    assert_eq!(
        portal.text("runs"),
        "SELECT title FROM products ORDER BY id"
    );
    let held = &intents(&gateway, "FETCH $1 FROM held")[0];
    assert_eq!(held.text("runs"), "SELECT id FROM products ORDER BY id");
}

#[test]
fn a_name_that_is_used_again_is_what_it_is_now() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = allowing_all(&server);
    let native = directly(&gateway, &server, "reused");
    assert_eq!(scene(&gateway, &server, "reused"), native);

    const DELETE: &str = "DELETE FROM products WHERE id = -1";
    // Three times in flight behind something that may fail: as both.
    let runs: Vec<String> = intents(&gateway, "EXECUTE q")
        .iter()
        .map(|leaf| leaf.text("runs"))
        .collect();
    assert_eq!(runs.len(), 3, "{runs:?}");
    assert!(runs[0].contains(DELETE), "{runs:?}");
    assert!(runs[1].contains(DELETE), "{runs:?}");
    assert!(runs[2].contains("after all"), "{runs:?}");
    let long = format!("EXECUTE {}", "n".repeat(63));
    for leaf in intents(&gateway, &long) {
        assert_eq!(leaf.text("runs"), "DELETE FROM products WHERE id = -2");
    }
    let chained = &intents(&gateway, "EXECUTE chain")[0];
    assert_eq!(
        chained.text("runs"),
        "DELETE FROM products WHERE id = -2",
        "{chained}"
    );
    let fetched = &intents(&gateway, "FETCH $1 FROM c")[0];
    assert!(
        fetched
            .text("runs")
            .contains("SELECT id FROM products ORDER BY id"),
        "{fetched}"
    );
    // What was skipped behind an error is told from what ran.
    let skipped = &intents(&gateway, "SELECT 'skipped'")[0];
    let result = gateway
        .events()
        .named("stmt.result")
        .find(|result| result.number("stmt") == skipped.number("stmt"))
        .cloned()
        .expect("a result");
    assert_eq!(result.text("outcome"), "skipped", "{result}");
}

/// Such a text does not replace the unnamed statement, which is what runs.
#[test]
fn what_the_server_cannot_convert_leaves_the_unnamed_statement() {
    let server = Postgres::asking_for(Authentication::Trust);
    server.admin(
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    );
    let gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .with_superuser_of_any_database()
        .start();
    let native = directly(&gateway, &server, "unread");
    assert_eq!(native[1], "E:22P05 Z:I", "{native:?}");
    assert_eq!(scene(&gateway, &server, "unread"), native);
    // Both times, under its own name.
    assert_eq!(intents(&gateway, "SELECT 'kept'").len(), 2);
}

#[test]
fn execute_is_decided_as_the_statement_that_it_runs() {
    let server = Postgres::start();
    let mut gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .start_broker();
    gateway.write_policy(
        "by-name",
        r#"@id("no-deletes-by-name")
forbid (principal, action == Sluice::Action::"sql:delete", resource)
when { context.verbs.contains("sql:execute") };
@id("no-orders-by-cursor")
forbid (principal, action == Sluice::Action::"sql:select", resource is Sluice::Table)
when { resource.name == "orders" && context.verbs.contains("sql:fetch") };
"#,
    );
    gateway.start();
    let text = "\\set VERBOSITY verbose
PREPARE del AS DELETE FROM products;
EXECUTE del;
EXPLAIN ANALYZE EXECUTE del;
EXPLAIN EXECUTE del;
BEGIN;
DECLARE c CURSOR FOR SELECT id FROM orders;
FETCH c;
ROLLBACK;
PREPARE one AS SELECT 'one ran';
EXECUTE one;
";
    let words = psql_words(&gateway.address("127.0.0.1"), []);
    let seen = run_with_input(gateway.agent_command(words), text.as_bytes()).succeeds();
    assert_eq!(seen.stderr.matches("ERROR:  42501:").count(), 4, "{seen}");
    assert_eq!(
        seen.stderr
            .matches("It runs: DELETE FROM products\n")
            .count(),
        3,
        "{seen}"
    );
    seen.prints("one ran");
    assert_ne!(server.admin("SELECT count(*) FROM products"), "0");
    let rules: Vec<String> = gateway
        .wait_for(4, "deny")
        .iter()
        .map(|deny| deny.text("rule"))
        .collect();
    assert_eq!(
        rules,
        [
            "no-deletes-by-name",
            "no-deletes-by-name",
            "no-deletes-by-name",
            "no-orders-by-cursor",
        ]
    );
}

#[test]
fn what_only_code_can_have_made_is_refused_and_what_nobody_made_is_not_there() {
    let server = Postgres::start();
    server.admin(
        "CREATE FUNCTION open_hidden() RETURNS text LANGUAGE plpgsql AS
           $$ DECLARE c refcursor := 'hidden'; BEGIN OPEN c FOR SELECT id FROM products; RETURN c; END $$;
         CREATE FUNCTION make_hidden() RETURNS text LANGUAGE plpgsql AS
           $$ BEGIN EXECUTE 'PREPARE hidden AS DELETE FROM products'; RETURN 'made'; END $$",
    );
    let mut gateway = Setup::in_front_of(&server).start_broker();
    gateway.write_policy(
        "functions",
        r#"@id("functions")
permit (principal, action == Sluice::Action::"sql:function", resource)
when { ["open_hidden", "make_hidden"].contains(resource.name) };
"#,
    );
    gateway.start();
    assert_eq!(
        scene(&gateway, &server, "strangers"),
        [
            "E:26000 Z:I",
            "C Z:T",
            "T D:hidden C Z:T",
            "C Z:T",
            "E:42501 Z:E",
            "C Z:T",
            "E:42501 Z:E",
            "C Z:T",
            "T Z:T",
            "E:34000 Z:E",
            "C Z:T",
            "E:34000 Z:E",
            "C Z:I",
            "T D:made C Z:I",
            "E:42501 Z:I",
            "2 E:42501 Z:I",
            "E:26000 Z:I",
            "E:26000 Z:I",
            "T D:still here C Z:I",
        ]
    );
    assert_ne!(server.admin("SELECT count(*) FROM products"), "0");
    for deny in gateway.events().named("deny") {
        assert_eq!(deny.text("rule"), "sql:unknown-prepared", "{deny}");
    }
}

/// The catalogue is at most five seconds old: so long may the change take to be noticed.
#[test]
fn a_prepared_statement_is_decided_again_when_it_is_executed() {
    let server = Postgres::start();
    server.admin("CREATE TABLE shown AS SELECT 1 AS id; GRANT SELECT ON shown TO shop_app");
    let gateway = Gateway::in_front_of(&server);
    let port = server.port().to_string();
    let words = script(&gateway).words(["127.0.0.1", &port, "changed"]);
    let mut client = gateway
        .agent_command(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let mut lines = BufReader::new(client.stdout.take().expect("piped")).lines();
    let mut line = || lines.next().expect("a line").expect("readable");
    assert_eq!(line(), "1 2 D:1 s Z:I");
    assert_eq!(line(), "ready");
    server.admin(
        "DROP TABLE shown; CREATE VIEW shown AS SELECT id, card_number FROM customers;
         GRANT SELECT ON shown TO shop_app",
    );
    thread::sleep(Duration::from_secs(6));
    let mut stdin = client.stdin.take().expect("piped");
    stdin.write_all(b"\n").expect("the client reads");
    assert_eq!(line(), "2 E:42501 Z:I");
    assert_eq!(line(), "T D:1 C Z:I");
    assert!(client.wait().expect("it ends").success());
    assert_eq!(gateway.event("deny").text("rule"), "mask:derived");
}

#[test]
fn a_plan_that_changed_shows_nothing_in_clear() {
    let server = Postgres::start();
    let gateway = allowing_all(&server);
    let seen = scene(&gateway, &server, "plans").join("\n");
    assert!(seen.contains("E:0A000"), "{seen}");
    assert!(!seen.contains("4111111111111111"), "{seen}");
    assert!(seen.matches("1111").count() >= 3, "{seen}");
}

/// A statement that was refused when it was to be prepared is not there.
#[test]
fn what_was_refused_was_not_prepared() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let text = "\\set VERBOSITY verbose
PREPARE d AS DELETE FROM products;
EXECUTE d;
SELECT 'usable';
";
    let words = psql_words(&gateway.address("127.0.0.1"), []);
    let seen = run_with_input(gateway.agent_command(words), text.as_bytes()).succeeds();
    let seen = seen.complains("ERROR:  42501:").complains("ERROR:  26000:");
    seen.prints("usable");
}

/// In UTF-8 each é has two bytes; read as LATIN1 they are two characters, of which the server cuts off those
/// behind the 63rd byte: two names that differ here are one there.
#[test]
fn a_name_that_the_server_converts_is_not_known() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Gateway::in_front_of(&server);
    let port = server.port().to_string();
    let script = Script::plain(&gateway, "names.py", include_str!("clients/held_back.py"));
    let names = || {
        let words = script.words(["127.0.0.1", &port, "renamed"]);
        gateway.as_agent(words).succeeds().lines()
    };
    let closed = "3 1 Z:I";
    assert_eq!(names(), ["1 Z:I", closed, "2 D:1 C Z:I", "T D:3 C Z:I"]);
    server.admin("ALTER ROLE shop_app SET client_encoding = 'LATIN1'");
    assert_eq!(names(), ["1 Z:I", closed, "2 E:42501 Z:I", "T D:3 C Z:I"]);
    assert_eq!(gateway.event("deny").text("rule"), "sql:unknown-prepared");
}

/// In SJIS a byte that is a backslash in UTF-8 may be the second half of a character.
#[test]
fn a_role_with_an_unsafe_encoding_gets_no_session() {
    let server = Postgres::start();
    server.admin("ALTER ROLE shop_app SET client_encoding = 'SJIS'");
    let gateway = Gateway::in_front_of(&server);
    let address = gateway.address("127.0.0.1");
    gateway
        .as_agent([
            "env",
            "-u",
            "PGCLIENTENCODING",
            "psql",
            "-X",
            "-d",
            &address,
            "-c",
            "SELECT 1",
        ])
        .fails()
        .complains("target:encoding");
    assert_eq!(gateway.event("deny").text("rule"), "target:encoding");
}
