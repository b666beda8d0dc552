//! The first bytes of a session: each `sslmode` of several clients, and bytes that are stuffed behind a request for
//! encryption.
//!
//! The direct run trusts the authority of the server's certificate. The agent's trusts what `sluice exec` names in
//! its environment, and the words are the same.

use std::fs;

use super::sheet::{Explained, Run, Test, compare_ways, of_lines};
use super::way::{Place, Server, Way};
use crate::harness::python::Environment;
use crate::harness::{Authority, NodeScript, Postgres, scratch};

/// What clients dial; a certificate has to be for that.
const HOSTS: [&str; 2] = ["127.0.0.1", "localhost"];

const MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

/// What the gateway cannot know.
const DRIVERS: &[Explained] = &[(
    "psycopg without SNI, localhost",
    "a client that sends no name, and did not ask the gateway's resolver for it, is known by the address it dialled",
)];

#[test]
fn psql_with_each_sslmode() {
    compare_tls("psql, sslmode", &[], |way, _| {
        let mut run = Run::new();
        for host in HOSTS {
            for mode in MODES {
                let address = format!("host={host} sslmode={mode}");
                let ended = way.run(&[
                    "psql",
                    "-XAt",
                    &address,
                    "-c",
                    "SELECT 'in'",
                    "-c",
                    "\\conninfo",
                ]);
                let text = way.without_port(&ended.text());
                // Which cipher is the two libraries' choice.
                let saw = text.split(", cipher").next().unwrap_or_default().to_owned();
                let passed = ended.status.success();
                let saw = saw + &way.without_port(&ended.stderr);
                run.insert(format!("{mode}, {host}"), Test { passed, saw });
            }
        }
        run
    });
}

#[test]
fn drivers_with_each_sslmode() {
    compare_tls("drivers, sslmode", DRIVERS, |way, place| {
        let python = Environment::Drivers.copy_into(place.path());
        let python = python.display().to_string();
        let script = place.file("tls.py", include_str!("../clients/tls.py"));
        let for_node = NodeScript::new(place.path(), "tls.js", include_str!("../clients/tls.js"));
        let port = way.port().to_string();
        let mut run = Run::new();
        for host in HOSTS {
            let mut add = |tests: Run| {
                let named = tests.into_iter();
                run.extend(named.map(|(name, test)| (format!("{name}, {host}"), test)));
            };
            add(of_lines(&way.run(&[&python, &script, host, &port])));
            // Node verifies an address only where the certificate has it as one.
            add(of_lines(&way.run(&for_node.words([host, port.as_str()]))));
        }
        for test in run.values_mut() {
            test.saw = way.without_port(&test.saw);
        }
        run
    });
}

#[test]
fn stuffed_bytes_are_refused() {
    let served = ["nothing stuffed, no encryption asked for"];
    compare_tls("stuffed bytes", &[], |way, place| {
        let run = stuffed(way, place);
        for (case, test) in &run {
            let plain = served.contains(&case.as_str()) || case.starts_with("nothing stuffed");
            let twice = case.ends_with("at once") || case == "SSLRequest twice";
            assert!(
                plain || twice || test.saw == "refused",
                "{case}: {}",
                test.saw
            );
        }
        run
    });
}

pub fn stuffed(way: &Way, place: &Place) -> Run {
    let script = place.file("stuffed.py", include_str!("../clients/stuffed.py"));
    let port = way.port().to_string();
    of_lines(&way.run(&["/usr/bin/python3", &script, "127.0.0.1", &port]))
}

/// Both ways lead to servers that take TLS and do without it.
#[track_caller]
fn compare_tls(client: &str, explained: &[Explained], run: impl Fn(&Way, &Place) -> Run) {
    let authority = Authority::new();
    let trusted = scratch::folder("trusted");
    let pem = trusted.path().join("authority.pem");
    fs::write(&pem, authority.pem()).expect("the folder is ours");
    open_to_all(trusted.path());
    let server = || Server15::new(&authority);
    let direct = || {
        let path = pem.display().to_string();
        Way::to(Box::new(server())).with_direct("PGSSLROOTCERT", &path)
    };
    let through = || Way::through(Box::new(server()));
    let ways: [Box<dyn FnOnce() -> Way>; 2] = [Box::new(direct), Box::new(through)];
    compare_ways(client, explained, ways, run);
}

/// PostgreSQL 15 with a certificate, who takes anybody with or without TLS.
pub struct Server15(Postgres);

impl Server15 {
    pub fn new(authority: &Authority) -> Server15 {
        let server = Postgres::with_tls(&authority.certificate_for(&HOSTS));
        let file = server.admin("SHOW hba_file");
        let rules = "local all all trust\nhost all all all trust\n";
        fs::write(file, rules).expect("root may write everywhere");
        server.admin("SELECT pg_reload_conf()");
        Server15(server)
    }
}

impl Server for Server15 {
    fn port(&self) -> u16 {
        self.0.port()
    }
}

fn open_to_all(folder: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
}
