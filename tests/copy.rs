//! COPY: every form, format and order is the server's byte for byte; masked columns are copied masked; files
//! and programs are facts of their own.

use std::fs;
use std::time::Duration;

use crate::harness::events::Event;
use crate::harness::gateway::psql_words;
use crate::harness::program::{Ended, eventually, run_with_input};
use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};

const CARDS: [&str; 5] = [
    "4111111111111111",
    "5500005555555559",
    "4012888888881881",
    "378282246310005",
    "6011111111111117",
];

#[test]
fn every_form_is_the_servers_byte_for_byte() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Setup::in_front_of(&server)
        .with_superuser_of_any_database()
        .policy("allow-all")
        .start();
    let script = Script::plain(&gateway, "copy.py", include_str!("clients/copy.py"));
    let port = server.port().to_string();
    let words = script.words(["127.0.0.1", &port, "postgres"]);
    let expected = server.directly(&words).succeeds();
    let seen = gateway.as_agent(&words).succeeds();
    for (expected, seen) in expected.lines().iter().zip(seen.lines()) {
        assert_eq!(*expected, seen, "left: direct, right: through the gateway");
    }
    assert_eq!(expected.lines().len(), seen.lines().len());
    let last = seen.lines().pop().unwrap_or_default();
    let cases: usize = last
        .strip_suffix(" cases")
        .and_then(|count| count.parse().ok())
        .expect("how many");
    assert!(cases > 180, "{last}");
    // No session was ended by the gateway: a Query amid the data loses the server itself.
    gateway.wait_for(7, "session.close");
    let outcomes: Vec<String> = gateway
        .events()
        .named("session.close")
        .map(|close| close.text("outcome"))
        .collect();
    let mut expected = ["error"; 7];
    expected[6] = "closed";
    assert_eq!(outcomes, expected, "{outcomes:?}");
}

fn psql_script(gateway: &Gateway, script: &str) -> Ended {
    let words = psql_words(&gateway.address("127.0.0.1"), []);
    run_with_input(gateway.agent_command(words), script.as_bytes())
}

/// The result leaf of the statement whose text holds `part`.
fn result_of(gateway: &Gateway, part: &str) -> Event {
    let events = gateway.events();
    let intent = events
        .named("stmt.intent")
        .find(|intent| intent.text("statement").contains(part))
        .unwrap_or_else(|| panic!("no intent of {part}"));
    let (session, stmt) = (intent.text("session"), intent.number("stmt"));
    events
        .named("stmt.result")
        .find(|result| result.text("session") == session && result.number("stmt") == stmt)
        .unwrap_or_else(|| panic!("no result of {part}"))
        .clone()
}

#[test]
fn rows_and_bytes_are_counted_in_both_directions() {
    let server = Postgres::start();
    server.admin("CREATE TABLE notes (id int, note text); GRANT ALL ON notes TO PUBLIC");
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let folder = gateway.public_folder("copies");
    let file = folder.join("notes.csv");
    let rows: String = (1..=2000).map(|n| format!("{n},\"note {n}\"\n")).collect();
    fs::write(&file, &rows).expect("the folder is ours");
    let back = folder.join("back.csv");
    fs::write(&back, "").expect("the folder is ours");
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&back, anybody).expect("it is ours");
    psql_script(
        &gateway,
        &format!(
            "\\copy notes FROM '{}' (FORMAT csv)\n\
             \\copy (SELECT id, note FROM notes ORDER BY id) TO '{}' (FORMAT csv, FORCE_QUOTE (note))\n\
             COPY notes TO STDOUT (FORMAT binary) \\g /dev/null\n",
            file.display(),
            back.display()
        ),
    )
    .succeeds()
    .prints("COPY 2000");
    assert_eq!(fs::read_to_string(&back).expect("psql wrote it"), rows);
    gateway.event("session.close");
    let bytes = u64::try_from(rows.len()).expect("small");
    let taken = result_of(&gateway, "FROM STDIN");
    assert_eq!((taken.number("rows"), taken.number("bytes")), (2000, bytes));
    let given = result_of(&gateway, "FORCE_QUOTE");
    assert_eq!((given.number("rows"), given.number("bytes")), (2000, bytes));
    let given = result_of(&gateway, "binary");
    assert_eq!(given.number("rows"), 2000, "{given}");
}

#[test]
fn card_numbers_in_the_data_are_not_evidence() {
    let server = Postgres::start();
    server.admin("CREATE TABLE notes (id int, note text); GRANT ALL ON notes TO PUBLIC");
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    psql_script(
        &gateway,
        "COPY notes FROM STDIN;\n1\tnothing secret\n2\t4111111111111111\n3\tcard 4012 8888 8888 1881\n\\.\n\
         COPY notes FROM STDIN (FORMAT csv);\n4,\"5500005555555559\"\n\\.\n",
    )
    .succeeds();
    assert_eq!(server.admin("SELECT count(*) FROM notes"), "4");
    let session = gateway.event("session.close").text("session");
    let replay = gateway.sluice(["replay", &session]).succeeds();
    assert!(replay.text().contains("nothing secret"), "{replay}");
    for part in ["4111111111111111", "8888 1881", "5500005555555559"] {
        assert!(!replay.text().contains(part), "{part}: {replay}");
    }
}

#[test]
fn masked_columns_are_copied_masked() {
    let server = Postgres::start();
    server.admin("ALTER TABLE customers ADD born date DEFAULT '1990-01-02'");
    let gateway = Setup::in_front_of(&server)
        .masking("public.customers.born", "redact")
        .start();
    let row = "2\tBenoît Carlier\tbenoit.carlier@example.com\t************5559\t\\N";
    for (copy, printed) in [
        ("COPY customers TO STDOUT", row),
        ("COPY public.customers TO STDOUT", row),
        (
            "COPY customers (card_number, born, id) TO STDOUT (FORMAT csv, HEADER)",
            "************5559,,2",
        ),
        (
            "COPY customers TO STDOUT (FORMAT csv, DELIMITER '5', QUOTE '*', NULL 'x')",
            "**",
        ),
        (
            "COPY (SELECT id, born, card_number AS x FROM customers WHERE id = 2) TO STDOUT",
            "2\t\\N\t************5559",
        ),
        (
            "COPY customers (born, card_number) TO STDOUT WITH DELIMITER '*' NULL ''",
            "\\*\\*\\*\\*5559",
        ),
    ] {
        let seen = gateway.psql([copy]).succeeds().prints(printed);
        for clear in CARDS.into_iter().chain(["1990"]) {
            assert!(!seen.text().contains(clear), "{copy}: {seen}");
        }
    }
    let binary = gateway
        .psql(["COPY customers (id, card_number, born) TO STDOUT (FORMAT binary)"])
        .succeeds();
    let holds = |part: &[u8]| binary.stdout.windows(part.len()).any(|at| at == part);
    assert!(
        holds(b"\0\0\0\x10************5559\xff\xff\xff\xff"),
        "{binary}"
    );
    assert!(!CARDS.iter().any(|card| holds(card.as_bytes())), "{binary}");
    let result = result_of(&gateway, "binary");
    assert_eq!((result.number("rows"), result.number("masked")), (5, 10));
}

#[test]
fn what_cannot_be_masked_is_not_copied() {
    let server = Postgres::start();
    server.admin(
        "CREATE TABLE paid (card_number text, note text);
         CREATE SCHEMA old; CREATE TABLE old.customers (card_number text); GRANT USAGE ON SCHEMA old TO PUBLIC;
         GRANT SELECT ON ALL TABLES IN SCHEMA old TO PUBLIC",
    );
    let gateway = Setup::in_front_of(&server)
        .masking("public.paid.card_number", "redact")
        .policy("allow-all")
        .start();
    for copy in [
        "COPY (SELECT * FROM customers) TO STDOUT",
        "COPY (TABLE customers) TO STDOUT",
        "COPY (SELECT card_number || '' FROM customers) TO STDOUT",
        "COPY (SELECT c FROM customers c) TO STDOUT (FORMAT binary)",
        "COPY (SELECT card_number FROM customers UNION SELECT 'x') TO STDOUT",
        "COPY (UPDATE customers SET name = name RETURNING card_number) TO STDOUT",
        "COPY customers (card_number) TO STDOUT (NULL '4111111111111111')",
        "COPY customers TO STDOUT (ENCODING 'LATIN1')",
        "COPY customers TO '/tmp/customers'",
        "COPY customers TO PROGRAM 'cat'",
        // Which of the two it is depends on the search_path.
        "COPY customers TO STDOUT",
    ] {
        let seen = gateway
            .psql(["\\set VERBOSITY verbose", copy])
            .complains("42501")
            .complains("mask:");
        for card in CARDS {
            assert!(!seen.text().contains(card), "{copy}: {seen}");
        }
    }
    gateway
        .psql(["COPY public.customers TO STDOUT"])
        .succeeds()
        .prints("************5559");
    // A row that is too long to be held back.
    gateway
        .psql([
            "\\set VERBOSITY verbose",
            "COPY (SELECT repeat('x', 17000000), card_number FROM customers) TO STDOUT",
        ])
        .fails()
        .complains("54000");
    assert_eq!(gateway.wait_for(13, "session.close").len(), 13);
}

/// While the COPY waits for its lock, another session gives the table another order of columns.
#[test]
fn a_table_that_changes_meanwhile_shows_nothing() {
    const CHANGE: &str = "BEGIN;
        ALTER TABLE customers DROP COLUMN name;
        ALTER TABLE customers ADD COLUMN other text;
        DO $$ BEGIN LOOP
          EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE NOT granted);
          PERFORM pg_sleep(0.05);
        END LOOP; END $$;
        COMMIT";
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    std::thread::scope(|scope| {
        scope.spawn(|| server.admin(CHANGE));
        eventually("the table is locked", Duration::from_secs(60), || {
            let locks = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'customers'::regclass";
            (server.admin(locks) != "0").then_some(())
        });
        let seen = gateway.psql(["COPY customers TO STDOUT"]);
        let seen = seen.fails().complains("column \"name\" of relation");
        for card in CARDS {
            assert!(!seen.text().contains(card), "{seen}");
        }
    });
    let seen = gateway.psql(["COPY customers TO STDOUT"]).succeeds();
    seen.prints("************5559");
}

#[test]
fn files_and_programs_are_facts_of_their_own() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Gateway::in_front_of(&server);
    for (copy, verb) in [
        ("COPY orders TO '/tmp/x'", "sql:copy-file"),
        ("COPY orders FROM '/tmp/x'", "sql:copy-file"),
        ("COPY orders TO PROGRAM 'cat'", "sql:copy-program"),
        ("COPY orders FROM/**/PROGRAM 'id'", "sql:copy-program"),
        ("COPY orders FROM STDIN", "sql:copy-from"),
    ] {
        gateway.psql([copy]).fails().complains(verb);
    }

    let mut gateway = Setup::in_front_of(&server)
        .with_superuser_of_any_database()
        .install();
    gateway.write_policy(
        "exports",
        r#"
@id("exports-connect")
permit (principal, action == Sluice::Action::"connect", resource);
@id("exports")
permit (principal, action == Sluice::Action::"sql:copy-file", resource)
when { context has copy && context.copy.direction == "to" && context.copy has file && context.copy.file like "/nowhere/*" };
@id("one-program")
permit (principal, action == Sluice::Action::"sql:copy-program", resource)
when { context has copy && context.copy has program && context.copy.program == "cat > /dev/null" && context.copy has format && context.copy.format == "csv" };
@id("reads")
permit (principal, action in [Sluice::Action::"sql:select", Sluice::Action::"sql:set"], resource);
"#,
    );
    fs::remove_file(gateway.path("etc/sluice/policies/read-only.cedar")).expect("it is there");
    gateway.sluice(["guard", "load"]).succeeds();
    gateway.start_broker();
    gateway.start();
    for (copy, says) in [
        ("COPY orders TO '/nowhere/x'", "could not open file"),
        ("COPY orders TO '/tmp/x'", "may not run sql:copy-file"),
        ("COPY orders FROM '/nowhere/x'", "may not run sql:copy-file"),
        (
            "COPY (SELECT 1) TO PROGRAM 'id'",
            "may not run sql:copy-program",
        ),
        (
            "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'",
            "may not run sql:copy-program",
        ),
    ] {
        gateway.psql([copy]).fails().complains(says);
    }
    gateway
        .psql(["COPY (SELECT 1) TO PROGRAM 'cat > /dev/null' (FORMAT csv)"])
        .succeeds();
}

/// sqlparser takes the DELETE for data of the COPY; the server runs it.
#[test]
fn a_statement_behind_copy_from_stdin_is_decided() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let both = "COPY products FROM STDIN; DELETE FROM orders";
    gateway
        .psql([both, "SELECT 'usable'"])
        .complains("may not run sql:copy-from")
        .prints("usable");
    // The first may run, so it is the second that is named.
    let second = "SELECT 1; DELETE FROM orders; COPY products FROM STDIN";
    gateway
        .psql([second, "SELECT 'usable'"])
        .complains("may not run sql:delete")
        .prints("usable");
    assert_eq!(server.admin("SELECT count(*) FROM orders"), "40");

    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let words = psql_words(&gateway.address("127.0.0.1"), [both, "SELECT 'usable'"]);
    run_with_input(gateway.agent_command(words), b"5\tx\t1\t1\n")
        .succeeds()
        .prints("usable");
    assert_eq!(server.admin("SELECT count(*) FROM orders"), "0");
    gateway.event("session.close");
    let copied = result_of(&gateway, "COPY products");
    assert_eq!(
        (copied.text("tag").as_str(), copied.number("rows")),
        ("COPY 1", 1)
    );
    assert_eq!(result_of(&gateway, "DELETE FROM").text("tag"), "DELETE 40");
}
