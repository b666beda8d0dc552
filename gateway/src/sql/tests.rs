//! Facts by table: what a text is, does and touches.

use super::*;
use crate::policy::masking::Transform;

fn masks() -> Vec<MaskRule> {
    let rule = |table: &str, column: &str| MaskRule {
        schema: "public".to_owned(),
        table: table.to_owned(),
        column: column.to_owned(),
        transform: Transform::KeepLast(4),
    };
    vec![
        rule("customers", "card_number"),
        rule("customers", "ssn"),
        rule("secrets", "value"),
    ]
}

/// Every row's text must give what is expected; all that do not are reported together.
fn check(table: &[(&str, &str)], of: impl Fn(&str) -> String) {
    let wrong = table.iter().filter_map(|(text, expect)| {
        let got = of(text);
        (got != *expect).then(|| format!("{text}\n    expected {expect}\n    got      {got}"))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `verb effects` of a text with one statement, as `sql:insert{a} sql:select{b}`.
fn effects(text: &str) -> String {
    let facts = analyse(text, &[]);
    let [statement] = facts.statements.as_slice() else {
        return format!("{} statements", facts.statements.len());
    };
    if let Some(why) = &statement.unknown {
        return format!("unknown: {why}");
    }
    let effect = |(verb, tables): (&Verb, &BTreeSet<Table>)| {
        let tables: Vec<String> = tables.iter().map(Table::to_string).collect();
        match tables.is_empty() {
            true => verb.action().trim_start_matches("sql:").to_owned(),
            false => format!(
                "{}{{{}}}",
                verb.action().trim_start_matches("sql:"),
                tables.join(",")
            ),
        }
    };
    statement
        .effects
        .iter()
        .map(effect)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn effects_by_statement() {
    let table = [
        ("SELECT 1", "select"),
        ("TABLE products", "select{products}"),
        ("VALUES (1)", "select"),
        ("SELECT * FROM a, s.b JOIN c USING (id)", "select{a,c,s.b}"),
        ("SELECT * FROM ONLY a", "select{a}"),
        ("SELECT * FROM a TABLESAMPLE bernoulli (10)", "select{a}"),
        (
            "SELECT (SELECT max(x) FROM b) FROM a WHERE EXISTS (SELECT FROM c)",
            "select{a,b,c}",
        ),
        ("SELECT 1 FROM a UNION SELECT 2 FROM b", "select{a,b}"),
        (
            "SELECT sum(x) OVER (ORDER BY y ROWS (SELECT n FROM w) PRECEDING) FROM a",
            "select{a,w}",
        ),
        ("SELECT 1 LIMIT (SELECT n FROM lim)", "select{lim}"),
        ("WITH x AS (SELECT * FROM a) SELECT * FROM x", "select{a}"),
        ("WITH a AS (SELECT * FROM a) SELECT * FROM a", "select{a}"),
        (
            "WITH RECURSIVE a AS (SELECT 1 UNION SELECT * FROM a) SELECT * FROM a",
            "select",
        ),
        (
            "WITH x AS (SELECT 1) SELECT * FROM public.x",
            "select{public.x}",
        ),
        (
            "WITH x AS (SELECT 1) SELECT * FROM (WITH y AS (SELECT 2) SELECT * FROM y) q, y",
            "select{y}",
        ),
        (
            "WITH x AS (SELECT 1), y AS (SELECT * FROM x, z), z AS (SELECT 1) SELECT * FROM y, z",
            "select{z}",
        ),
        (
            "WITH d AS (DELETE FROM a RETURNING *) SELECT * FROM d",
            "select delete{a}",
        ),
        (
            "WITH a AS (SELECT 1) INSERT INTO a SELECT * FROM a",
            "insert{a}",
        ),
        ("SELECT * INTO z FROM a", "select{a} ddl{z}"),
        ("SELECT * FROM a FOR UPDATE OF a", "select{a} lock"),
        ("INSERT INTO a VALUES (1)", "insert{a}"),
        ("INSERT INTO a SELECT * FROM b", "select{b} insert{a}"),
        (
            "INSERT INTO a DEFAULT VALUES RETURNING (SELECT 1 FROM b)",
            "select{b} insert{a}",
        ),
        (
            "INSERT INTO a VALUES (1) ON CONFLICT DO UPDATE SET x = (SELECT y FROM c)",
            "select{c} insert{a}",
        ),
        (
            "UPDATE a SET x = b.x FROM b WHERE a.id = b.id",
            "select{b} update{a}",
        ),
        ("UPDATE a SET x = 1 FROM a a2", "select{a} update{a}"),
        ("DELETE FROM a USING b", "select{b} delete{a}"),
        (
            "DELETE FROM a WHERE id IN (SELECT id FROM c)",
            "select{c} delete{a}",
        ),
        (
            "MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE",
            "select{b} merge{a}",
        ),
        ("TRUNCATE a, s.b", "truncate{a,s.b}"),
        ("COPY a TO STDOUT", "copy-to{a}"),
        ("COPY (SELECT * FROM a) TO STDOUT", "select{a} copy-to"),
        (
            "COPY (DELETE FROM a RETURNING *) TO STDOUT",
            "delete{a} copy-to",
        ),
        ("COPY a FROM STDIN", "copy-from{a}"),
        ("COPY a FROM STDIN WHERE x > 1", "copy-from{a}"),
        ("COPY a TO '/tmp/x'", "copy-file{a}"),
        ("COPY a FROM PROGRAM 'id'", "copy-program{a}"),
        ("EXPLAIN SELECT * FROM a", "select{a} explain"),
        ("EXPLAIN ANALYZE DELETE FROM a", "delete{a} explain"),
        ("EXPLAIN ANALYZE EXECUTE p", "explain execute"),
        ("PREPARE p AS DELETE FROM a", "delete{a} prepare"),
        ("EXECUTE p(1)", "execute"),
        ("DEALLOCATE ALL", "deallocate"),
        ("DECLARE c CURSOR FOR SELECT * FROM a", "select{a} declare"),
        ("FETCH ALL FROM c", "fetch"),
        ("CLOSE ALL", "close"),
        ("CREATE TABLE z AS SELECT * FROM a", "select{a} ddl{z}"),
        ("CREATE TABLE z AS EXECUTE p", "ddl{z} execute"),
        ("CREATE TABLE z (id int REFERENCES a, LIKE b)", "ddl{a,b,z}"),
        ("CREATE VIEW v AS SELECT * FROM a", "select{a} ddl{v}"),
        (
            "CREATE MATERIALIZED VIEW v AS SELECT * FROM a",
            "select{a} ddl{v}",
        ),
        ("REFRESH MATERIALIZED VIEW v", "maintenance{v}"),
        ("ALTER TABLE s.a ADD COLUMN x int", "ddl{s.a}"),
        ("DROP TABLE a, s.b", "ddl{a,s.b}"),
        ("DROP TRIGGER t ON a", "ddl{a}"),
        ("DROP FUNCTION f(int)", "ddl"),
        ("COMMENT ON COLUMN s.a.x IS 'y'", "ddl{s.a}"),
        ("CREATE INDEX ON a (x)", "ddl{a}"),
        (
            "CREATE RULE r AS ON INSERT TO a DO ALSO DELETE FROM b",
            "delete{b} ddl{a}",
        ),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC DELETE FROM a; SELECT 1; END",
            "delete{a} ddl",
        ),
        (
            "CREATE SCHEMA s CREATE TABLE t (id int) GRANT SELECT ON t TO x",
            "ddl{t} grant{t}",
        ),
        ("GRANT SELECT ON a TO x", "grant{a}"),
        ("REVOKE owner_role FROM x", "grant"),
        ("CREATE ROLE x", "role"),
        ("ALTER ROLE x SET work_mem = '1MB'", "role set"),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            "transaction",
        ),
        ("ROLLBACK TO SAVEPOINT s", "transaction"),
        ("SET TRANSACTION READ ONLY", "transaction"),
        ("SET CONSTRAINTS ALL DEFERRED", "transaction"),
        ("PREPARE TRANSACTION 'g'", "two-phase"),
        ("COMMIT PREPARED 'g'", "two-phase"),
        ("SET work_mem = '1MB'", "set"),
        ("RESET ALL", "set"),
        ("SELECT set_config('work_mem', '1MB', false)", "select set"),
        ("SHOW search_path", "show"),
        ("DISCARD ALL", "discard"),
        ("LISTEN x", "listen"),
        ("UNLISTEN *", "unlisten"),
        ("NOTIFY x, 'y'", "notify"),
        ("LOCK TABLE a", "lock{a}"),
        ("VACUUM a", "vacuum{a}"),
        ("ANALYZE", "vacuum"),
        ("CLUSTER a USING i", "maintenance{a}"),
        ("CHECKPOINT", "maintenance"),
        ("DO $$ BEGIN END $$", "do"),
        ("CALL wipe()", "call"),
        ("LOAD 'x'", "system"),
        ("ALTER SYSTEM SET work_mem = '1MB'", "set system"),
        ("CREATE DATABASE d", "system"),
        ("", "0 statements"),
        (" ; -- nothing", "0 statements"),
        ("SELEC 1", "unknown: syntax error at or near \"SELEC\""),
        (
            "SET standard_conforming_strings = off",
            "unknown: it changes standard_conforming_strings, after which statements would be read differently by the server",
        ),
        (
            "SELECT set_config('standard_conforming_strings', 'off', false)",
            "unknown: it changes standard_conforming_strings, after which statements would be read differently by the server",
        ),
        (
            "SET client_encoding = 'SJIS'",
            "unknown: it changes client_encoding, after which statements would be read differently by the server",
        ),
        ("SET NAMES 'utf-8'", "set"),
        (
            "SELECT set_config(x, 'off', false) FROM a",
            "unknown: set_config is called with a computed name",
        ),
        (
            "UPDATE pg_settings SET setting = 'x'",
            "unknown: it changes settings through pg_settings",
        ),
    ];
    check(&table, effects);
}

#[test]
fn functions_and_settings() {
    let facts = |text: &str| {
        let mut facts = analyse(text, &[]);
        assert_eq!(facts.statements.len(), 1, "{text}");
        let statement = facts.statements.remove(0);
        let join = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        (
            join(&statement.functions),
            join(&statement.settings),
            join(&statement.shows),
        )
    };
    let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    let table = [
        (
            "SELECT lower(x), pg_catalog.upper(y) FROM f(1) WHERE g() > 1",
            row("f g lower pg_catalog.upper", "", ""),
        ),
        ("SELECT \"Lower\"(x)", row("Lower", "", "")),
        (
            "SELECT U&\"pg\\005fread_file\"('/etc/passwd')",
            row("pg_read_file", "", ""),
        ),
        (
            "SELECT \"pg_catalog.lower\"(x)",
            row("\"pg_catalog.lower\"", "", ""),
        ),
        ("SELECT * FROM ROWS FROM (a(), b())", row("a b", "", "")),
        (
            "SELECT count(*) FILTER (WHERE p(x)) OVER (ORDER BY q(x)) FROM t",
            row("count p q", "", ""),
        ),
        ("CALL wipe(now())", row("now wipe", "", "")),
        ("SET LOCAL Search_Path = x", row("", "search_path", "")),
        ("SET ROLE x", row("", "role", "")),
        (
            "SET SESSION AUTHORIZATION x",
            row("", "session_authorization", ""),
        ),
        ("RESET ROLE", row("", "role", "")),
        ("SET TIME ZONE 'UTC'", row("", "timezone", "")),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            row("", "default_transaction_read_only", ""),
        ),
        (
            "SELECT pg_catalog.set_config('search_path', '', false)",
            row("", "search_path", ""),
        ),
        ("SHOW ALL", row("", "", "all")),
        (
            "SELECT current_setting('Data_Directory')",
            row("current_setting", "", "data_directory"),
        ),
        (
            "SELECT current_setting(x) FROM t",
            row("current_setting", "", "all"),
        ),
    ];
    for (text, expect) in table {
        assert_eq!(facts(text), expect, "{text}");
    }
}

#[test]
fn texts_of_statements_are_their_own() {
    let facts = analyse(
        "SELECT 'é'; /* two */ DELETE FROM t ;; SELECT 3 -- end",
        &[],
    );
    let texts: Vec<&str> = facts
        .statements
        .iter()
        .map(|statement| statement.text.as_str())
        .collect();
    assert_eq!(texts, ["SELECT 'é'", "DELETE FROM t", "SELECT 3 -- end"]);
}

/// The stack of the threads that analyse in the gateway.
const STACK: usize = 256 << 20;

#[test]
fn texts_that_are_not_analysed() {
    let fill = |start: &str, part: &str, end: &str| {
        let count = (LONGEST_TEXT - start.len() - end.len()) / part.len();
        format!("{start}{}{end}", part.repeat(count))
    };
    let table = [
        (
            "nested parentheses",
            format!("SELECT {}1{}", "(1+".repeat(3000), ")".repeat(3000)),
        ),
        ("concatenations", fill("SELECT 'a'", "||'a'", "")),
        ("sums", fill("SELECT 1", "+1", "")),
        ("casts", fill("SELECT 1", "::a", "")),
        (
            "subscripts",
            fill("SELECT (x)", ".a[1]", "") + &" ".repeat(4),
        ),
        ("signs", fill("SELECT ", "- ", "1")),
        ("unions", fill("SELECT", " UNION SELECT", "")),
        ("cross joins", fill("SELECT FROM a", " CROSS JOIN a", "")),
        ("is null", fill("SELECT 1", " IS NULL", "")),
        ("collate", fill("SELECT a", " COLLATE c", "")),
        ("too long", format!("SELECT '{}'", "x".repeat(LONGEST_TEXT))),
        ("NUL", "SELECT 1\0; DROP TABLE x".to_owned()),
    ];
    let check = move || {
        for (name, text) in table {
            let facts = analyse(&text, &masks());
            assert_eq!(facts.statements.len(), 1, "{name}");
            let statement = &facts.statements[0];
            if name == "subscripts" {
                continue;
            }
            assert!(statement.unknown.is_some(), "{name}");
            assert_eq!(statement.verb, Verb::Unknown, "{name}");
            assert!(
                matches!(
                    statement.mask,
                    MaskUse::Refused {
                        place: Place::Unknown,
                        ..
                    }
                ),
                "{name}"
            );
            let _ = evidence_text(&text, &facts, &masks());
        }
    };
    let thread = std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(check)
        .expect("a thread");
    thread.join().expect("no panic");
}

#[test]
fn binary_cursors_are_seen() {
    assert!(analyse("DECLARE c BINARY CURSOR FOR SELECT 1", &[]).statements[0].binary_cursor);
    assert!(!analyse("DECLARE c CURSOR FOR SELECT 1", &[]).statements[0].binary_cursor);
}

/// `none`, `maskable` or the rule that refuses.
fn mask(text: &str) -> String {
    let facts = analyse(text, &masks());
    let each = facts
        .statements
        .iter()
        .map(|statement| match &statement.mask {
            MaskUse::None => "none",
            MaskUse::Maskable => "maskable",
            MaskUse::Refused { place, .. } => place.rule().trim_start_matches("mask:"),
        });
    each.collect::<Vec<_>>().join(" ")
}

#[test]
fn masked_columns() {
    let table = [
        // Bare columns of the answer.
        ("SELECT card_number FROM customers", "maskable"),
        (
            "SELECT id, CARD_NUMBER AS x FROM Customers c WHERE id = 1 ORDER BY id",
            "maskable",
        ),
        (
            "SELECT c.card_number FROM public.customers AS c",
            "maskable",
        ),
        (
            "SELECT public.customers.card_number FROM public.customers",
            "maskable",
        ),
        ("SELECT \"card_number\" FROM ONLY customers", "maskable"),
        ("SELECT U&\"\\0063ard_number\" FROM customers", "maskable"),
        ("SELECT * FROM customers", "maskable"),
        (
            "SELECT c.*, o.* FROM customers c JOIN orders o ON o.customer_id = c.id",
            "maskable",
        ),
        ("SELECT * FROM customers JOIN orders USING (id)", "maskable"),
        ("TABLE customers", "maskable"),
        (
            "SELECT card_number FROM customers TABLESAMPLE bernoulli (100)",
            "maskable",
        ),
        ("SELECT card_number FROM customers FOR UPDATE", "maskable"),
        ("SELECT * FROM customers ORDER BY name LIMIT 3", "maskable"),
        (
            "SELECT id, card_number FROM customers ORDER BY 1",
            "maskable",
        ),
        (
            "SELECT DISTINCT ON (id) id, card_number FROM customers ORDER BY id",
            "maskable",
        ),
        ("PREPARE p AS SELECT card_number FROM customers", "maskable"),
        (
            "DECLARE c CURSOR FOR SELECT card_number FROM customers",
            "maskable",
        ),
        (
            "EXPLAIN ANALYZE SELECT card_number FROM customers",
            "maskable",
        ),
        ("DELETE FROM customers WHERE id = 1 RETURNING *", "maskable"),
        (
            "UPDATE customers SET name = 'x' WHERE id = 1 RETURNING card_number",
            "maskable",
        ),
        (
            "UPDATE customers SET name = 'x' RETURNING old.card_number",
            "maskable",
        ),
        (
            "INSERT INTO customers (card_number) VALUES ('4111') RETURNING card_number",
            "maskable",
        ),
        // Uses of the table that leave the column alone.
        ("SELECT count(*) FROM customers", "maskable"),
        (
            "SELECT name, upper(email) FROM customers WHERE name LIKE 'A%' GROUP BY name, email",
            "maskable",
        ),
        (
            "SELECT name FROM (SELECT name FROM customers) q",
            "maskable",
        ),
        (
            "SELECT id FROM orders WHERE EXISTS (SELECT 1 FROM customers c WHERE c.id = customer_id)",
            "maskable",
        ),
        (
            "SELECT name FROM customers UNION SELECT title FROM products",
            "maskable",
        ),
        (
            "SELECT upper(o.card_number) FROM orders o JOIN customers c ON c.id = o.id",
            "maskable",
        ),
        (
            "INSERT INTO customers VALUES (1, 'Ann', '4111')",
            "maskable",
        ),
        (
            "INSERT INTO customers (id, card_number) SELECT id, card_number FROM staging",
            "maskable",
        ),
        (
            "INSERT INTO customers (id, card_number) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET card_number = EXCLUDED.card_number",
            "maskable",
        ),
        (
            "UPDATE customers SET card_number = '4111' WHERE id = 1",
            "maskable",
        ),
        (
            "UPDATE customers SET card_number = upper('x'), name = name || 'y'",
            "maskable",
        ),
        ("DELETE FROM customers WHERE id = 1", "maskable"),
        (
            "MERGE INTO customers c USING staging s ON c.id = s.id WHEN MATCHED THEN UPDATE SET card_number = s.card_number",
            "maskable",
        ),
        ("COPY customers FROM STDIN", "maskable"),
        ("COPY customers (id, name) TO STDOUT", "maskable"),
        ("TRUNCATE customers", "maskable"),
        ("VACUUM customers", "maskable"),
        ("ALTER TABLE customers ADD COLUMN age int", "maskable"),
        (
            "ALTER TABLE customers RENAME COLUMN name TO full_name",
            "maskable",
        ),
        ("CREATE TABLE z (id int REFERENCES customers)", "maskable"),
        (
            "CREATE VIEW v AS SELECT id, name FROM customers",
            "maskable",
        ),
        ("CREATE INDEX ON customers (name)", "maskable"),
        ("EXECUTE p", "maskable"),
        ("FETCH ALL FROM c", "maskable"),
        ("CALL f()", "maskable"),
        // Other tables.
        ("SELECT 1", "none"),
        ("SELECT upper(card_number) FROM orders", "none"),
        ("SELECT upper(card_number) FROM archive.customers", "none"),
        ("WITH ssn AS (SELECT 1 AS ssn) SELECT ssn FROM ssn", "none"),
        (
            "SELECT title FROM products WHERE title = 'card_number customers'",
            "none",
        ),
        ("DO $$ BEGIN PERFORM 1; END $$", "none"),
        ("DROP TABLE customers", "none"),
        // Expressions.
        ("SELECT upper(card_number) FROM customers", "expression"),
        ("SELECT card_number || '' FROM customers", "expression"),
        ("SELECT card_number::text FROM customers", "expression"),
        (
            "SELECT card_number COLLATE \"C\" FROM customers",
            "expression",
        ),
        ("SELECT (card_number, id) FROM customers", "expression"),
        (
            "SELECT coalesce(card_number, '') FROM customers",
            "expression",
        ),
        (
            "SELECT CASE WHEN true THEN card_number END FROM customers",
            "expression",
        ),
        ("SELECT max(card_number) FROM customers", "expression"),
        (
            "SELECT count(id) FILTER (WHERE card_number LIKE '4%') FROM customers",
            "expression",
        ),
        (
            "SELECT first_value(id) OVER (ORDER BY card_number) FROM customers",
            "expression",
        ),
        (
            "SELECT count(id) OVER w FROM customers WINDOW w AS (ORDER BY card_number)",
            "group",
        ),
        ("SELECT card_number[1] FROM customers", "expression"),
        ("SELECT card_number = '4111' FROM customers", "expression"),
        ("VALUES ((SELECT card_number FROM customers))", "subselect"),
        (
            "SELECT 1 FROM customers, generate_series(1, length(card_number))",
            "expression",
        ),
        (
            "SELECT 1 FROM customers LIMIT (SELECT length(card_number) FROM customers)",
            "subselect",
        ),
        // Predicates, joins, orders, groups.
        (
            "SELECT id FROM customers WHERE card_number = '4111'",
            "predicate",
        ),
        (
            "SELECT id FROM customers c WHERE C.CARD_NUMBER IS NULL",
            "predicate",
        ),
        (
            "SELECT 1 FROM customers GROUP BY id HAVING min(card_number) > '4'",
            "predicate",
        ),
        (
            "SELECT 1 FROM customers c JOIN guesses g ON g.v = c.card_number",
            "join",
        ),
        (
            "SELECT 1 FROM customers JOIN guesses USING (card_number)",
            "join",
        ),
        ("SELECT 1 FROM customers NATURAL JOIN guesses", "join"),
        ("SELECT id FROM customers ORDER BY card_number", "order"),
        (
            "SELECT id, card_number AS x FROM customers ORDER BY x",
            "order",
        ),
        ("SELECT id, card_number FROM customers ORDER BY 2", "order"),
        ("SELECT * FROM customers ORDER BY 3", "order"),
        (
            "SELECT card_number FROM customers GROUP BY card_number",
            "group",
        ),
        (
            "SELECT card_number AS x, count(*) FROM customers GROUP BY x",
            "group",
        ),
        (
            "SELECT card_number, count(*) FROM customers GROUP BY 1",
            "group",
        ),
        (
            "SELECT card_number, count(*) FROM customers GROUP BY ROLLUP (1)",
            "group",
        ),
        ("SELECT DISTINCT card_number FROM customers", "distinct"),
        (
            "SELECT DISTINCT ON (card_number) id FROM customers",
            "distinct",
        ),
        (
            "DELETE FROM customers WHERE card_number = '4111'",
            "predicate",
        ),
        (
            "DELETE FROM orders USING customers c WHERE c.ssn = 'x'",
            "predicate",
        ),
        (
            "UPDATE products SET id = id WHERE EXISTS (SELECT 1 FROM customers WHERE ssn = 'x')",
            "predicate",
        ),
        (
            "MERGE INTO orders o USING customers c ON o.card = c.card_number WHEN MATCHED THEN DELETE",
            "predicate",
        ),
        // Sub-selects, WITH, set operations.
        (
            "SELECT (SELECT card_number FROM customers LIMIT 1)",
            "subselect",
        ),
        (
            "SELECT x FROM (SELECT card_number AS x FROM customers) q",
            "subselect",
        ),
        ("SELECT * FROM (SELECT * FROM customers) q", "subselect"),
        ("SELECT * FROM (TABLE customers) q", "subselect"),
        (
            "SELECT * FROM orders o, LATERAL (SELECT c.card_number FROM customers c) q",
            "subselect",
        ),
        (
            "WITH w AS (SELECT * FROM customers) SELECT * FROM w",
            "subselect",
        ),
        (
            "WITH products (title) AS (SELECT ssn FROM customers) SELECT title FROM products",
            "subselect",
        ),
        (
            "WITH d AS (DELETE FROM customers RETURNING card_number) SELECT upper(card_number) FROM d",
            "subselect",
        ),
        (
            "SELECT ARRAY(SELECT card_number FROM customers)",
            "subselect",
        ),
        (
            "SELECT 1 WHERE '4111' IN (SELECT card_number FROM customers)",
            "subselect",
        ),
        (
            "SELECT (SELECT max(g.i) FROM generate_series(1, 2) g(i) WHERE card_number > 'x') FROM customers",
            "predicate",
        ),
        (
            "SELECT 1 FROM customers c WHERE EXISTS (SELECT 1 FROM (SELECT c.card_number = 'x' AS b) s, orders c WHERE s.b)",
            "subselect",
        ),
        (
            "SELECT title FROM products UNION ALL SELECT card_number FROM customers",
            "set-operation",
        ),
        ("TABLE customers EXCEPT TABLE guesses", "set-operation"),
        // Whole rows and renamed columns.
        ("SELECT c FROM customers c", "whole-row"),
        ("SELECT customers FROM customers", "whole-row"),
        ("SELECT to_jsonb(c) FROM customers c", "whole-row"),
        ("SELECT row_to_json(c.*) FROM customers c", "whole-row"),
        ("SELECT c::text FROM customers c", "whole-row"),
        ("SELECT (c).card_number FROM customers c", "whole-row"),
        ("SELECT (c).* FROM customers c", "whole-row"),
        ("SELECT card_number(c) FROM customers c", "whole-row"),
        ("SELECT ROW(c.*) FROM customers c", "whole-row"),
        ("SELECT count(c) FROM customers c", "whole-row"),
        ("SELECT 1 FROM customers c WHERE c = ROW(1)", "whole-row"),
        ("SELECT 1 FROM customers c, hstore(c) h", "whole-row"),
        (
            "SELECT j FROM (customers c JOIN orders o ON o.id = c.id) j",
            "whole-row",
        ),
        (
            "SELECT upper(j.card_number) FROM (customers c JOIN orders o ON o.id = c.id) j",
            "expression",
        ),
        (
            "SELECT upper(d) FROM customers AS c (a, b, d)",
            "column-alias",
        ),
        (
            "SELECT upper(d) FROM (customers c JOIN orders o ON o.id = c.id) j (a, b, d)",
            "column-alias",
        ),
        ("SELECT (list_people()).card_number", "whole-row"),
        // Copies under another name.
        ("COPY customers TO STDOUT", "maskable"),
        ("COPY customers (card_number) TO STDOUT", "maskable"),
        (
            "COPY (SELECT card_number FROM customers) TO STDOUT",
            "maskable",
        ),
        ("COPY customers TO '/tmp/x'", "copy"),
        ("COPY customers (card_number) TO PROGRAM 'cat'", "copy"),
        (
            "COPY (SELECT card_number FROM customers) TO '/tmp/x'",
            "copy",
        ),
        ("COPY (SELECT * FROM customers) TO STDOUT", "copy"),
        (
            "COPY (DELETE FROM customers RETURNING card_number) TO STDOUT",
            "copy",
        ),
        ("COPY (SELECT id FROM customers) TO STDOUT", "maskable"),
        (
            "COPY customers FROM STDIN WHERE card_number > 'x'",
            "predicate",
        ),
        ("UPDATE customers SET name = card_number", "assignment"),
        (
            "UPDATE customers SET (name, email) = (SELECT card_number, 'x' FROM customers)",
            "subselect",
        ),
        (
            "UPDATE orders SET note = c.card_number FROM customers c",
            "assignment",
        ),
        (
            "INSERT INTO products SELECT id, card_number FROM customers",
            "assignment",
        ),
        ("INSERT INTO products TABLE customers", "assignment"),
        (
            "INSERT INTO customers VALUES (1) ON CONFLICT (id) DO UPDATE SET name = customers.card_number",
            "assignment",
        ),
        (
            "INSERT INTO customers VALUES (1) ON CONFLICT (card_number) DO NOTHING",
            "conflict-target",
        ),
        (
            "INSERT INTO customers AS excluded VALUES (1) ON CONFLICT (id) DO UPDATE SET name = excluded.card_number",
            "assignment",
        ),
        (
            "MERGE INTO orders o USING customers c ON o.id = c.id WHEN MATCHED THEN UPDATE SET note = c.card_number",
            "assignment",
        ),
        (
            "UPDATE customers SET name = 'x' RETURNING upper(card_number)",
            "expression",
        ),
        (
            "UPDATE customers SET name = 'x' RETURNING WITH (OLD AS o) upper(o.card_number)",
            "expression",
        ),
        (
            "CREATE TABLE z AS SELECT card_number FROM customers",
            "new-table",
        ),
        ("CREATE TEMP TABLE z AS TABLE customers", "new-table"),
        ("CREATE TABLE z AS EXECUTE p", "new-table"),
        ("SELECT card_number INTO z FROM customers", "new-table"),
        ("CREATE VIEW v AS SELECT card_number FROM customers", "view"),
        ("CREATE MATERIALIZED VIEW v AS TABLE customers", "new-table"),
        (
            "CREATE RULE r AS ON UPDATE TO customers DO ALSO INSERT INTO z VALUES (NEW.card_number)",
            "expression",
        ),
        (
            "CREATE TRIGGER t AFTER INSERT ON customers EXECUTE FUNCTION f()",
            "definition",
        ),
        (
            "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS 'SELECT card_number FROM customers'",
            "code",
        ),
        (
            "CREATE FUNCTION f() RETURNS text RETURN (SELECT card_number FROM customers)",
            "subselect",
        ),
        (
            "CREATE FUNCTION f() RETURNS text BEGIN ATOMIC SELECT card_number FROM customers; END",
            "code",
        ),
        (
            "DO $$ BEGIN RAISE '%', (SELECT ssn FROM customers); END $$",
            "code",
        ),
        (
            "DO $$ BEGIN EXECUTE reverse('sremotsuc MORF * TCELES'); END $$",
            "code",
        ),
        (
            "ALTER TABLE customers RENAME COLUMN card_number TO x",
            "definition",
        ),
        ("ALTER TABLE customers RENAME TO c2", "definition"),
        ("ALTER TABLE customers SET SCHEMA other", "definition"),
        ("ALTER TABLE customers INHERIT parent", "definition"),
        (
            "ALTER TABLE parent ATTACH PARTITION customers DEFAULT",
            "definition",
        ),
        (
            "ALTER TABLE customers ALTER COLUMN card_number TYPE bigint USING card_number::bigint",
            "definition",
        ),
        (
            "ALTER TABLE customers ADD CHECK (card_number > 'x')",
            "definition",
        ),
        (
            "ALTER TABLE customers ADD COLUMN x text GENERATED ALWAYS AS (card_number) STORED",
            "definition",
        ),
        ("CREATE TABLE child () INHERITS (customers)", "definition"),
        (
            "CREATE TABLE part PARTITION OF customers DEFAULT",
            "definition",
        ),
        ("CREATE INDEX ON customers (card_number)", "definition"),
        (
            "CREATE INDEX ON customers (upper(card_number))",
            "definition",
        ),
        (
            "CREATE POLICY p ON customers USING (card_number = 'x')",
            "definition",
        ),
        ("CREATE PUBLICATION p FOR TABLE customers", "definition"),
        (
            "CREATE STATISTICS s ON id, card_number FROM customers",
            "definition",
        ),
        // Ways round the names.
        ("SELECT * FROM pg_stats", "statistics"),
        (
            "SELECT stavalues1 FROM pg_catalog.pg_statistic",
            "statistics",
        ),
        (
            "SELECT query_to_xml('SELECT 1', true, false, '')",
            "sql-in-text",
        ),
        ("SELECT * FROM dblink('', 'x') AS t (a text)", "sql-in-text"),
        (
            "CREATE OPERATOR !!! (FUNCTION = pg_catalog.ts_stat, RIGHTARG = text)",
            "sql-in-text",
        ),
        (
            "CREATE AGGREGATE a (text) (SFUNC = ts_rewrite, STYPE = tsquery)",
            "sql-in-text",
        ),
        (
            "CREATE CAST (text AS t) WITH FUNCTION \"ts_stat\" (text)",
            "sql-in-text",
        ),
        (
            "CREATE OPERATOR === (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
            "none",
        ),
        ("ALTER SCHEMA public RENAME TO x", "definition"),
        ("ALTER SCHEMA \"Public\" RENAME TO x", "definition"),
        ("ALTER SCHEMA other RENAME TO x", "none"),
        ("DO 'BEGIN ALTER SCHEMA public RENAME TO x; END'", "code"),
        (
            r#"DO $$ BEGIN RAISE '%', (SELECT U&"card\005fnumber" FROM U&"c\0075stomers"); END $$"#,
            "code",
        ),
        (
            "DO $$ BEGIN RAISE '%', (SELECT max(histogram_bounds::text) FROM pg_stats); END $$",
            "code",
        ),
        ("DO $$ BEGIN PERFORM 1; END $$", "none"),
        ("SELEC card_number FROM customers", "unknown"),
    ];
    check(&table, mask);
}

#[test]
fn without_mask_rules_nothing_is_masked() {
    for text in [
        "SELECT upper(card_number) FROM customers",
        "EXECUTE p",
        "SELEC",
        "SELECT * FROM pg_stats",
    ] {
        assert_eq!(
            analyse(text, &[]).statements[0].mask,
            MaskUse::None,
            "{text}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_analysed(text in ".{0,120}") {
        let _ = analyse(&text, &masks());
    }

    /// Words that parse often: the walk itself is exercised, not only the parser's refusals.
    #[test]
    fn any_words_are_analysed(words in proptest::collection::vec(proptest::sample::select(WORDS.to_vec()), 1..14)) {
        let text = words.join(" ");
        let facts = analyse(&text, &masks());
        for statement in facts.statements {
            if statement.text.contains("card_number") && statement.text.contains("customers") && statement.unknown.is_none() {
                proptest::prop_assert!(statement.mask != MaskUse::None || statement.reads.is_empty(), "{}", text);
            }
        }
    }
}

const WORDS: &[&str] = &[
    "SELECT",
    "*",
    "FROM",
    "customers",
    "c",
    "WHERE",
    "card_number",
    "=",
    "1",
    ",",
    "(",
    ")",
    "UNION",
    "INSERT INTO",
    "VALUES",
    "UPDATE",
    "SET",
    "DELETE FROM",
    "RETURNING",
    "WITH x AS (SELECT 1)",
    "orders",
    "JOIN",
    "ON",
    "USING",
    "ORDER BY",
    "GROUP BY",
    "COPY",
    "TO STDOUT",
    ";",
    "AS",
    "x",
    "c.",
    "lower(",
    "::text",
    "EXPLAIN",
    "ANALYZE",
    "PREPARE p AS",
];

/// `c.name` may be a call of `name` with the whole row, so the names are told, with the table.
#[test]
fn names_taken_from_rows_of_masked_tables() {
    let attributes = |text: &str| {
        let facts = analyse(text, &masks());
        let found: Vec<String> = facts
            .statements
            .iter()
            .flat_map(|statement| &statement.attributes)
            .flat_map(|(table, names)| names.iter().map(move |name| format!("{table}:{name}")))
            .collect();
        found.join(" ")
    };
    let table = [
        ("SELECT name FROM customers", ""),
        ("SELECT o.total FROM orders o", ""),
        (
            "SELECT c.name, c.card_number FROM customers c",
            "customers:name",
        ),
        (
            "SELECT c.row_to_json FROM customers c",
            "customers:row_to_json",
        ),
        (
            "SELECT public.customers.to_jsonb FROM public.customers",
            "public.customers:to_jsonb",
        ),
        (
            "SELECT o.id, c.f FROM orders o JOIN customers c ON c.id = o.customer_id WHERE c.g ORDER BY c.h",
            "customers:f customers:g customers:h customers:id",
        ),
        (
            "SELECT j.hstore FROM (customers c CROSS JOIN orders o) j",
            "customers:hstore",
        ),
        (
            "SELECT s.v FROM customers c, LATERAL (SELECT c.json_agg AS v) s",
            "customers:json_agg",
        ),
        (
            "UPDATE customers SET name = 'x' RETURNING customers.f, old.g",
            "customers:f customers:g",
        ),
        ("SELECT s.f FROM secrets s", "secrets:f"),
    ];
    check(&table, attributes);
}

/// What calls a function without being a call.
#[test]
fn calls_in_disguise() {
    let disguises = |text: &str| {
        let facts = analyse(text, &[]);
        let found = &facts.statements[0].disguises;
        let join = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        [&found.operators, &found.types, &found.attributes]
            .map(join)
            .join("|")
    };
    let table = [
        ("SELECT 1", "||"),
        ("SELECT 'a' === 'b' FROM t", "===||"),
        ("SELECT 'a' OPERATOR(public.@@@) 'b'", "@@@||"),
        (
            "SELECT !! a FROM t WHERE b LIKE 'x' OR c IN (1)",
            "!! = ~~||",
        ),
        ("SELECT 1 FROM t WHERE a BETWEEN 1 AND 2", "< <= > >=||"),
        ("SELECT 1 FROM t WHERE a IN (SELECT b FROM u)", "=||"),
        ("SELECT 1 FROM t WHERE a @@@ ANY (SELECT b FROM u)", "@@@||"),
        ("SELECT CASE a WHEN 1 THEN 2 END FROM t", "=||"),
        ("SELECT 1 FROM t JOIN u USING (a)", "=||"),
        ("SELECT 1 FROM t ORDER BY a USING <<<", "<<<||"),
        (
            "SELECT a::public.money2, CAST(b AS text) FROM t",
            "|money2 text|",
        ),
        ("SELECT t.f, (t.c).g, (h(t)).i FROM t", "||c f g i"),
        ("SELECT s.t.f FROM s.t", "||f"),
    ];
    check(&table, disguises);
}

/// Comments nested 60,000 deep once kept a thread busy for most of a minute.
#[test]
fn deeply_nested_comments_are_not_looked_at() {
    let nested = |depth: usize| format!("SELECT 1 {}{}", "/*".repeat(depth), "*/".repeat(depth));
    let unknown = |text: &str| analyse(text, &[]).statements[0].unknown.clone();
    assert_eq!(unknown(&nested(64)), None);
    assert_eq!(
        unknown(&nested(60_000)).as_deref(),
        Some("comments are nested deeper than 64")
    );
    assert!(unknown(&"/*".repeat(80_000)).is_some());
    assert_eq!(
        unknown(&format!("SELECT 1{}", " /* a */".repeat(1000))),
        None
    );
}

#[test]
fn what_a_statement_does_with_names() {
    let n63 = "n".repeat(63);
    let cut = format!("execute {n63}");
    let long = format!("EXECUTE {n63}nn");
    for (text, expected) in [
        (
            "PREPARE Q (int, text) AS\n DELETE FROM a",
            "prepare q: DELETE FROM a: delete{a}",
        ),
        (
            "PREPARE \"As\" AS SELECT 1 AS as_is",
            "prepare As: SELECT 1 AS as_is: select",
        ),
        (
            "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT * FROM a FOR UPDATE",
            "declare c hold: SELECT * FROM a FOR UPDATE: select{a} lock",
        ),
        (
            "DECLARE c CURSOR FOR SELECT 1",
            "declare c: SELECT 1: select",
        ),
        ("EXECUTE Q(1)", "execute q"),
        ("EXPLAIN ANALYZE EXECUTE \"Q\"", "execute Q"),
        ("EXPLAIN CREATE TABLE a AS EXECUTE q", "execute q"),
        ("EXPLAIN DECLARE c CURSOR FOR SELECT 1", "nothing"),
        ("FETCH BACKWARD ALL IN c", "fetch c"),
        ("MOVE c", "fetch c"),
        ("DEALLOCATE PREPARE q", "deallocate q"),
        ("DEALLOCATE ALL", "deallocate all"),
        ("CLOSE c", "close c"),
        ("CLOSE ALL", "close all"),
        ("DISCARD ALL", "discard"),
        ("DISCARD TEMP", "nothing"),
        ("DO $$ BEGIN NULL; END $$", "nothing"),
        ("DO $$ BEGIN execute 'x'; END $$", "anything"),
        ("DO LANGUAGE plperl $$ x $$", "anything"),
        ("SELEC 1", "anything"),
        (&long, &cut),
    ] {
        let statement = analyse(text, &[]).statements.remove(0);
        let all = |name: &Option<String>| name.clone().unwrap_or_else(|| "all".to_owned());
        let inner = |it: &Statement| format!("{}: {}", it.text, effects(&it.text));
        let seen = match &statement.naming {
            Naming::None => "nothing".to_owned(),
            Naming::Prepare { name, prepared } => format!("prepare {name}: {}", inner(prepared)),
            Naming::Declare { name, query, hold } => {
                let hold = if *hold { " hold" } else { "" };
                format!("declare {name}{hold}: {}", inner(query))
            }
            Naming::Execute(name) => format!("execute {name}"),
            Naming::Fetch(name) => format!("fetch {name}"),
            Naming::Deallocate(name) => format!("deallocate {}", all(name)),
            Naming::Close(name) => format!("close {}", all(name)),
            Naming::DiscardAll => "discard".to_owned(),
            Naming::Anything => "anything".to_owned(),
        };
        assert_eq!(seen, expected, "{text}");
    }
}
