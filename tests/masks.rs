//! Masked columns: what the agent gets instead, wherever the column still is one, and a refusal where it is not.

use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};

fn masked_both(server: &Postgres) -> Gateway {
    Setup::in_front_of(server)
        .masking("public.customers.email", "redact")
        .start()
}

#[test]
fn the_last_four_digits_stay() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let seen = gateway
        .psql(["SELECT card_number FROM customers ORDER BY id"])
        .succeeds();
    let endings = ["1111", "5559", "1881", "0005", "1117"];
    assert_eq!(seen.lines().len(), endings.len(), "{seen}");
    for (value, ending) in seen.lines().iter().zip(endings) {
        assert!(value.ends_with(ending), "{seen}");
        let digits = value.chars().filter(char::is_ascii_digit).count();
        assert_eq!(digits, 4, "{seen}");
    }
    let result = gateway.event("stmt.result");
    assert_eq!(result.number("rows"), 5, "{result}");
    assert_eq!(result.number("masked"), 5, "{result}");
}

#[test]
fn redacted_values_say_nothing() {
    let server = Postgres::start();
    let gateway = masked_both(&server);
    let seen = gateway
        .psql(["SELECT email FROM customers ORDER BY id"])
        .succeeds();
    assert_eq!(seen.lines().len(), 5, "{seen}");
    assert!(!seen.text().contains('@'), "{seen}");
    assert!(!seen.text().contains("example"), "{seen}");
    let first = &seen.lines()[0];
    assert!(seen.lines().iter().all(|line| line == first), "{seen}");
}

#[test]
fn wherever_the_column_is_still_a_column() {
    let server = Postgres::start();
    let gateway = masked_both(&server);
    for select in [
        "SELECT * FROM customers",
        "SELECT card_number AS harmless, email AS nothing FROM customers",
        "SELECT c.card_number FROM customers AS c",
        "SELECT c.* FROM orders AS o JOIN customers AS c ON c.id = o.customer_id",
        "SELECT \"card_number\" FROM public.\"customers\"",
        "SELECT id, card_number, card_number FROM ONLY customers",
        "TABLE customers",
    ] {
        let seen = gateway.psql([select]).succeeds();
        assert!(seen.lines().len() >= 5, "{select}: {seen}");
        assert_eq!(leaks(&seen.text()), None, "{select}: {seen}");
    }
}

#[test]
fn a_column_that_is_not_masked_is_left_alone() {
    let server = Postgres::start();
    let gateway = masked_both(&server);
    gateway
        .psql(["SELECT id, name FROM customers WHERE id = 2"])
        .succeeds()
        .prints("2|Benoît Carlier");
    assert_eq!(gateway.event("stmt.result").number("masked"), 0);
}

#[test]
fn null_stays_null() {
    let server = Postgres::start();
    server.admin(
        "ALTER TABLE customers ALTER card_number DROP NOT NULL; UPDATE customers SET card_number = NULL WHERE id = 1",
    );
    let gateway = Gateway::in_front_of(&server);
    let seen = gateway
        .psql([
            "\\pset null (null)",
            "SELECT card_number FROM customers WHERE id = 1",
        ])
        .succeeds();
    seen.prints("(null)");
}

#[test]
fn what_could_reveal_a_masked_value_is_refused() {
    let server = Postgres::start();
    let gateway = masked_both(&server);
    for select in [
        "SELECT upper(card_number) FROM customers",
        "SELECT card_number || '' FROM customers",
        "SELECT card_number::bytea FROM customers",
        "SELECT name FROM customers WHERE card_number LIKE '4111%'",
        "SELECT name FROM customers ORDER BY card_number",
        "SELECT count(*) FROM customers GROUP BY card_number",
        "SELECT min(email) FROM customers",
        "SELECT x FROM (SELECT card_number AS x FROM customers) AS s",
        "WITH c AS (SELECT card_number FROM customers) SELECT * FROM c",
        "SELECT card_number FROM customers UNION SELECT 'x'",
        "SELECT c FROM customers AS c",
        "SELECT row_to_json(c) FROM customers AS c",
        "SELECT c::text FROM customers AS c",
        "COPY customers TO STDOUT",
        "COPY (SELECT card_number FROM customers) TO STDOUT",
        "SELECT 1 FROM customers a JOIN customers b ON a.card_number = b.card_number",
        "SELECT 1 FROM customers a JOIN customers b USING (card_number)",
        "SELECT 1 FROM customers a NATURAL JOIN customers b",
        "SELECT (SELECT card_number FROM customers LIMIT 1)",
        "SELECT card_number[1] FROM customers",
    ] {
        let seen = gateway
            .psql(["\\set VERBOSITY verbose", select])
            .complains("42501")
            .complains("HINT:");
        assert_eq!(leaks(&seen.text()), None, "{select}: {seen}");
    }
}

/// The same value in either format, as drivers that prefer binary get it.
#[test]
fn masked_columns_mean_the_same_in_text_and_in_binary() {
    const COLUMNS: [&str; 12] = [
        "as_text",
        "as_name",
        "varchar_4",
        "varchar_30",
        "char_12",
        "in_domain",
        "as_int",
        "as_numeric",
        "as_date",
        "as_json",
        "as_array",
        "as_row",
    ];
    let server = Postgres::asking_for(Authentication::Trust);
    server.admin(
        "CREATE DOMAIN secret AS varchar(20); CREATE TYPE pair AS (a text, b int);
         CREATE TABLE vault (as_text text, as_name name, varchar_4 varchar(4), varchar_30 varchar(30), char_12 char(12),
           in_domain secret, as_int bigint, as_numeric numeric, as_date date, as_json json, as_array text[], as_row pair);
         INSERT INTO vault VALUES ('abcdefghijkl', 'abcdefghijkl', 'abcd', 'abcdefghijkl', 'abcdef', 'abcdefghijkl',
           4111111111111111, 1.5, '2000-01-01', '\"abc\"', '{abc,def}', ('abc', 1));
         CREATE TABLE safe AS TABLE vault;
         GRANT SELECT ON vault, safe TO PUBLIC",
    );
    let mut setup = Setup::in_front_of(&server)
        .policy("allow-all")
        .masking("public.customers.email", "redact");
    for column in COLUMNS {
        setup = setup
            .masking(&format!("public.vault.{column}"), "redact")
            .masking(&format!("public.safe.{column}"), "keep_last(4)");
    }
    let gateway = setup.start();
    Script::plain(
        &gateway,
        "parameters.py",
        include_str!("clients/parameters.py"),
    );
    let script = Script::with_drivers(
        &gateway,
        "masked_binary.py",
        include_str!("clients/masked_binary.py"),
    );
    let (port, address) = (server.port().to_string(), gateway.address("127.0.0.1"));
    let words = script.words(["127.0.0.1", port.as_str(), address.as_str()]);
    let seen = gateway.as_agent(words).succeeds();
    assert_eq!(leaks(&seen.text()), None, "{seen}");
    let redacted = |length| format!("'{:<length$.length$}'", "[redacted]");
    let kept = |text: &str| format!("'{text}'");
    let null = || "None".to_owned();
    let expect = [
        (redacted(10), kept("********ijkl")),
        (redacted(10), kept("********ijkl")),
        (redacted(4), kept("***d")),
        (redacted(10), kept("********ijkl")),
        (redacted(12), kept("****ef      ")),
        (redacted(10), kept("********ijkl")),
    ];
    let nulls = std::iter::repeat_with(|| (null(), null()));
    let columns = COLUMNS.iter().zip(expect.into_iter().chain(nulls));
    let columns: Vec<_> = columns.collect();
    let mut lines: Vec<String> = Vec::new();
    for (column, (masked, _)) in &columns {
        lines.push(format!("vault.{column}: {masked} {masked}"));
    }
    for (column, (_, masked)) in &columns {
        lines.push(format!("safe.{column}: {masked} {masked}"));
    }
    let stars = "*".repeat(12);
    let card = |end: &str| format!("[['{stars}{end}']]");
    lines.push(format!("fetch: {}", card("1111")));
    lines.push(format!("fetch in binary: {}", card("5559")));
    lines.push(format!("fetch in text: {}", card("1881")));
    lines.push(format!("as a portal: [['{}0005']]", "*".repeat(11)));
    let endings = ["1111", "5559", "1881", "0005", "1117"];
    let all: Vec<String> = endings
        .iter()
        .map(|end| format!("'{}{end}'", &stars[usize::from(*end == "0005")..]))
        .collect();
    lines.push(format!("in pieces: [{}]", all.join(", ")));
    let rows: Vec<String> = all
        .iter()
        .map(|card| format!("({card}, '[redacted]')"))
        .collect();
    let rows = format!("[{}]", rows.join(", "));
    lines.extend(std::iter::repeat_n(format!("psycopg: {rows}"), 3));
    lines.extend(std::iter::repeat_n(format!("asyncpg: {rows}"), 2));
    assert_eq!(seen.lines(), lines, "{seen}");
    assert_eq!(gateway.events().count("deny"), 0);
}

/// PostgreSQL reads `c.f` as `f(c)` where `c` has no column `f`: the whole row, in clear.
#[test]
fn a_function_that_looks_like_a_column_is_refused() {
    let server = Postgres::start();
    server.admin(
        "CREATE FUNCTION card(customers) RETURNS text LANGUAGE sql AS 'SELECT ($1).card_number'",
    );
    let gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .masking("public.customers.email", "redact")
        .start();
    for select in [
        "SELECT c.card FROM customers c",
        "SELECT c.row_to_json FROM customers c",
        "SELECT public.customers.to_jsonb FROM public.customers",
        "SELECT c.json_agg FROM customers c",
        "SELECT j.row_to_json FROM (customers c JOIN orders o ON o.customer_id = c.id) j",
        "SELECT id FROM customers c WHERE c.card LIKE '4%'",
    ] {
        let seen = gateway.psql([select]).complains("no column");
        assert_eq!(leaks(&seen.text()), None, "{select}: {seen}");
    }
    gateway
        .psql(["SELECT c.id, c.name, c.ctid FROM customers c WHERE c.id = 2"])
        .succeeds()
        .prints("2|Benoît Carlier|");
}

/// A parent's rows are its children's too, with the parent as their origin.
#[test]
fn a_masked_child_is_not_read_through_its_parent() {
    let server = Postgres::start();
    server.admin(
        "CREATE TABLE people (card_number text); CREATE VIEW all_people AS SELECT card_number AS n FROM people;
         CREATE TABLE vips (note text) INHERITS (people); INSERT INTO vips VALUES ('4111111111111111', 'x');
         CREATE TABLE log (card_number text, y int) PARTITION BY RANGE (y);
         CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (9); INSERT INTO log VALUES ('4111111111111111', 1);
         GRANT SELECT ON people, vips, log, log_1, all_people TO PUBLIC",
    );
    let gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .masking("public.vips.card_number", "redact")
        .masking("public.log_1.card_number", "redact")
        .start();
    for table in ["people", "log", "all_people"] {
        gateway
            .psql([&*format!("SELECT * FROM {table}")])
            .complains("shows masked columns");
    }
    for table in ["vips", "log_1"] {
        let seen = gateway
            .psql([&*format!("SELECT * FROM {table}")])
            .succeeds();
        assert_eq!(leaks(&seen.text()), None, "{table}: {seen}");
    }
}

#[test]
fn a_masked_column_that_was_renamed_closes_its_table() {
    let server = Postgres::start();
    server.admin("ALTER TABLE customers RENAME card_number TO pan");
    let gateway = Gateway::in_front_of(&server);
    gateway
        .psql(["SELECT id, pan FROM customers"])
        .complains("has no column card_number, which is to be masked");
    gateway.psql(["SELECT count(*) FROM orders"]).succeeds();
}

/// An operator or a cast of the database's own is a function that policies must permit.
#[test]
fn operators_and_casts_call_functions() {
    let server = Postgres::start();
    server.admin(
        "CREATE FUNCTION quietly(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = quietly);
         CREATE FUNCTION is_fine(text) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE DOMAIN fine AS text CHECK (is_fine(VALUE))",
    );
    let gateway = Gateway::in_front_of(&server);
    gateway
        .psql(["SELECT 'a' === 'b'::text"])
        .complains("may not call function public.quietly");
    gateway
        .psql(["SELECT 'a'::fine"])
        .complains("may not call function public.is_fine");
    gateway
        .psql(["SELECT 'a' = 'b', 'a' LIKE 'b', '1'::int"])
        .succeeds()
        .prints("f|f|1");
}

#[test]
fn an_errors_own_words_reveal_nothing() {
    let server = Postgres::start();
    server.admin("ALTER TABLE customers ADD CHECK (length(card_number) > 3)");
    let gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .masking("public.customers.email", "redact")
        .start();
    for statement in [
        // "Failing row contains (1, Ada Lindqvist, ada…@example.com, 4111…)".
        "UPDATE customers SET name = NULL WHERE id = 1",
        // "Key (email)=(…) already exists".
        "UPDATE customers SET email = c.email FROM (SELECT 2 AS id) AS x, customers AS c WHERE c.id = x.id AND customers.id = 1",
        "UPDATE customers SET id = 2 WHERE id = 1",
    ] {
        let seen = gateway.psql([statement]).fails();
        assert_eq!(leaks(&seen.stderr), None, "{statement}: {seen}");
    }
}

/// The first clear value of the shop in `text`.
fn leaks(text: &str) -> Option<&'static str> {
    [
        "4111111111111111",
        "5500005555555559",
        "4012888888881881",
        "378282246310005",
        "6011111111111117",
        "ada.lindqvist@",
        "benoit.carlier@",
        "chidi.okafor@",
        "dana.weiss@",
        "eunji.park@",
    ]
    .into_iter()
    .find(|clear| text.contains(clear))
}

/// Two strings to the parsers; to a server with other strings, one string and the column.
#[test]
fn strings_that_may_be_read_in_two_ways_hide_no_column() {
    let server = Postgres::start();
    server.admin(
        "CREATE FUNCTION public.old_strings() RETURNS text LANGUAGE sql
         AS $$ SELECT set_config('standard_conforming_strings', 'off', false) $$",
    );
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let hidden = r"SELECT '\', ' || card_number FROM customers --'";
    let seen = gateway.psql([
        hidden,
        "SELECT old_strings()",
        hidden,
        "SELECT 'still here'",
    ]);
    let seen = seen.succeeds().complains("ERROR:");
    assert_eq!(leaks(&seen.text()), None, "{seen}");
    assert_eq!(
        seen.lines().last().map(String::as_str),
        Some("still here"),
        "{seen}"
    );
    let denied = gateway.wait_for(1, "deny");
    assert_eq!(denied[0].text("rule"), "mask:unknown", "{}", denied[0]);
}
