//! SIGHUP: another process takes over. No connect is refused or lost, no session ends, nothing is missing in
//! the evidence, and what does not come up leaves everything as it was.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::harness::gateway::{has_ended, psql_words};
use crate::harness::program::eventually;
use crate::harness::{Gateway, Postgres, Script, Setup};

const PATIENCE: Duration = Duration::from_secs(30);

/// An open psql of the agent.
struct Session {
    psql: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    fn open(gateway: &Gateway) -> Session {
        let mut psql = gateway
            .agent_command(psql_words(&gateway.address("127.0.0.1"), []))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql starts");
        let mut session = Session {
            stdin: psql.stdin.take().expect("stdin is piped"),
            stdout: BufReader::new(psql.stdout.take().expect("stdout is piped")),
            psql,
        };
        session.says("SELECT 'hello'", "hello");
        session
    }

    fn send(&mut self, statement: &str) {
        writeln!(self.stdin, "{statement};").expect("psql reads");
    }

    #[track_caller]
    fn says(&mut self, statement: &str, expected: &str) {
        self.send(statement);
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("psql writes");
        assert_eq!(line.trim_end(), expected, "{statement}");
    }

    #[track_caller]
    fn ends_well(mut self) {
        drop(self.stdin);
        let mut stderr = String::new();
        let mut pipe = self.psql.stderr.take().expect("stderr is piped");
        pipe.read_to_string(&mut stderr).expect("psql writes text");
        let status = self.psql.wait().expect("psql ends");
        assert!(status.success() && stderr.is_empty(), "{status}: {stderr}");
    }
}

#[track_caller]
fn ends(pid: u32) {
    eventually(&format!("the end of {pid}"), PATIENCE, || {
        has_ended(pid).then_some(())
    });
}

#[test]
fn no_connect_is_lost_while_gateways_take_over() {
    const HANDOVERS: usize = 4;
    let server = Postgres::start();
    let mut gateway = Setup::in_front_of(&server).max_sessions(300).start();
    let script = Script::plain(&gateway, "connects.py", include_str!("clients/connects.py"));
    let address = format!("127.0.0.1,::1:{}", server.port());
    let mut clients = gateway
        .agent_command(script.words(["16", "16", &address]))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the clients start");
    for _ in 0..HANDOVERS {
        thread::sleep(Duration::from_secs(2));
        gateway.hand_over();
    }
    let mut said = String::new();
    let mut stdout = clients.stdout.take().expect("stdout is piped");
    stdout.read_to_string(&mut said).expect("they write text");
    clients.wait().expect("they end");
    println!("{said}");
    assert!(!said.contains("failed"), "{said}");
    let word = |line: &str, at| line.split_whitespace().nth(at).unwrap().to_owned();
    let lines: Vec<&str> = said.lines().collect();
    let sessions: usize = word(lines[0], 1).parse().unwrap();
    let questions: usize = word(lines[1], 1).parse().unwrap();
    let slowest: u64 = word(lines[2], 2).parse().unwrap();
    assert!(sessions > 50 && questions > 200, "{said}");
    // The longest that a connect waited, the swaps included.
    assert!(slowest < 3_000, "{said}");

    gateway.wait_for(HANDOVERS, "gateway.stop");
    let events = gateway.events();
    assert_eq!(events.count("deny"), 0, "{events}");
    assert_eq!(events.count("gateway.crashed"), 0);
    assert_eq!(events.count("gateway.start"), HANDOVERS + 1);
    assert_eq!(events.count("session.open"), sessions);
    let closed = |event: &&_| crate::harness::events::Event::text(event, "outcome") == "closed";
    assert_eq!(
        events.named("session.close").filter(closed).count(),
        sessions
    );
    assert_eq!(events.count("stmt.result"), sessions);
    assert_eq!(events.count("connection.silent"), questions);
}

#[test]
fn a_transaction_goes_on_in_the_gateway_that_drains() {
    let server = Postgres::start();
    let mut gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let mut session = Session::open(&gateway);
    session.says("BEGIN", "BEGIN");
    session.says(
        "INSERT INTO products VALUES (7, 'kept', 1, 1)",
        "INSERT 0 1",
    );
    let first = gateway.hand_over();
    gateway.psql(["SELECT 'new'"]).succeeds().prints("new");
    let second = gateway.hand_over();
    thread::sleep(Duration::from_millis(500));
    assert!(!has_ended(first), "its session is open");
    assert!(!has_ended(second), "the way to the first leads through it");
    session.says("COMMIT", "COMMIT");
    session.ends_well();
    assert_eq!(
        server.admin("SELECT title FROM products WHERE id = 7"),
        "kept"
    );
    ends(first);
    ends(second);
    let starts: Vec<String> = gateway
        .events()
        .named("gateway.start")
        .map(|start| start.text("predecessor"))
        .collect();
    assert_eq!(
        starts,
        [String::new(), first.to_string(), second.to_string()]
    );
    // The one that is left has the log for itself, and a clean end.
    gateway.psql(["SELECT 1"]).succeeds();
    gateway.stop();
    gateway.start();
    assert_eq!(gateway.events().count("gateway.crashed"), 0);
}

#[test]
fn a_statement_of_a_gateway_that_drains_can_be_cancelled() {
    for handovers in 1..=2 {
        let server = Postgres::start();
        let mut gateway = Setup::in_front_of(&server).policy("allow-all").start();
        let mut words: Vec<String> = ["timeout", "--foreground", "-s", "INT", "8"]
            .map(str::to_owned)
            .into();
        words.extend(psql_words(
            &gateway.address("127.0.0.1"),
            ["SELECT pg_sleep(60)"],
        ));
        let psql = gateway
            .agent_command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql starts");
        gateway.event("stmt.intent");
        let first = gateway.pid();
        for _ in 0..handovers {
            gateway.hand_over();
        }
        let ended = psql.wait_with_output().expect("psql ends");
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(
            stderr.contains("canceling statement due to user request"),
            "{stderr}"
        );
        assert_eq!(gateway.event("stmt.result").text("sqlstate"), "57014");
        assert_eq!(gateway.events().count("cancel.request"), 1);
        ends(first);
    }
}

#[test]
fn a_reload_reads_policies_and_configuration() {
    let insert = "INSERT INTO products VALUES (8, 'reloaded', 1, 1)";
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.psql([insert]).fails().complains("default-deny");
    let policies = crate::harness::repository().join("policies/allow-all.cedar");
    let policies = std::fs::read_to_string(policies).expect("it ships with the repository");
    gateway.edit("etc/sluice/policies/read-only.cedar", |_| policies);
    gateway.psql([insert]).fails();
    gateway.hand_over();
    gateway.psql([insert]).succeeds();
    let starts: Vec<String> = gateway
        .events()
        .named("gateway.start")
        .map(|start| start.text("policy_sha256"))
        .collect();
    assert_ne!(starts[0], starts[1]);
}

#[test]
fn what_does_not_come_up_changes_nothing() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let mut session = Session::open(&gateway);
    let serves = gateway.pid();
    let broken: [(&str, &str, &str); 3] = [
        ("etc/sluice/sluice.toml", "\nnonsense = 1\n", "nonsense"),
        (
            "etc/sluice/policies/read-only.cedar",
            "\npermit(",
            "the policies are refused",
        ),
        (
            "etc/sluice/sluice.toml",
            "\n[broker]\nsocket = \"/nowhere\"\n[storage]\nlog = \"/elsewhere\"\n",
            "/elsewhere",
        ),
    ];
    for (failures, (path, addition, reason)) in (1..).zip(broken) {
        let mut good = String::new();
        gateway.edit(path, |text| {
            good.clone_from(&text);
            text + addition
        });
        gateway.signal(Signal::SIGHUP);
        let failed = gateway.wait_for(failures, "gateway.handover_failed");
        let last = failed.last().expect("there is one");
        assert!(last.text("reason").contains(reason), "{last}");
        gateway.edit(path, |_| good);
        assert_eq!(gateway.pid(), serves);
        gateway.is_alive();
        gateway.psql(["SELECT 1"]).succeeds();
        session.says("SELECT 'still here'", "still here");
    }
    gateway.hand_over();
    session.ends_well();
    ends(serves);
    gateway.psql(["SELECT 1"]).succeeds();
}

#[test]
fn a_successor_that_hangs_or_dies_is_given_up() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    // Reading this never ends.
    let trap = gateway.path("etc/sluice/policies/trap.cedar");
    mkfifo(&trap, Mode::from_bits_truncate(0o644)).expect("the folder is ours");
    gateway.signal(Signal::SIGHUP);
    let child = eventually("a successor", PATIENCE, || child_of(gateway.pid()));
    gateway.psql(["SELECT 'meanwhile'"]).succeeds();
    thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL).expect("it hangs");
    let failed = gateway.event("gateway.handover_failed");
    assert!(failed.text("reason").contains("ended"), "{failed}");

    gateway.signal(Signal::SIGHUP);
    let since = Instant::now();
    let failed = eventually("a second failure", Duration::from_secs(45), || {
        gateway
            .events()
            .named("gateway.handover_failed")
            .nth(1)
            .cloned()
    });
    assert!(failed.text("reason").contains("within 30 s"), "{failed}");
    assert!(since.elapsed() >= Duration::from_secs(25));
    eventually("its end", PATIENCE, || {
        child_of(gateway.pid()).is_none().then_some(())
    });
    gateway.psql(["SELECT 'afterwards'"]).succeeds();
    std::fs::remove_file(trap).expect("the folder is ours");
    gateway.hand_over();
    gateway.psql(["SELECT 'in the end'"]).succeeds();
}

fn child_of(parent: u32) -> Option<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let by_main = std::fs::read_to_string(path).unwrap_or_default();
    let mut all = by_main;
    for task in std::fs::read_dir(format!("/proc/{parent}/task"))
        .ok()?
        .flatten()
    {
        all += &std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    }
    all.split_whitespace().next()?.parse().ok()
}

#[test]
fn sessions_of_a_drain_that_was_killed_are_closed_by_the_successor() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let mut session = Session::open(&gateway);
    let opened = gateway.event("session.open").text("session");
    let first = gateway.hand_over();
    session.says("SELECT 'drains'", "drains");
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL).expect("it drains");
    let closed = gateway.event("session.close");
    assert_eq!(closed.text("session"), opened);
    assert_eq!(closed.text("outcome"), "crashed", "{closed}");
    assert_eq!(gateway.event("gateway.crashed").number("last_start_seq"), 1);
    gateway.psql(["SELECT 'untouched'"]).succeeds();
    drop(session.stdin);
    session.psql.wait().expect("psql ends without its server");
    gateway.sluice(["audit", "verify"]).succeeds().prints("ok");
}

#[test]
fn a_gateway_starts_beside_one_that_drains() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let mut session = Session::open(&gateway);
    gateway.hand_over();
    gateway.kill_successor();
    gateway.psql(["SELECT 1"]).fails().complains("refused");
    session.says("SELECT 'drains on'", "drains on");
    gateway.start_beside();
    gateway
        .psql(["SELECT 'served'"])
        .succeeds()
        .prints("served");
    session.says("SELECT 'to its end'", "to its end");
    session.ends_well();
    // The successor's own end is written when nobody else may still write it.
    gateway.event("gateway.crashed");
    assert_eq!(gateway.events().count("gateway.crashed"), 1);
    gateway.sluice(["audit", "verify"]).succeeds().prints("ok");
}

#[test]
fn another_network_namespace_goes_to_the_successor_too() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let psql = format!(
        "psql -X -A -t -d '{}' -c 'SELECT 1'",
        gateway.address("127.0.0.1")
    );
    // Refused until the gateway listens there, which it does when it hears of the first attempt.
    let script = format!("until {psql} 2>/dev/null; do sleep 0.2; done; read go; exec {psql}");
    let mut agent = gateway
        .sluice_command(["exec", "--isolate", "--agent", "report-bot", "--"])
        .args(["sh", "-c", &script])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent starts");
    gateway.wait_for(1, "session.close");
    assert_eq!(
        gateway.event("netns.registered").text("agent"),
        "report-bot"
    );
    let first = gateway.hand_over();
    ends(first);
    let mut stdin = agent.stdin.take().expect("stdin is piped");
    writeln!(stdin).expect("the agent reads");
    let ended = agent.wait_with_output().expect("the agent ends");
    let (said, complained) = (
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr),
    );
    assert_eq!(said, "1\n1\n", "{complained}");
    assert_eq!(gateway.events().count("netns.registered"), 1);
}
