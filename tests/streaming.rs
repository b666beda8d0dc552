//! Results and values of any size, slow readers on either side, and the ways in which a connection ends.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::events::Event;
use crate::harness::postgres::{DATABASE, USER};
use crate::harness::program::{Ended, eventually, run_within};
use crate::harness::{Authentication, Gateway, Postgres, Script, Setup};

/// Where `cargo xtask test big` finds what was measured.
const COLLECTED: &str = "SLUICE_BIG_ROWS";

const PATIENCE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(500);

/// What a gateway's memory may grow by, whatever passes through it.
const GROWTH: u64 = 16 << 10;

const OF_THE_AGENT: &str = "FROM pg_stat_activity WHERE usename = 'shop_app'";

/// A server that asks for no password, so that the same bytes can be sent to it directly, and a gateway that
/// allows everything in front of it.
struct Both {
    // Dropped first.
    gateway: Gateway,
    server: Postgres,
    script: Script,
}

impl Both {
    fn start() -> Both {
        Both::with(|setup| setup)
    }

    fn with(more: impl FnOnce(Setup) -> Setup) -> Both {
        let server = Postgres::asking_for(Authentication::Trust);
        let setup = more(Setup::in_front_of(&server).policy("allow-all"));
        let gateway = setup.start();
        let text = include_str!("clients/streaming.py");
        let script = Script::plain(&gateway, "streaming.py", text);
        Both {
            gateway,
            server,
            script,
        }
    }

    fn words(&self, what: &[&str]) -> Vec<String> {
        let port = self.server.port().to_string();
        let place = ["127.0.0.1", &port, USER, DATABASE];
        self.script
            .words(place.into_iter().chain(what.iter().copied()))
    }

    #[track_caller]
    fn through(&self, what: &[&str]) -> Ended {
        let command = self.gateway.agent_command(self.words(what));
        run_within(DEADLINE, command, b"").succeeds()
    }

    #[track_caller]
    fn directly(&self, what: &[&str]) -> Ended {
        let words = self.words(what);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        run_within(DEADLINE, command, b"").succeeds()
    }

    /// What the client prints must be the same in both ways.
    #[track_caller]
    fn the_same(&self, what: &[&str]) -> String {
        let direct = self.directly(what);
        let through = self.through(what);
        assert_eq!(direct.text(), through.text(), "{through}");
        through.text()
    }

    fn begin(&self, what: &[&str]) -> Running {
        Running::start(self.gateway.agent_command(self.words(what)))
    }

    fn begin_directly(&self, what: &[&str]) -> Running {
        let words = self.words(what);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        Running::start(command)
    }

    /// Whether the server has a session that does such a thing.
    fn has_session(&self, that: &str) -> bool {
        let count = format!("SELECT count(*) {OF_THE_AGENT} AND {that}");
        self.server.admin(&count) != "0"
    }

    /// Ends the gateway, and removes the evidence of what would take long to look through.
    fn forget(mut self) {
        self.gateway.discard_evidence();
    }
}

/// A client that the test talks to.
struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the client starts");
        Running {
            stdin: child.stdin.take().expect("stdin is piped"),
            stdout: BufReader::new(child.stdout.take().expect("stdout is piped")),
            child,
        }
    }

    #[track_caller]
    fn says(&mut self, expected: &str) {
        assert_eq!(self.line(), expected);
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it is piped");
        line.trim_end().to_owned()
    }

    fn go_on(&mut self) {
        self.stdin.write_all(b"\n").expect("the client reads");
    }

    /// What else it says, to its end.
    fn rest(mut self) -> Vec<String> {
        let lines = std::iter::from_fn(|| Some(self.line()).filter(|line| !line.is_empty()));
        let lines = lines.collect();
        let status = self.child.wait().expect("it can be waited for");
        assert!(status.success(), "{lines:?}");
        lines
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of a process, in kB.
fn memory(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|it| it.strip_prefix(line));
    let words = line.and_then(|it| it.split_whitespace().nth(1));
    words
        .and_then(|it| it.parse().ok())
        .expect("the kernel tells")
}

/// The gateway's resident memory, and from now on its peak.
struct Memory {
    pid: u32,
    before: u64,
    began: Instant,
}

impl Memory {
    fn of(gateway: &Gateway) -> Memory {
        let pid = gateway.pid();
        // The peak so far is of the start: forget it.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("root may");
        let before = memory(pid, "VmRSS");
        let began = Instant::now();
        Memory { pid, before, began }
    }

    /// How much the peak is above the beginning, in kB.
    fn growth(&self) -> u64 {
        memory(self.pid, "VmHWM").saturating_sub(self.before)
    }

    #[track_caller]
    fn has_not_grown(&self, what: &str) {
        self.has_grown_less_than(GROWTH, what);
    }

    #[track_caller]
    fn has_grown_less_than(&self, limit: u64, what: &str) {
        let growth = self.growth();
        let took = self.began.elapsed().as_secs();
        // Read by xtask/src/test/big.rs.
        let row = format!("{what}\t{took}\t{}\t{growth}\t{limit}\n", self.before);
        if let Some(path) = std::env::var_os(COLLECTED) {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .expect("cargo xtask test big names a file");
            file.write_all(row.as_bytes()).expect("it is writable");
        }
        assert!(growth < limit, "{growth} kB more than {} kB", self.before);
    }
}

/// A session has been there, so that what the first one needs is not counted.
fn warm(both: &Both) -> Memory {
    both.through(&["rows", "10"]);
    Memory::of(&both.gateway)
}

fn large_result(rows: &str) {
    let both = Both::start();
    let memory = warm(&both);
    let seen = both.the_same(&["rows", rows]);
    memory.has_not_grown(&format!("a result of {rows} rows"));
    assert!(seen.starts_with(&format!("SELECT {rows} ")), "{seen}");
    let result = both.gateway.wait_for(2, "stmt.result").remove(1);
    assert_eq!(result.number("rows").to_string(), rows, "{result}");
    assert_eq!(result.text("outcome"), "ok", "{result}");
    both.forget();
}

#[test]
fn a_large_result_passes_in_bounded_memory() {
    large_result("1000000");
}

#[test]
#[ignore = "takes minutes and gigabytes: cargo xtask test big"]
fn ten_million_rows_pass_in_bounded_memory() {
    large_result("10000000");
}

fn stalled_client(rows: &str, seconds: &str) {
    let both = Both::start();
    let memory = warm(&both);
    let mut stalled = both.begin(&["stall", rows, seconds]);
    stalled.says("stalls");
    server_waits_for_its_client(&both);
    both.through(&["rows", "1000"]);
    let lines = stalled.rest();
    assert!(
        lines[0].starts_with(&format!("SELECT {rows} ")),
        "{lines:?}"
    );
    memory.has_not_grown(&format!(
        "a client that stops reading for {seconds} s within {rows} rows"
    ));
    both.forget();
}

fn server_waits_for_its_client(both: &Both) {
    eventually("the server waits", PATIENCE, || {
        both.has_session("wait_event = 'ClientWrite'").then_some(())
    });
}

#[test]
fn a_client_that_stops_reading_holds_up_the_server_and_nobody_else() {
    stalled_client("1000000", "5");
}

#[test]
#[ignore = "takes minutes and gigabytes: cargo xtask test big"]
fn a_client_that_stops_reading_for_more_than_a_minute() {
    stalled_client("10000000", "70");
}

#[test]
fn single_values_of_200_mb_pass_out() {
    let both = Both::start();
    let memory = warm(&both);
    let seen = both.the_same(&["value_out", "200000000"]);
    assert!(seen.contains("row 200000006"), "{seen}");
    memory.has_not_grown("values of 200 MB: rows of both protocols, COPY TO");
    both.forget();
}

/// A Bind is held whole, COPY data is not, and nothing of either stays.
#[test]
fn single_values_of_200_mb_pass_in() {
    let both = Both::start();
    let memory = warm(&both);
    let seen = both.the_same(&["value_in", "200000000"]);
    assert_eq!(seen.matches("True").count(), 2, "{seen}");
    // The Bind, as it is.
    let limit = 200_000 + GROWTH;
    memory.has_grown_less_than(limit, "values of 200 MB: Bind, COPY FROM");
    let after = crate::streaming::memory(memory.pid, "VmRSS");
    assert!(after < memory.before + GROWTH, "{after} kB are kept");
    both.forget();
}

#[test]
fn what_passes_in_pieces_is_on_record() {
    let both = Both::with(Setup::with_superuser_of_any_database);
    both.the_same(&["value_in", "1000000"]);
    both.the_same(&["value_out", "1000000"]);
    both.gateway.wait_for(2, "session.close");
    let mut recorded = [0; 256];
    for entry in fs::read_dir(both.gateway.recordings()).expect("there are some") {
        let file = fs::read(entry.expect("it is readable").path());
        for byte in file.expect("it is readable") {
            recorded[usize::from(byte)] += 1;
        }
    }
    // The Bind and the COPY; a row of each protocol, and the other COPY.
    for (byte, least) in [(b'v', 2), (b'x', 1), (b'y', 1), (b'z', 1)] {
        let count = recorded[usize::from(byte)];
        assert!(count >= least * 1_000_000, "{count} bytes {byte}");
    }
}

#[test]
fn messages_over_the_limit_are_refused_by_name() {
    let server = Postgres::asking_for(Authentication::Trust);
    let mut gateway = Setup::in_front_of(&server).policy("allow-all").install();
    gateway.edit("etc/sluice/sluice.toml", |text| {
        text.replace(
            "[targets.shop]\n",
            "[targets.shop]\nmax_message_bytes = 1000000\n",
        )
    });
    gateway.sluice(["guard", "load"]).succeeds();
    gateway.start();
    let text = include_str!("clients/streaming.py");
    let script = Script::plain(&gateway, "streaming.py", text);
    let both = Both {
        gateway,
        server,
        script,
    };
    let refusal = "error FATAL 54000 a message is longer than the 1000000 bytes that target \"shop\" allows\nclosed\n";
    for (count, kind) in ["query", "parse", "bind", "copy", "row"].iter().enumerate() {
        let seen = both.through(&["too_long", kind, "1000000"]);
        assert!(seen.text().ends_with(refusal), "{kind}: {seen}");
        let denied = both.gateway.wait_for(count + 1, "deny").remove(count);
        assert_eq!(denied.text("rule"), "protocol:message-too-long", "{denied}");
        let hint = denied.text("hint");
        assert!(hint.contains("targets.shop.max_message_bytes"), "{denied}");
    }
    for kind in ["bind", "copy", "row"] {
        both.the_same(&["too_long", kind, "999900"]);
    }
    // The server's own limit: it closes without a word.
    let seen = both.directly(&["too_long", "sync", "10000"]).text();
    assert!(["closed\n", "reset\n"].contains(&&seen[..]), "{seen}");
    let seen = both.through(&["too_long", "sync", "10000"]);
    assert!(seen.text().starts_with("error FATAL 08P01"), "{seen}");
}

#[test]
fn a_text_that_is_too_long_to_be_analysed_is_an_ordinary_denial() {
    let both = Both::with(|setup| setup.policy("read-only"));
    for (kind, length) in [
        ("query", "1000000"),
        ("parse", "1000000"),
        ("query", "200000000"),
    ] {
        let seen = both.through(&["too_long", kind, length]);
        let text = seen.text();
        let mut lines = text.lines();
        let denial = lines.next().unwrap_or_default();
        assert!(denial.starts_with("error ERROR 42501"), "{seen}");
        assert!(
            text.ends_with("Z I\nT\nrow 10\nC SELECT 1\nZ I\nclosed\n"),
            "{seen}"
        );
    }
    let denied = both.gateway.wait_for(3, "deny");
    assert_eq!(denied[0].text("rule"), "sql:unknown", "{}", denied[0]);
    assert!(
        fs::metadata(both.gateway.log_file())
            .expect("it is there")
            .len()
            < 1 << 20
    );
}

fn pipelining_client(queries: &str) {
    let both = Both::start();
    let memory = warm(&both);
    let seen = both.the_same(&["pipeline", queries]);
    assert!(seen.contains(&format!("{queries} answers")), "{seen}");
    memory.has_not_grown(&format!(
        "{queries} queries sent before the first answer is read"
    ));
    both.forget();
}

#[test]
fn a_client_that_pipelines_without_reading_gets_every_answer() {
    pipelining_client("20000");
}

#[test]
#[ignore = "takes minutes and gigabytes: cargo xtask test big"]
fn a_hundred_thousand_pipelined_queries_get_their_answers() {
    pipelining_client("100000");
}

fn slow_server(size: &str) {
    let both = Both::start();
    both.server.admin(&format!(
        "CREATE UNLOGGED TABLE numbers (v text); ALTER TABLE numbers OWNER TO {USER}"
    ));
    let memory = warm(&both);
    let hold = "BEGIN; LOCK TABLE numbers IN SHARE MODE; SELECT pg_sleep(8)";
    let server = &both.server;
    let lines = std::thread::scope(|scope| {
        let locked = scope.spawn(|| server.admin(hold));
        eventually("the lock", PATIENCE, || {
            let held = "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND granted AND relation = 'numbers'::regclass";
            (server.admin(held) == "1").then_some(())
        });
        let client = both.begin(&["copy_in", size]);
        let lines = client.rest();
        locked.join().expect("the lock is held").clear();
        lines
    });
    assert_eq!(lines.last().map(String::as_str), Some("Z I"), "{lines:?}");
    memory.has_not_grown(&format!("COPY FROM of {size} bytes into a locked table"));
    both.forget();
}

#[test]
fn copy_into_a_locked_table_holds_up_the_client() {
    slow_server("100000000");
}

#[test]
#[ignore = "takes minutes and gigabytes: cargo xtask test big"]
fn copy_of_a_gigabyte_into_a_locked_table() {
    slow_server("1000000000");
}

#[test]
fn a_client_that_has_closed_its_half_gets_everything() {
    let both = Both::start();
    let seen = both.the_same(&["half_close", "SELECT 1", "SELECT 2"]);
    assert!(seen.ends_with("row 7\nC SELECT 1\nZ I\nclosed\n"), "{seen}");
    // Longer than the time that a target gets to close.
    let seen = both.the_same(&["half_close", "SELECT pg_sleep(7), 1", "SELECT 2"]);
    assert_eq!(seen.matches("C SELECT 1").count(), 2, "{seen}");
    both.the_same(&["half_close", "BEGIN", "SELECT 1/0"]);
    both.the_same(&["half_close", "COPY customers FROM STDIN"]);
    both.the_same(&["half_close_and_stall", "1000000", "7"]);
    both.the_same(&["goodbye", "SELECT pg_sleep(6), 1", "SELECT 2"]);
    let closes = both.gateway.wait_for(6, "session.close");
    let ended = |close: &Event| (close.text("outcome"), close.text("reason"));
    for (number, close) in closes.iter().enumerate() {
        let expected = match number {
            // "unexpected EOF on client connection with an open transaction"
            3 => ("error", "the target ended the session: FATAL 08P01"),
            _ => ("closed", ""),
        };
        let expected = (expected.0.to_owned(), expected.1.to_owned());
        assert_eq!(ended(close), expected, "{close}");
    }
    assert!(!both.has_session("state = 'active'"));
    both.forget();
}

#[test]
fn a_reset_reaches_the_server() {
    let both = Both::start();
    // The server notices when it writes.
    let text = "SELECT i, pg_sleep(0.05), repeat('x', 10000) FROM generate_series(1, 100000) AS i";
    let mut client = both.begin(&["reset", text]);
    client.says("runs");
    let runs = || both.has_session("state = 'active'");
    eventually("it runs", PATIENCE, || runs().then_some(()));
    client.go_on();
    eventually("the server has noticed", PATIENCE, || {
        (!runs()).then_some(())
    });
    client.rest();
    let result = both.gateway.event("stmt.result");
    assert_eq!(result.text("outcome"), "aborted", "{result}");
    let close = both.gateway.event("session.close");
    assert_eq!(close.text("outcome"), "closed", "{close}");
    assert!(close.text("reason").contains("agent"), "{close}");
}

/// Two clients do the same, one directly and one through the gateway, and then something ends their
/// sessions: what each sees, and the session's leaf.
struct Ending {
    directly: Vec<String>,
    through: Vec<String>,
    leaf: Event,
}

#[track_caller]
fn ends(both: &Both, what: &[&str], how: impl FnOnce(&Both)) -> Ending {
    let before = both.gateway.events().count("session.close");
    let mut clients = [both.begin_directly(what), both.begin(what)];
    for client in &mut clients {
        client.line();
    }
    // Until they do what they were asked.
    std::thread::sleep(Duration::from_millis(500));
    how(both);
    let [directly, through] = clients.map(Running::rest);
    let leaf = both
        .gateway
        .wait_for(before + 1, "session.close")
        .remove(before);
    Ending {
        directly,
        through,
        leaf,
    }
}

impl Ending {
    #[track_caller]
    fn is_passed_on(&self, expected: &str, outcome: &str, reason: &str) {
        assert_eq!(self.directly, self.through);
        assert_eq!(self.through.join("; "), expected);
        assert_eq!(self.leaf.text("outcome"), outcome, "{}", self.leaf);
        assert_eq!(self.leaf.text("reason"), reason, "{}", self.leaf);
    }
}

fn terminate(both: &Both) {
    both.server
        .admin(&format!("SELECT pg_terminate_backend(pid) {OF_THE_AGENT}"));
}

/// Its kernel closes the connections, or resets those with something unread.
fn kill_backends(both: &Both) {
    let pids = both.server.admin(&format!("SELECT pid {OF_THE_AGENT}"));
    for pid in pids.lines() {
        let pid = Pid::from_raw(pid.parse().expect("a number"));
        let _ = kill(pid, Signal::SIGKILL);
    }
}

fn postmaster(both: &Both) -> Pid {
    let folder = both.server.admin("SHOW data_directory");
    let file = fs::read_to_string(format!("{folder}/postmaster.pid")).expect("it runs");
    let pid = file.lines().next().and_then(|line| line.parse().ok());
    Pid::from_raw(pid.expect("the first line is its number"))
}

#[test]
fn what_the_server_says_at_the_end_is_passed_on() {
    let both = Both::start();
    let terminated =
        "error FATAL 57P01 terminating connection due to administrator command; closed";
    let by_57p01 = "the target ended the session: FATAL 57P01";
    let seen = ends(&both, &["idle"], terminate);
    seen.is_passed_on(terminated, "error", by_57p01);
    let seen = ends(&both, &["running", "SELECT pg_sleep(60)"], terminate);
    seen.is_passed_on(&format!("T; {terminated}"), "error", by_57p01);
    let result = both.gateway.event("stmt.result");
    assert_eq!(result.text("sqlstate"), "57P01", "{result}");
    let seen = ends(
        &both,
        &["running", "SET idle_session_timeout = 3000"],
        |_| {},
    );
    seen.is_passed_on(
        "C SET; Z I; error FATAL 57P05 terminating connection due to idle-session timeout; closed",
        "error",
        "the target ended the session: FATAL 57P05",
    );
    let seen = ends(
        &both,
        &[
            "running",
            "SET idle_in_transaction_session_timeout = 3000; BEGIN",
        ],
        |_| {},
    );
    seen.is_passed_on(
        "C SET; C BEGIN; Z T; error FATAL 25P03 terminating connection due to idle-in-transaction timeout; closed",
        "error",
        "the target ended the session: FATAL 25P03",
    );
    let seen = ends(&both, &["running", "SELECT pg_sleep(60)"], |both| {
        kill(postmaster(both), Signal::SIGINT).expect("it runs");
    });
    seen.is_passed_on(&format!("T; {terminated}"), "error", by_57p01);
}

#[test]
fn a_server_that_dies_is_seen_to_die() {
    let both = Both::start();
    let closed = "the target closed the connection";
    let seen = ends(&both, &["idle"], kill_backends);
    seen.is_passed_on("closed", "error", closed);
    wait_for_recovery(&both);
    // The statement has no end that anybody knows.
    let seen = ends(&both, &["running", "SELECT pg_sleep(60)"], kill_backends);
    seen.is_passed_on("closed", "error", closed);
    let result = both.gateway.event("stmt.result");
    assert_eq!(result.text("outcome"), "aborted", "{result}");
    wait_for_recovery(&both);
    // A reset does not say whose it is: the gateway does.
    let pipelined = ["running", "SELECT pg_sleep(60)", "SELECT 1"];
    let seen = ends(&both, &pipelined, kill_backends);
    assert_eq!(seen.directly, ["reset"]);
    assert_eq!(
        seen.through,
        [
            "error FATAL 08006 the connection between the gateway and target \"shop\" broke",
            "closed"
        ]
    );
    wait_for_recovery(&both);
    let seen = ends(&both, &["idle"], |both| {
        kill(postmaster(both), Signal::SIGQUIT).expect("it runs");
    });
    seen.is_passed_on("N; closed", "error", closed);
}

/// The postmaster ends every session after one has died.
fn wait_for_recovery(both: &Both) {
    eventually("the server is back", PATIENCE, || {
        let mut ready = Command::new(crate::harness::postgres::binary("pg_isready"));
        let port = both.server.port().to_string();
        ready.args(["-q", "-h", "127.0.0.1", "-p", &port]);
        ready
            .status()
            .is_ok_and(|status| status.success())
            .then_some(())
    });
}

#[test]
fn a_gateway_that_stops_says_so_but_not_in_the_middle_of_a_row() {
    let mut both = Both::start();
    let mut idle = both.begin(&["idle"]);
    idle.says("idle");
    let mut reads_not = both.begin(&["cut", "1000000"]);
    reads_not.says("runs");
    server_waits_for_its_client(&both);
    both.gateway.stop();
    reads_not.go_on();
    assert_eq!(reads_not.rest(), ["cut True"]);
    let expected = ["error FATAL 57P01 the gateway is shutting down", "closed"];
    assert_eq!(idle.rest(), expected);
    for close in both.gateway.wait_for(2, "session.close") {
        assert_eq!(close.text("outcome"), "shutdown", "{close}");
    }
}

#[test]
fn a_session_that_waits_holds_little_memory() {
    const SESSIONS: u64 = 30;
    let both = Both::start();
    both.through(&["rows", "100000"]);
    let proportional = |pid: u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let words = line.and_then(|it| it.split_whitespace().next());
        words
            .and_then(|it| it.parse::<u64>().ok())
            .expect("the kernel tells")
    };
    let pid = both.gateway.pid();
    let before = proportional(pid);
    let mut clients = both.begin(&["idle_many", &SESSIONS.to_string()]);
    clients.says("idle");
    let each = proportional(pid).saturating_sub(before) / SESSIONS;
    clients.go_on();
    clients.rest();
    println!("{each} kB per session");
    assert!(each < 40, "{each} kB per session");
}
