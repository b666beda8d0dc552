//! What is proven afterwards: who ran what, when, and what they saw; and that a change of it shows.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::harness::gateway::SUBJECT;
use crate::harness::postgres::binary;
use crate::harness::program::run;
use crate::harness::{Gateway, Postgres, Setup};

#[test]
fn one_session_from_open_to_close() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway
        .psql([
            "SELECT name, card_number FROM customers",
            "DROP TABLE orders",
        ])
        .fails();
    let closed = gateway.event("session.close");
    let events = gateway.events();
    let session: Vec<&str> = events
        .iter()
        .filter(|event| event.text("session") == closed.text("session"))
        .map(|event| event.name())
        .collect();
    assert_eq!(
        session,
        [
            "session.open",
            "stmt.intent",
            "stmt.result",
            "deny",
            "session.close"
        ]
    );

    let opened = gateway.event("session.open");
    let psql = fs::read(binary("psql")).expect("psql is installed");
    let nobody = nix::unistd::User::from_name("nobody")
        .ok()
        .flatten()
        .expect("every host has nobody");
    for (member, expected) in [
        ("agent", "report-bot".to_owned()),
        ("subject", SUBJECT.to_owned()),
        ("groups", r#"["reporting"]"#.to_owned()),
        ("target", "shop".to_owned()),
        ("database", "shop".to_owned()),
        ("db_user", "shop_app".to_owned()),
        ("process.comm", "psql".to_owned()),
        ("process.exe", binary("psql").display().to_string()),
        ("process.exe_sha256", hex::encode(Sha256::digest(&psql))),
        ("process.uid", nobody.uid.to_string()),
        ("original", format!("127.0.0.1:{}", server.port())),
    ] {
        assert_eq!(opened.text(member), expected, "{member} of {opened}");
    }

    let intent = gateway.event("stmt.intent");
    assert_eq!(
        intent.text("statement"),
        "SELECT name, card_number FROM customers"
    );
    assert_eq!(intent.text("decision"), "allow");
    assert_ne!(intent.text("rule"), "");
    assert!(intent.text("tables").contains("customers"), "{intent}");
    let result = gateway.event("stmt.result");
    for (member, expected) in [("rows", 5), ("masked", 5)] {
        assert_eq!(result.number(member), expected, "{member} of {result}");
    }
    assert_eq!(result.text("tag"), "SELECT 5");
    assert!(result.number("bytes") > 100, "{result}");
    for (member, expected) in [("statements", 2), ("denied", 1), ("rows", 5), ("masked", 5)] {
        assert_eq!(closed.number(member), expected, "{member} of {closed}");
    }
}

#[test]
fn the_recording_is_what_the_log_says_it_is() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT title FROM products"]).succeeds();
    let closed = gateway.event("session.close");
    let file = gateway
        .recordings()
        .join(format!("{}.slrec", closed.text("session")));
    let bytes = fs::read(&file).expect("the session was recorded");
    assert_eq!(
        closed.text("recording_sha256"),
        hex::encode(Sha256::digest(&bytes))
    );
}

#[test]
fn operators_read_it() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway
        .psql([
            "SELECT name, card_number FROM customers ORDER BY id",
            "DROP TABLE orders",
        ])
        .fails();
    let session = gateway.event("session.close").text("session");

    let tail = gateway.sluice(["tail"]).succeeds().prints("report-bot");
    tail.prints("DROP TABLE orders");
    let sessions = gateway.sluice(["sessions"]).succeeds().prints("report-bot");
    sessions.prints("shop");
    let replay = gateway
        .sluice(["replay", &session])
        .succeeds()
        .prints("SELECT name, card_number FROM customers ORDER BY id");
    let replay = replay
        .prints("Ada Lindqvist")
        .prints("1111")
        .prints("42501");
    assert!(!replay.text().contains("4111111111111111"), "{replay}");
    gateway
        .sluice(["audit", "verify"])
        .succeeds()
        .prints("audit verify: ok");

    for words in [
        vec!["--json", "sessions"],
        vec!["--json", "audit", "verify"],
        vec!["--json", "check"],
        vec!["--json", "doctor"],
    ] {
        gateway.sluice(words).succeeds().json();
    }
    for words in [vec!["--json", "tail"], vec!["--json", "replay", &session]] {
        for line in gateway.sluice(words).succeeds().lines() {
            serde_json::from_str::<serde_json::Value>(&line).expect("one object per line");
        }
    }
    gateway.sluice(["check"]).succeeds();
    gateway.sluice(["doctor"]).succeeds();
}

#[test]
fn tail_follows_what_happens() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let mut tail = gateway
        .sluice_command(["tail", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("sluice starts");
    let mut lines = BufReader::new(tail.stdout.take().expect("stdout is piped")).lines();
    let mut follows = |text: &str| {
        let mut lines = lines.by_ref().map_while(Result::ok);
        assert!(lines.any(|line| line.contains(text)), "no line with {text}");
    };
    follows("start");
    gateway.psql(["SELECT title FROM products"]).succeeds();
    follows("SELECT title FROM products");
    follows("close");
    tail.kill().expect("it runs until it is told");
    tail.wait().expect("it was just killed");
}

#[test]
fn a_change_of_the_log_is_found() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway
        .psql(["SELECT 1", "SELECT 2", "SELECT 3"])
        .succeeds();
    gateway.wait_for(1, "session.close");
    gateway.stop();
    let path = gateway.log_file();
    let honest = fs::read_to_string(&path).expect("there is a log");
    let lines: Vec<&str> = honest.lines().collect();
    let without = |gone: usize| -> String {
        let kept = lines.iter().enumerate().filter(|(at, _)| *at != gone);
        kept.map(|(_, line)| format!("{line}\n")).collect()
    };
    let swapped = {
        let mut lines = lines.clone();
        lines.swap(2, 3);
        lines.join("\n") + "\n"
    };
    let edits = [
        ("edited", honest.replace("SELECT 2", "SELECT 9")),
        ("a line taken out", without(3)),
        ("two lines swapped", swapped),
        (
            "a line doubled",
            honest.replacen(lines[2], &format!("{0}\n{0}", lines[2]), 1),
        ),
        ("the first line taken out", without(0)),
    ];
    for (name, edit) in edits {
        assert_ne!(edit, honest, "{name}");
        fs::write(&path, edit).expect("root may write everywhere");
        let found = gateway.sluice(["audit", "verify"]);
        assert!(!found.status.success(), "{name} was not found: {found}");
        assert!(
            (found.text() + &found.stderr).contains("line"),
            "{name}: {found}"
        );
    }
    fs::write(&path, &honest).expect("root may write everywhere");
    gateway.sluice(["audit", "verify"]).succeeds();
}

#[test]
fn a_change_of_a_recording_is_found() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT title FROM products"]).succeeds();
    let session = gateway.event("session.close").text("session");
    let path = gateway.recordings().join(format!("{session}.slrec"));
    let honest = fs::read(&path).expect("the session was recorded");
    let mut edited = honest.clone();
    let middle = edited.len() / 2;
    edited[middle] ^= 1;
    fs::write(&path, edited).expect("root may write everywhere");
    gateway.sluice(["audit", "verify"]).fails();
    fs::remove_file(&path).expect("root may");
    gateway.sluice(["audit", "verify"]).fails();
    fs::write(&path, honest).expect("root may write everywhere");
    gateway.sluice(["audit", "verify"]).succeeds();
}

#[test]
fn what_cannot_be_written_down_does_not_happen() {
    let server = Postgres::start();
    let mut gateway = Setup::in_front_of(&server)
        .policy("allow-all")
        .storage_of("6m")
        .start();
    gateway
        .psql(["INSERT INTO products VALUES (5, 'while there is room', 1, 1)"])
        .succeeds();
    gateway.wait_for(1, "session.close");
    gateway.fill_storage();
    gateway
        .psql(["INSERT INTO products VALUES (6, 'when there is none', 1, 1)"])
        .fails();
    assert_eq!(server.admin("SELECT max(id) FROM products"), "5");

    gateway.kill();
    gateway.empty_storage();
    gateway.start();
    gateway
        .psql(["INSERT INTO products VALUES (7, 'when there is room again', 1, 1)"])
        .succeeds();
}

#[test]
fn agents_run_as_nobody_unless_asked() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway.as_agent(["id", "-un"]).succeeds().prints("nobody");
    let mut as_root = gateway.sluice_command(["exec", "--agent", "report-bot", "--user", "root"]);
    as_root.args(["--", "id", "-un"]);
    crate::harness::program::run(as_root)
        .succeeds()
        .prints("root");
    let mut unknown = Command::new(env!("CARGO_BIN_EXE_sluice"));
    unknown.args(["exec", "--agent", "nobody-knows-it", "--", "true"]);
    crate::harness::program::run(unknown).fails();
}

/// The caller is root, and its environment its own affair.
#[test]
fn agents_get_the_environment_they_are_given() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let mut command = gateway.sluice_command(["exec", "--agent", "report-bot"]);
    command
        .args(["--env", "GIVEN", "--env", "SET=here", "--", "env"])
        .current_dir("/")
        .env("ROOTS_SECRET", "needle")
        .env("GIVEN", "passed")
        .env("LC_ALL", "C.UTF-8");
    let seen = run(command).succeeds();
    assert!(!seen.text().contains("needle"), "{seen}");
    seen.prints("GIVEN=passed")
        .prints("SET=here")
        .prints("LC_ALL=C.UTF-8")
        .prints("USER=nobody");
}
