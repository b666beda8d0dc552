//! One matrix for each driver: types both ways and in both formats, statements, cursors, errors, transactions, COPY,
//! notifications, cancels, settings, large values. The scripts print one line for each check.

use super::sheet::{Explained, Run, compare, of_lines};
use super::way::{Place, Way};
use crate::harness::NodeScript;
use crate::harness::python::Environment;

/// The gateway's own words about a target that refused a login.
const WHOSE_FAULT: &str = "the gateway adds which side refused";

/// What differs on purpose.
const PSYCOPG: &[Explained] = &[
    (
        "start_up_search_path",
        "names must not be resolved in a path that no policy has seen: SET is decided, start-up settings are allow-listed",
    ),
    (
        "latin1",
        "statements are analysed as UTF-8: one with other bytes in it is refused, with a hint to use UTF8",
    ),
    ("wrong_database", WHOSE_FAULT),
];

#[test]
fn psycopg() {
    compare("psycopg 3", PSYCOPG, |way, place| {
        let script = include_str!("../clients/matrix_psycopg.py");
        python(way, place, script, &[&format!("port={}", way.port())])
    });
}

#[test]
fn asyncpg() {
    compare("asyncpg", &[], |way, place| {
        let script = include_str!("../clients/matrix_asyncpg.py");
        python(way, place, script, &["127.0.0.1", &way.port().to_string()])
    });
}

#[test]
fn node_postgres() {
    compare(
        "node-postgres",
        &[("wrong database", WHOSE_FAULT)],
        |way, place| {
            let text = include_str!("../clients/matrix_node.js");
            let script = NodeScript::new(place.path(), "matrix.js", text);
            let port = way.port().to_string();
            of_lines(&way.run(&script.words(["127.0.0.1", port.as_str()])))
        },
    );
}

fn python(way: &Way, place: &Place, script: &str, arguments: &[&str]) -> Run {
    let python = Environment::Drivers.copy_into(place.path());
    let python = python.display().to_string();
    let script = place.file("matrix.py", script);
    let mut words = vec![python.as_str(), &script];
    words.extend(arguments);
    of_lines(&way.run(&words))
}
