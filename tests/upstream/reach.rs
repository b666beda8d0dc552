//! Addresses, time-outs, and how many sessions a target takes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::between::{Fake, NAME, fatal};
use super::{COUNT_PRODUCTS, error_at_the_start, refused};
use crate::harness::gateway::psql_words;
use crate::harness::program::{eventually, run};
use crate::harness::{Authority, Gateway, Postgres, Setup};

#[test]
fn the_next_address_is_tried_when_one_is_dead_or_breaks_tls() {
    let authority = Authority::new();
    let server = Postgres::with_tls(&authority.certificate_for(&[NAME]));
    // Nobody listens at 127.0.0.2.
    let _breaks = Fake::breaking_tls("127.0.0.3", server.port());
    let mut gateway = Setup::in_front_of(&server)
        .tls(
            r#"{ ca_file = "/etc/sluice/ca.pem", server_name = "db.internal" }"#,
            Some(authority.pem()),
        )
        .of_target(&format!(
            "dial = \"db.internal:{}\"\nallow_local = true",
            server.port()
        ))
        .hosts("127.0.0.2 db.internal\n127.0.0.3 db.internal\n127.0.0.1 db.internal\n")
        .start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    let opened = gateway.event("session.open");
    assert_eq!(
        opened.text("upstream"),
        format!("127.0.0.1:{}", server.port()),
        "{opened}"
    );
    let log = gateway.stop();
    for (address, error) in [
        ("127.0.0.2", "the target cannot be reached"),
        ("127.0.0.3", "TLS with the target failed"),
    ] {
        let tried = log
            .lines()
            .any(|line| line.contains(&format!("{address}:")) && line.contains(error));
        assert!(tried, "{address}: {error}:\n{log}");
    }
}

#[test]
fn the_next_address_is_tried_when_one_says_nothing() {
    let server = Postgres::start();
    let silent = Fake::at("127.0.0.2", server.port(), |mut gateway| {
        std::io::copy(&mut gateway, &mut std::io::sink()).map(drop)
    });
    let gateway = Setup::in_front_of(&server)
        .of_target(&format!(
            "dial = \"db.internal:{}\"\nallow_local = true\nconnect_timeout_seconds = 10",
            server.port()
        ))
        .hosts("127.0.0.2 db.internal\n127.0.0.1 db.internal\n")
        .start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    drop(silent);
}

/// It is there, and speaks for itself alone.
#[test]
fn the_next_address_is_tried_while_one_is_starting_up() {
    let server = Postgres::start();
    let _starting = Fake::saying_at(
        "127.0.0.2",
        server.port(),
        fatal("57P03", "the database system is starting up"),
    );
    let gateway = Setup::in_front_of(&server)
        .of_target(&format!(
            "dial = \"db.internal:{}\"\nallow_local = true",
            server.port()
        ))
        .hosts("127.0.0.2 db.internal\n127.0.0.1 db.internal\n")
        .start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
}

/// A refused login is the target's answer, whichever of its addresses gave it.
#[test]
fn a_refused_login_is_not_tried_elsewhere() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server)
        .stored_password("not-the-password-of-shop_app")
        .of_target(&format!(
            "dial = \"db.internal:{}\"\nallow_local = true",
            server.port()
        ))
        .hosts("127.0.0.1 db.internal\n::1 db.internal\n")
        .start();
    // With TLS, libpq would try again without.
    let address = format!("{} sslmode=disable", gateway.address("127.0.0.1"));
    let words = psql_words(&address, [COUNT_PRODUCTS]);
    let asked = run(gateway.agent_command(words));
    asked.fails().complains("FATAL");
    let refusals = server
        .log()
        .matches("password authentication failed")
        .count();
    assert_eq!(refusals, 1, "{}", server.log());
}

#[test]
fn a_target_that_says_nothing_is_given_up() {
    let server = Fake::silent();
    let setup =
        Setup::in_front_of_port(server.address.port()).of_target("connect_timeout_seconds = 1");
    let denial = refused(setup, "08006");
    assert!(
        denial.contains("the target did not let the gateway in within 1 s"),
        "{denial}"
    );
}

#[test]
fn a_target_that_is_not_there_is_named_as_such() {
    let gone = Fake::silent();
    let port = gone.address.port();
    drop(gone);
    let denial = refused(Setup::in_front_of_port(port), "08006");
    assert!(denial.contains("the target cannot be reached"), "{denial}");
    assert!(
        denial.contains("between the gateway and the target"),
        "{denial}"
    );
}

/// A session of the agent that stays open until its input ends.
struct Held {
    psql: std::process::Child,
}

impl Held {
    fn open(gateway: &Gateway) -> Held {
        let words = psql_words(&gateway.address("127.0.0.1"), []);
        let mut psql = gateway
            .agent_command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql starts");
        let input = psql.stdin.as_mut().expect("stdin is piped");
        writeln!(input, "SELECT 'open';").expect("psql reads");
        let mut line = String::new();
        BufReader::new(psql.stdout.as_mut().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("psql answers");
        assert_eq!(line, "open\n");
        Held { psql }
    }

    fn close(mut self) {
        drop(self.psql.stdin.take());
        assert!(self.psql.wait().expect("it ends").success());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

#[test]
fn one_session_more_than_the_target_takes() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server)
        .of_target("max_connections = 2")
        .start();
    let first = Held::open(&gateway);
    let second = Held::open(&gateway);
    let heard = error_at_the_start(&gateway, "shop");
    assert!(
        heard.contains("C 53300\nM sorry, too many clients already\n"),
        "{heard}"
    );
    assert!(heard.contains("max_connections"), "{heard}");
    let denial = gateway.event("deny");
    assert_eq!(denial.text("rule"), "target:full", "{denial}");
    first.close();
    gateway.wait_for(1, "session.close");
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    second.close();
}

#[test]
fn a_session_in_which_nothing_is_said_is_ended() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .of_target("idle_timeout_seconds = 4")
        .start();
    // A statement that runs longer is not idle.
    gateway
        .psql(["SELECT pg_sleep(6)", "SELECT 'still here'"])
        .succeeds()
        .prints("still here");
    gateway
        .psql(["SELECT 1", "\\! sleep 10", "SELECT 'still here'"])
        .fails()
        .complains("FATAL:  terminating connection due to idle-session timeout");
    let closed = gateway.wait_for(2, "session.close");
    assert_eq!(closed[0].text("outcome"), "closed");
    assert_eq!(closed[1].text("outcome"), "idle");
}

#[test]
fn both_sockets_are_kept_alive() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server)
        .of_target("keepalive_seconds = 77")
        .start();
    let held = Held::open(&gateway);
    for filter in [
        // The gateway's own connection to the server, and its end of the agent's.
        format!("dport = :{}", server.port()),
        format!("sport = :{}", gateway.port()),
    ] {
        let of_the_gateway = format!("pid={},", gateway.pid());
        // Right after something was sent another timer runs.
        eventually(&filter, Duration::from_secs(10), || {
            let mut ss = Command::new("ss");
            ss.args(["-t", "-n", "-o", "-p", "-H", "state", "established"])
                .arg(&filter);
            let sockets = run(ss).succeeds();
            let mut own = sockets.lines().into_iter();
            let mut own = own
                .by_ref()
                .filter(|line| line.contains(&of_the_gateway))
                .peekable();
            own.peek()?;
            own.all(|line| line.contains("timer:(keepalive,1min"))
                .then_some(())
        });
    }
    held.close();
}
