//! PostgreSQL's own suites, run directly and as an agent through the gateway: what they see is the same.
//!
//! `cargo xtask test pg-suites` fetches them, runs this and prints the tables. Without it these tests are listed as
//! ignored, and fail when they are run all the same. The reference is the direct run, not the suite's `expected`
//! files: those are of one release of the server and of psql, and the host may have another.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::program::{Ended, run, run_within};
use crate::harness::{Authentication, Gateway, Postgres, Setup, scratch};

/// Where `cargo xtask test pg-suites` has put the suites, and where the rows go.
const SUITES: &str = "SLUICE_PG_SUITES";
const COLLECTED: &str = "SLUICE_PG_SUITES_ROWS";

/// The suites are of this version: psql and the server must be, too.
const INSTALLED: &str = "/usr/lib/postgresql/15";

/// For one run of one suite.
const DEADLINE: Duration = Duration::from_secs(480);

/// How often isolation tests that differ are tried again. Their tester takes a step for blocked when nothing has
/// come for 10 ms: on a busy machine, what the server says before it blocks is then printed behind that.
const TRIED_AGAIN: usize = 3;

/// How a client reaches the server.
enum Way {
    Directly(Postgres),
    ThroughGateway {
        server: Postgres,
        gateway: Box<Gateway>,
    },
}

/// What one run of a suite left: by test, how it ended and the files that hold what was seen.
type Run = BTreeMap<String, Test>;

/// What two runs of a suite left, directly and through the gateway.
type Both = BTreeMap<String, (Option<Test>, Option<Test>)>;

struct Test {
    ended: String,
    seen: BTreeMap<String, Vec<u8>>,
}

#[test]
#[ignore = "needs PostgreSQL's sources: cargo xtask test pg-suites"]
fn regress() {
    compare("pg_regress", 0, |way, place, only| {
        let input = place.copy_of("regress");
        for library in ["refint.so", "autoinc.so"] {
            let from = Path::new(INSTALLED).join("lib").join(library);
            fs::copy(from, input.join(library)).expect("PostgreSQL's package has it");
        }
        let output = place.output();
        let program = "regress/pg_regress";
        let ended = way.run(&regress_words(program, &input, &output, way, only));
        of_results(&ended, &output.join("results"))
    });
}

#[test]
#[ignore = "needs PostgreSQL's sources: cargo xtask test pg-suites"]
fn isolation() {
    compare("pg_isolation_regress", TRIED_AGAIN, |way, place, only| {
        let input = place.copy_of("isolation");
        let output = place.output();
        let program = "isolation/pg_isolation_regress";
        let ended = way.run(&regress_words(program, &input, &output, way, only));
        of_results(&ended, &output.join("results"))
    });
}

#[test]
#[ignore = "needs PostgreSQL's sources: cargo xtask test pg-suites"]
fn pipeline() {
    /// Those whose traces do not depend on how the server's answers fall into packets.
    const TRACED: [&str; 9] = [
        "disallowed_in_pipeline",
        "multi_pipelines",
        "nosync",
        "pipeline_abort",
        "pipeline_idle",
        "prepared",
        "simple_pipeline",
        "singlerow",
        "transaction",
    ];
    compare("libpq_pipeline", 0, |way, place, _| {
        let folder = place.copy_of("modules/libpq_pipeline");
        let program = text(&folder.join("libpq_pipeline"));
        let output = place.output();
        let mut list = Command::new(&program);
        list.arg("tests");
        let names = run(list).succeeds();
        let mut run = Run::new();
        for name in names.text().split_whitespace() {
            let trace = output.join(format!("{name}.trace"));
            let mut words = vec![program.clone(), "-r".into(), "700".into()];
            if TRACED.contains(&name) {
                words.extend(["-t".into(), text(&trace)]);
            }
            words.extend([name.to_owned(), "dbname=postgres".into()]);
            let ended = way.run(&words);
            let as_recorded = folder.join("traces").join(format!("{name}.trace"));
            let mut seen = BTreeMap::from([("output".to_owned(), ended.stdout.clone())]);
            let mut good = ended.status.success();
            if TRACED.contains(&name) {
                let trace = fs::read(&trace).unwrap_or_default();
                good &= trace == fs::read(as_recorded).expect("the suite has the trace");
                seen.insert("trace".to_owned(), trace);
            }
            let ended = if good { "ok" } else { "FAILED" };
            let ended = ended.to_owned();
            run.insert(name.to_owned(), Test { ended, seen });
        }
        run
    });
}

/// Runs a suite both ways, each with a server of its own and in the same folder, so that paths are the same, and
/// fails if anything differs, also when that is tried `again`.
#[track_caller]
fn compare(suite: &str, again: usize, run: impl Fn(&Way, &Place, &[String]) -> Run) {
    let place = Place::new();
    let mut tests = both(&place, &run, &[]);
    assert!(!tests.is_empty(), "{suite} ran no test");
    for _ in 0..again {
        let differ = tests
            .iter()
            .filter(|(_, test)| !difference(test).is_empty());
        let names: Vec<String> = differ.map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            break;
        }
        println!("again: {}", names.join(", "));
        tests.extend(both(&place, &run, &names));
    }
    let mut different = Vec::new();
    let mut rows = String::new();
    for (name, test) in &tests {
        let difference = difference(test);
        let ended = |test: &Option<Test>| match test {
            Some(test) => test.ended.clone(),
            None => "missing".to_owned(),
        };
        let (one, other) = test;
        // Read by xtask/src/test/pg_suites.rs.
        let shown = difference.replace(['\t', '\n'], " ");
        rows += &format!(
            "{suite}\t{name}\t{}\t{}\t{shown}\n",
            ended(one),
            ended(other)
        );
        if !difference.is_empty() {
            different.push(format!("{name}: {difference}"));
        }
    }
    if let Some(path) = std::env::var_os(COLLECTED) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("cargo xtask test pg-suites names a file");
        file.write_all(rows.as_bytes()).expect("it is writable");
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Runs the suite, or only these of its tests, both ways.
fn both(place: &Place, run: &impl Fn(&Way, &Place, &[String]) -> Run, only: &[String]) -> Both {
    let mut tests = Both::new();
    for (name, test) in run(&Way::directly(), place, only) {
        tests.entry(name).or_default().0 = Some(test);
    }
    place.clear();
    for (name, test) in run(&Way::through_gateway(), place, only) {
        tests.entry(name).or_default().1 = Some(test);
    }
    place.clear();
    tests
}

/// Empty if there is none, or else the first line that differs.
fn difference(test: &(Option<Test>, Option<Test>)) -> String {
    let (Some(direct), Some(through)) = test else {
        return "one of the runs has no such test".to_owned();
    };
    for (file, expected) in &direct.seen {
        let Some(seen) = through.seen.get(file) else {
            return format!("{file} is missing");
        };
        if seen == expected {
            continue;
        }
        let (expected, seen) = (
            String::from_utf8_lossy(expected),
            String::from_utf8_lossy(seen),
        );
        let lines = expected.lines().chain(std::iter::repeat(""));
        let other = seen.lines().chain(std::iter::repeat("<nothing>"));
        let count = expected.lines().count().max(seen.lines().count());
        let pairs = (1..=count).zip(lines.zip(other));
        let first = pairs.into_iter().find(|(_, (one, other))| one != other);
        return match first {
            Some((number, (one, other))) => {
                format!("{file}:{number}: {one:?} is {other:?} through the gateway")
            }
            None => format!("{file} ends in another way"),
        };
    }
    match direct.ended == through.ended {
        true => String::new(),
        false => format!(
            "{} directly, {} through the gateway",
            direct.ended, through.ended
        ),
    }
}

/// How each test ended by the program's own words, and the files it wrote.
fn of_results(ended: &Ended, results: &Path) -> Run {
    let text = ended.text();
    let verdicts = text.lines().filter_map(verdict);
    let run: Run = verdicts
        .map(|(name, ended)| {
            let file = format!("{name}.out");
            let seen = fs::read(results.join(&file)).unwrap_or_default();
            let seen = BTreeMap::from([(file, seen)]);
            (
                name.to_owned(),
                Test {
                    ended: ended.to_owned(),
                    seen,
                },
            )
        })
        .collect();
    assert!(!run.is_empty(), "{ended}");
    run
}

/// `test name ... ok  12 ms`, in a group without the word `test`.
fn verdict(line: &str) -> Option<(&str, &str)> {
    let (name, ended) = line.split_once(" ... ")?;
    let name = name.trim_start_matches("test ").trim();
    let ended = ended.split_whitespace().next()?;
    (!name.contains(' ')).then_some((name, ended))
}

fn regress_words(
    program: &str,
    input: &Path,
    output: &Path,
    way: &Way,
    only: &[String],
) -> Vec<String> {
    let schedule = match program.starts_with("isolation") {
        true => "isolation_schedule",
        false => "parallel_schedule",
    };
    let mut words = vec![format!("{INSTALLED}/lib/pgxs/src/test/{program}")];
    words.extend([
        format!("--inputdir={}", input.display()),
        format!("--outputdir={}", output.display()),
        format!("--dlpath={}", input.display()),
        format!("--bindir={INSTALLED}/bin"),
        format!("--port={}", way.port()),
    ]);
    match only {
        [] => words.push(format!("--schedule={}", input.join(schedule).display())),
        only => words.extend_from_slice(only),
    }
    words.extend(
        [
            "--host=127.0.0.1",
            "--user=postgres",
            "--max-concurrent-tests=20",
        ]
        .map(str::to_owned),
    );
    words
}

impl Way {
    fn directly() -> Way {
        Way::Directly(server())
    }

    fn through_gateway() -> Way {
        let server = server();
        let setup = Setup::in_front_of(&server)
            .policy("allow-all")
            .max_sessions(300);
        let gateway = setup.with_superuser_of_any_database().start();
        let gateway = Box::new(gateway);
        Way::ThroughGateway { server, gateway }
    }

    fn port(&self) -> u16 {
        match self {
            Way::Directly(server) | Way::ThroughGateway { server, .. } => server.port(),
        }
    }

    /// Runs a program as nobody, which an agent is too, that finds the server in its environment. That has no
    /// TLS: libpq says other words of a connection's end when there is some.
    fn run(&self, words: &[String]) -> Ended {
        let port = format!("PGPORT={}", self.port());
        let mut all = vec![
            "env",
            "-i",
            "PATH=/usr/bin:/bin",
            "HOME=/nonexistent",
            "LC_ALL=C",
        ];
        all.extend(["PGHOST=127.0.0.1", &port, "PGUSER=postgres"]);
        all.push("PGSSLMODE=disable");
        all.extend(words.iter().map(String::as_str));
        let command = match self {
            Way::Directly(_) => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"])
                    .args(all)
                    .current_dir("/");
                command
            }
            Way::ThroughGateway { gateway, .. } => gateway.agent_command(all),
        };
        run_within(DEADLINE, command, b"")
    }
}

fn server() -> Postgres {
    let server = Postgres::asking_for(Authentication::Trust);
    let version = server.admin("SHOW server_version_num");
    assert!(
        version.starts_with("15"),
        "the suites are PostgreSQL 15's, the server is {version}"
    );
    server
}

/// A folder that agents and servers can reach, for the suite's files and for what its tests write.
struct Place {
    folder: tempfile::TempDir,
    suites: PathBuf,
}

impl Place {
    fn new() -> Place {
        let suites = std::env::var_os(SUITES)
            .expect("cargo xtask test pg-suites fetches PostgreSQL's suites and runs this");
        let folder = scratch::folder("suite");
        open_to_all(folder.path());
        let suites = suites.into();
        Place { folder, suites }
    }

    fn copy_of(&self, suite: &str) -> PathBuf {
        let to = self.folder.path().join("input");
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(self.suites.join(suite)).arg(&to);
        run(copy).succeeds();
        let mut open = Command::new("chmod");
        open.args(["-R", "a+rX"]).arg(&to);
        run(open).succeeds();
        to
    }

    /// Where nobody and the server may write.
    fn output(&self) -> PathBuf {
        let output = self.folder.path().join("output");
        let results = output.join("results");
        fs::create_dir_all(&results).expect("the folder is ours");
        open_to_all(&output);
        open_to_all(&results);
        output
    }

    fn clear(&self) {
        for folder in ["input", "output"] {
            fs::remove_dir_all(self.folder.path().join(folder)).expect("the folder is ours");
        }
    }
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("the folder is ours");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
