//! PostgreSQL's own programs: psql at a terminal and with files, pgbench in all modes; and many sessions at once.

use super::sheet::{Run, Test, compare, of_lines, of_program};
use super::way::{Place, Way};
use crate::harness::python::Environment;

const COPIES: &str = r"
CREATE TABLE copied (id int, word text, seen timestamptz);
COPY copied FROM STDIN;
1	one	2024-02-29 12:00:00+00
2	\N	\N
3	tab\tand 'quotes'	infinity
\.
\copy copied TO 'OUTPUT/text'
\copy copied TO 'OUTPUT/csv' (FORMAT csv, HEADER)
\copy copied TO 'OUTPUT/binary' (FORMAT binary)
\copy (SELECT id, word FROM copied ORDER BY id DESC) TO STDOUT (FORMAT csv)
\copy copied TO PROGRAM 'cat > OUTPUT/program'
TRUNCATE copied;
\copy copied FROM 'OUTPUT/text'
\copy copied FROM 'OUTPUT/csv' (FORMAT csv, HEADER)
\copy copied FROM 'OUTPUT/binary' (FORMAT binary)
\copy copied FROM PROGRAM 'cat OUTPUT/program'
\copy copied (id) FROM STDIN
41
42
\.
SELECT id, count(*), count(word) FROM copied GROUP BY id ORDER BY id;
\copy copied FROM 'OUTPUT/binary'
\copy copied FROM 'OUTPUT/missing'
\copy nowhere FROM 'OUTPUT/text'
BEGIN;
\copy copied FROM 'OUTPUT/text'
ROLLBACK;
SELECT count(*) FROM copied;
COPY copied FROM STDIN \; SELECT 'after' \; COPY copied TO STDOUT \; SELECT count(*) FROM copied;
51	x	\N
\.
INSERT INTO copied SELECT n, repeat('row ', 10) FROM generate_series(1, 20000) AS n;
\copy copied TO 'OUTPUT/many'
TRUNCATE copied;
\copy copied FROM 'OUTPUT/many'
SELECT count(*), sum(id) FROM copied;
";

const NOTIFICATIONS: &str = r#"
LISTEN news;
NOTIFY news, 'from itself';
SELECT pg_notify('news', 'by a function');
\! psql -Xqc "NOTIFY news, 'from another'"
SELECT 1;
BEGIN;
NOTIFY news, 'at the commit';
NOTIFY news, 'at the commit';
\echo not yet
COMMIT;
BEGIN;
NOTIFY news, 'never';
ROLLBACK;
UNLISTEN news;
\! psql -Xqc "NOTIFY news, 'to nobody'"
SELECT 2;
"#;

/// Every statement of a transaction in one go.
const PIPELINE: &str = r"
\set id random(1, 100000)
\startpipeline
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance WHERE aid = :id;
SELECT abalance FROM pgbench_accounts WHERE aid = :id;
END;
\endpipeline
";

#[test]
fn psql_copies() {
    compare("psql", &[], |way, place| {
        let output = place.output().display().to_string();
        let mut run = psql(way, "copies", &COPIES.replace("OUTPUT", &output));
        for file in ["text", "csv", "binary", "program", "many"] {
            let bytes = std::fs::read(place.output().join(file)).unwrap_or_default();
            let passed = !bytes.is_empty();
            let saw = hex::encode(&bytes[..bytes.len().min(2000)]) + &bytes.len().to_string();
            run.insert(format!("the file {file}"), Test { passed, saw });
        }
        run
    });
}

#[test]
fn psql_hears_notifications() {
    compare("psql", &[], |way, _| {
        psql(way, "notifications", NOTIFICATIONS)
    });
}

#[test]
fn psql_is_interrupted() {
    compare("psql, Ctrl-C", &[], |way, place| {
        interrupted(way, place, "psql")
    });
}

#[test]
fn pgbench_in_all_modes() {
    compare("pgbench", &[], |way, place| {
        pgbench(way, place, "pgbench", 20)
    });
}

#[test]
fn a_hundred_sessions() {
    compare("asyncpg, 100 sessions", &[], |way, place| {
        let python = Environment::Drivers.copy_into(place.path());
        let script = place.file("sessions.py", include_str!("../clients/sessions.py"));
        let port = way.port().to_string();
        let python = python.display().to_string();
        of_lines(&way.run(&[&python, &script, "127.0.0.1", &port]))
    });
}

/// One session of psql that prints everything it is told, both streams.
pub fn psql(way: &Way, name: &str, script: &str) -> Run {
    let words = ["sh", "-c", "psql -X -a 2>&1"];
    let ended = way.run_with(&words, script);
    let saw = without_process_ids(&way.without_port(&ended.text()));
    Run::from([of_program(name, &ended, saw)])
}

/// psql tells which process sent a notification.
fn without_process_ids(text: &str) -> String {
    const BEFORE: &str = "from server process with PID ";
    let mut parts = text.split(BEFORE);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean += BEFORE;
        clean += part.trim_start_matches(|digit: char| digit.is_ascii_digit());
    }
    clean
}

pub fn interrupted(way: &Way, place: &Place, psql: &str) -> Run {
    let script = place.file("interrupt.py", include_str!("../clients/interrupt.py"));
    of_lines(&way.run(&["/usr/bin/python3", &script, psql]))
}

/// Each script in each mode, and whether the balances are right after all of them.
pub fn pgbench(way: &Way, place: &Place, program: &str, transactions: usize) -> Run {
    const CLIENTS: usize = 4;
    let pipeline = place.file("pipeline.sql", PIPELINE);
    let pipeline = format!("--file={pipeline}");
    let each = transactions.to_string();
    let mut run = Run::new();
    let made = way.run(&[program, "--initialize", "--quiet", "--scale=1"]);
    run.extend([of_program("initialize", &made, String::new())]);
    for mode in ["simple", "extended", "prepared"] {
        for script in [
            "--builtin=tpcb-like",
            "--builtin=simple-update",
            "--builtin=select-only",
            &pipeline,
        ] {
            if mode == "simple" && script == pipeline {
                // pgbench itself has no pipelines there.
                continue;
            }
            let protocol = format!("--protocol={mode}");
            let clients = format!("--client={CLIENTS}");
            let ended = way.run(&[
                program,
                "--no-vacuum",
                "--random-seed=7",
                "--jobs=2",
                &clients,
                "--transactions",
                &each,
                &protocol,
                script,
            ]);
            let text = ended.text();
            let counts = text.lines().filter(|line| {
                line.starts_with("number of transactions actually")
                    || line.starts_with("number of failed")
            });
            let saw = counts.collect::<Vec<_>>().join(", ");
            let kind = script.rsplit(['=', '/']).next().unwrap_or_default();
            run.extend([of_program(&format!("{mode} {kind}"), &ended, saw)]);
        }
    }
    let balances = way.admin(
        "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts) =
         (SELECT sum(delta) FROM pgbench_history), (SELECT sum(tbalance) FROM pgbench_tellers) =
         (SELECT sum(bbalance) FROM pgbench_branches)",
    );
    let passed = balances.ends_with("t|t");
    let saw = balances;
    run.insert("the balances".to_owned(), Test { passed, saw });
    run
}
