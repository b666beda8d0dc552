//! The tests inside the crates tokio-postgres and sqlx, built once and run both ways.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::sheet::{Explained, Run, Test, compare};
use super::way::{Place, Way};
use crate::harness::program::{Ended, run_within};
use crate::harness::{Authentication, Postgres};

/// Where `cargo xtask test clients` has put them.
const FETCHED: &str = "SLUICE_CLIENTS";

/// For building the tests and what they depend on, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(900);

/// The roles that tokio-postgres' tests log in as, each with its own way to prove itself.
const ROLES: &str = "
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree;
SET password_encryption = 'md5';
CREATE ROLE md5_user PASSWORD 'password' LOGIN;
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram_user PASSWORD 'password' LOGIN;
CREATE ROLE pass_user PASSWORD 'password' LOGIN;
";

const RULES: &str = "local all all trust
host all pass_user all password
host all md5_user all md5
host all scram_user all scram-sha-256
host all all all trust
";

/// Toward an agent no password is asked for, because its identity is proven already; any is taken and discarded.
const NO_PASSWORD: &str =
    "the agent is known by its control group and token: no password is asked for";

const TOKIO_POSTGRES: &[Explained] = &[
    ("main::md5_password_missing", NO_PASSWORD),
    ("main::md5_password_wrong", NO_PASSWORD),
    ("main::plain_password_missing", NO_PASSWORD),
    ("main::plain_password_wrong", NO_PASSWORD),
    ("main::scram_password_missing", NO_PASSWORD),
    ("main::scram_password_wrong", NO_PASSWORD),
];

#[test]
#[ignore = "needs the crate's sources: cargo xtask test clients"]
fn tokio_postgres() {
    let built = build("test/");
    compare("tokio-postgres", TOKIO_POSTGRES, |way, place| {
        way.admin(ROLES);
        let rules = way.admin("SHOW hba_file");
        std::fs::write(rules, RULES).expect("root may write everywhere");
        way.admin("SELECT pg_reload_conf()");
        run_all(way, place, &built, "/", &[])
    });
}

#[test]
#[ignore = "needs the crate's sources: cargo xtask test clients"]
fn sqlx() {
    let built = build("postgres/");
    compare("sqlx", &[], |way, place| {
        // The migrations' folders are found from here.
        let tests = place.path().join("tests");
        if !tests.exists() {
            let mut copy = Command::new("cp");
            copy.arg("-r").arg(sqlx_tests()).arg(&tests);
            run_within(PATIENCE, copy, b"").succeeds();
        }
        let url = format!("DATABASE_URL={}", database(way));
        let folder = place.path().display().to_string();
        run_all(way, place, &built, &folder, &[&url])
    });
}

fn sqlx_tests() -> PathBuf {
    fetched().join("crates/sqlx-test/tests")
}

/// The database that sqlx's tests expect, and where it is.
fn database(way: &Way) -> String {
    let setup = sqlx_tests().join("postgres/setup.sql");
    let setup = std::fs::read_to_string(setup).expect("the crate has it");
    way.admin("CREATE DATABASE sqlx");
    way.admin_in("sqlx", &setup);
    format!("postgres://postgres@127.0.0.1:{}/sqlx", way.port())
}

/// What `cargo xtask test clients` has fetched.
#[track_caller]
pub fn fetched() -> PathBuf {
    let folder = std::env::var_os(FETCHED);
    folder
        .expect("cargo xtask test clients fetches what the clients need and runs this")
        .into()
}

/// The programs that the tests below one folder are, by name.
#[track_caller]
fn build(below: &str) -> Vec<(String, PathBuf)> {
    let crates = fetched().join("crates");
    // sqlx's macros ask a server what the statements mean while they are compiled.
    let server = Way::to(Box::new(Postgres::asking_for(Authentication::Trust)));
    let mut cargo = Command::new("cargo");
    cargo
        .args(["test", "--no-run", "--locked", "--offline", "--jobs=2"])
        // Both packages at once: each alone would have what both depend on built with other features.
        .args(["--workspace", "--tests"])
        .current_dir(&crates)
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_TARGET_DIR", crates.join("target"))
        .env("DATABASE_URL", database(&server))
        .env_remove("RUSTFLAGS");
    let built = run_within(PATIENCE, cargo, b"").succeeds();
    let programs = built.stderr.lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("Executable tests/")?;
        let (name, path) = rest.strip_prefix(below)?.split_once(" (")?;
        let path = crates.join(path.trim_end_matches(')'));
        Some((name.trim_end_matches(".rs").to_owned(), path))
    });
    let programs: Vec<(String, PathBuf)> = programs.collect();
    assert!(!programs.is_empty(), "{built}");
    programs
}

/// Runs each program in a folder and with variables.
fn run_all(
    way: &Way,
    place: &Place,
    programs: &[(String, PathBuf)],
    folder: &str,
    variables: &[&str],
) -> Run {
    let mut run = Run::new();
    for (name, built) in programs {
        let program = open_copy(place, built);
        let start = r#"cd "$1"; shift; exec env "$@""#;
        let mut words = vec!["sh", "-c", start, "sh", folder];
        words.extend(variables);
        words.extend([program.as_str(), "--test-threads=1", "--color=never"]);
        let ended = way.run(&words);
        run.extend(outcomes(name, &ended));
    }
    run
}

fn open_copy(place: &Place, built: &Path) -> String {
    let name = built.file_name().expect("a program has a name");
    let copy = place.path().join(name);
    if !copy.exists() {
        std::fs::copy(built, &copy).expect("the folder is ours");
    }
    copy.display().to_string()
}

/// What a test printed that failed.
fn said_by(name: &str, text: &str) -> String {
    let heading = format!("---- {name} stdout ----\n");
    let said = text.split_once(&heading).map(|(_, rest)| rest);
    let said = said.and_then(|rest| rest.split("\n----").next());
    let lines = said.unwrap_or_default().lines();
    // The first names a thread, by number.
    let lines = lines.filter(|line| !line.is_empty() && !line.contains("panicked at"));
    lines.take(6).collect::<Vec<_>>().join("\n")
}

/// `test NAME ... ok`. Those that the crate itself ignores are not there.
#[track_caller]
fn outcomes(program: &str, ended: &Ended) -> Run {
    let text = ended.text();
    let tests = text.lines().filter_map(|line| {
        let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let outcome = outcome.split(',').next().unwrap_or_default().to_owned();
        if outcome == "ignored" {
            return None;
        }
        let passed = outcome == "ok";
        let saw = match passed {
            true => outcome,
            false => said_by(name, &text),
        };
        Some((format!("{program}::{name}"), Test { passed, saw }))
    });
    let run: Run = tests.collect();
    assert!(!run.is_empty(), "{ended}");
    run
}
