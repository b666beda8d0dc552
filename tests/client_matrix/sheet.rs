//! What both runs of one client saw, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;

use super::way::{Place, Way};
use crate::harness::program::Ended;

/// Where the rows go for `cargo xtask test clients`.
const COLLECTED: &str = "SLUICE_CLIENTS_ROWS";

/// What one run of a client left, by the name of the test.
pub type Run = BTreeMap<String, Test>;

/// One test of a client.
#[derive(Debug, PartialEq, Eq)]
pub struct Test {
    pub passed: bool,
    /// What it saw; empty where only the outcome is known.
    pub saw: String,
}

/// A difference that has to be, and why.
pub type Explained = (&'static str, &'static str);

/// Runs a client both ways, each with a server of its own, and fails if a test differs that `explained` does not
/// name.
#[track_caller]
pub fn compare(client: &str, explained: &[Explained], run: impl Fn(&Way, &Place) -> Run) {
    compare_ways(
        client,
        explained,
        [Way::directly, Way::through_gateway],
        run,
    );
}

/// The same with servers and a gateway of another kind.
#[track_caller]
pub fn compare_ways<Make: FnOnce() -> Way>(
    client: &str,
    explained: &[Explained],
    ways: [Make; 2],
    run: impl Fn(&Way, &Place) -> Run,
) {
    let place = Place::new();
    let [direct, through] = ways.map(|make| {
        let way = make();
        let run = run(&way, &place);
        place.clear();
        run
    });
    let names: BTreeSet<&String> = direct.keys().chain(through.keys()).collect();
    assert!(!names.is_empty(), "{client} ran no test");
    let mut different = Vec::new();
    let mut rows = String::new();
    for name in names {
        let (one, other) = (direct.get(name), through.get(name));
        let difference = difference(one, other);
        let reason = explained.iter().find(|(test, _)| test == name);
        if difference.is_empty() == reason.is_some() {
            // One that is explained and not there is a wrong explanation.
            different.push(format!("{name}: {difference}"));
        }
        // Read by xtask/src/test/clients.rs.
        let fields = [
            client,
            name,
            outcome(one),
            outcome(other),
            &difference,
            reason.map_or("", |(_, why)| why),
        ];
        rows += &fields
            .map(|field| field.replace(['\t', '\n'], " "))
            .join("\t");
        rows.push('\n');
    }
    collect(&rows);
    assert!(different.is_empty(), "{client}: {}", different.join("\n"));
}

fn collect(rows: &str) {
    if let Some(path) = std::env::var_os(COLLECTED) {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.expect("cargo xtask test clients names a file");
        file.write_all(rows.as_bytes()).expect("it is writable");
    }
}

fn outcome(test: Option<&Test>) -> &'static str {
    match test {
        Some(test) if test.passed => "passed",
        Some(_) => "failed",
        None => "missing",
    }
}

/// Empty if there is none.
fn difference(direct: Option<&Test>, through: Option<&Test>) -> String {
    let (Some(direct), Some(through)) = (direct, through) else {
        return "one of the runs has no such test".to_owned();
    };
    if direct == through {
        return String::new();
    }
    let lines = direct.saw.lines().chain(std::iter::repeat("<nothing>"));
    let other = through.saw.lines().chain(std::iter::repeat("<nothing>"));
    let count = direct.saw.lines().count().max(through.saw.lines().count());
    let mut pairs = lines.zip(other).take(count);
    match pairs.find(|(one, other)| one != other) {
        Some((one, other)) => format!("saw {one:?}, through the gateway {other:?}"),
        None => format!(
            "{}, through the gateway {}",
            outcome(Some(direct)),
            outcome(Some(through))
        ),
    }
}

/// The lines `ok NAME: VALUE` and `FAILED NAME: ERROR` of the matrices.
#[track_caller]
pub fn of_lines(ended: &Ended) -> Run {
    let text = ended.text();
    let tests = text.lines().filter_map(|line| {
        let (passed, rest) = match line.split_once(' ')? {
            ("ok", rest) => (true, rest),
            ("FAILED", rest) => (false, rest),
            _ => return None,
        };
        let (name, saw) = rest.split_once(": ")?;
        let saw = saw.to_owned();
        Some((name.to_owned(), Test { passed, saw }))
    });
    let run: Run = tests.collect();
    assert!(ended.status.success() && !run.is_empty(), "{ended}");
    run
}

/// A program that is one test: what it printed, and whether it ended well.
pub fn of_program(name: &str, ended: &Ended, saw: String) -> (String, Test) {
    let passed = ended.status.success();
    (name.to_owned(), Test { passed, saw })
}
