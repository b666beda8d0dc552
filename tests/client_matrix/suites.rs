//! The suites that Python's clients bring: pg8000's own out of its sources, and SQLAlchemy's for dialects.

use std::process::Command;

use super::sheet::{Explained, Run, Test, compare, compare_ways};
use super::start_up::Server15;
use super::way::{Place, Way};
use crate::harness::Authority;
use crate::harness::program::run;
use crate::harness::python::Environment;

const PG8000: &[Explained] = &[(
    "test/native/auth/test_scram-sha-256.py::test_scram_sha_256_ssl_True",
    "it turns the server's TLS off and expects a refusal: toward agents TLS is the gateway's own",
)];

#[test]
#[ignore = "needs pg8000's sources: cargo xtask test clients"]
fn pg8000() {
    super::crates::fetched();
    // Toward an agent the gateway has TLS: the server must, too.
    let authority = Authority::new();
    let server = || Box::new(Server15::new(&authority));
    let direct = || Way::to(server());
    let through = || Way::through(server());
    let ways: [Box<dyn FnOnce() -> Way>; 2] = [Box::new(direct), Box::new(through)];
    compare_ways("pg8000", PG8000, ways, |way, place| {
        let python = Environment::Suites.copy_into(place.path());
        let sources = place.path().join("pg8000");
        if !sources.exists() {
            std::fs::create_dir(&sources).expect("the folder is ours");
            let archives = place.path().join("venv/sources");
            let archive = std::fs::read_dir(archives)
                .expect("pip has downloaded it")
                .next();
            let archive = archive.expect("there is one").expect("it is readable");
            let mut tar = Command::new("tar");
            tar.arg("-xf").arg(archive.path()).arg("-C").arg(&sources);
            // Only the tests: the package itself is the installed one.
            tar.args([
                "--strip-components=1",
                "--wildcards",
                "*/test",
                "*/README.md",
            ]);
            run(tar).succeeds();
        }
        way.admin("CREATE EXTENSION hstore");
        pytest(
            way,
            &python.display().to_string(),
            &sources.display().to_string(),
            &["--benchmark-disable", "test"],
        )
    });
}

#[test]
#[ignore = "needs SQLAlchemy: cargo xtask test clients"]
fn sqlalchemy() {
    super::crates::fetched();
    compare("SQLAlchemy", &[], |way, place| {
        let python = Environment::Suites.copy_into(place.path());
        let folder = suite_of_dialects(place);
        way.admin("CREATE SCHEMA test_schema; CREATE SCHEMA test_schema_2");
        let url = format!(
            "postgresql+psycopg://postgres@127.0.0.1:{}/postgres",
            way.port()
        );
        pytest(
            way,
            &python.display().to_string(),
            &folder,
            &["--dburi", &url, "--maxfail=10000", "test_suite.py"],
        )
    });
}

fn suite_of_dialects(place: &Place) -> String {
    let folder = place.path().join("sqlalchemy");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    for (name, text) in [
        (
            "conftest.py",
            include_str!("../clients/sqlalchemy/conftest.py"),
        ),
        (
            "requirements.py",
            include_str!("../clients/sqlalchemy/requirements.py"),
        ),
        ("setup.cfg", include_str!("../clients/sqlalchemy/setup.cfg")),
        (
            "test_suite.py",
            include_str!("../clients/sqlalchemy/test_suite.py"),
        ),
    ] {
        place.file(&format!("sqlalchemy/{name}"), text);
    }
    folder.display().to_string()
}

/// One line of pytest's report for each test; those that are skipped are not there.
#[track_caller]
fn pytest(way: &Way, python: &str, folder: &str, arguments: &[&str]) -> Run {
    // pytest reads its settings from where it is started.
    let start = r#"cd "$1"; shift; exec "$@""#;
    let mut words = vec!["sh", "-c", start, "sh", folder, python, "-m", "pytest"];
    words.extend([
        "-v",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "--color=no",
        "-W",
        "ignore",
    ]);
    words.extend(arguments);
    let ended = way.run(&words);
    let text = ended.text();
    let tests = text.lines().filter_map(|line| {
        let line = line
            .trim_end()
            .trim_end_matches(|sign: char| "[]% ".contains(sign) || sign.is_ascii_digit());
        let (name, outcome) = line.rsplit_once(' ')?;
        let known = ["PASSED", "FAILED", "ERROR", "XFAIL", "XPASS"];
        if !name.contains("::") || !known.contains(&outcome) {
            return None;
        }
        let passed = ["PASSED", "XFAIL"].contains(&outcome);
        let name = way.without_port(name.trim_end());
        let saw = outcome.to_owned();
        Some((name, Test { passed, saw }))
    });
    let run: Run = tests.collect();
    assert!(!run.is_empty(), "{ended}");
    run
}
