//! What the operator is told: what the host lacks, who did what, what the kernel denied; and what policies
//! know of the process that connected.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::events::Event;
use crate::harness::program::Ended;
use crate::harness::{Gateway, Postgres, Script};

const ORPHAN: &str = include_str!("clients/orphan.py");
const DENIED: &str = include_str!("clients/denied.py");

#[test]
fn doctor_is_not_ready_while_check_finds_an_error() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway
        .sluice(["doctor"])
        .succeeds()
        .prints("tier A (core): complete")
        .prints("doctor: ready to run");
    gateway.write_policy("broken", "permit (principal, action, resource);");
    gateway.sluice(["check"]).fails();
    let doctor = gateway.sluice(["doctor"]).fails();
    doctor
        .prints("the policy has no @id")
        .prints("doctor: NOT ready");
    let json = gateway.sluice(["--json", "doctor"]).fails().json();
    assert_eq!(json["ok"], false, "{json}");
    assert_eq!(json["tiers"]["A"], true, "{json}");
    gateway.write_policy("broken", "");
    gateway.sluice(["doctor"]).succeeds();
}

#[test]
fn doctor_tells_what_each_tier_lacks() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let json = gateway.sluice(["--json", "doctor"]).succeeds().json();
    let checks = json["checks"].as_array().expect("a list");
    let of_tier = |tier: &'static str| checks.iter().filter(move |row| row["part"] == tier);
    for row in of_tier("core") {
        assert!(row["since"].is_string(), "{row}");
        assert!(row["ok"] == true || row["need"] == "optional", "{row}");
    }
    assert!(of_tier("core").count() > 15 && of_tier("launcher").count() >= 5);
    let complete = of_tier("lsm").all(|row| row["ok"] == true);
    assert_eq!(json["tiers"]["C"], complete, "{json}");
    if !complete {
        gateway
            .sluice(["doctor"])
            .prints("tier C (LSM): NOT AVAILABLE")
            .prints("user namespaces");
    }
}

#[test]
fn a_policy_pins_the_program() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT 1"]).succeeds();
    let opened = gateway.event("session.open");
    let digest = opened.text("process.exe_sha256");
    assert_eq!(digest.len(), 64, "{opened}");
    assert!(opened.number("process.started_boot_ns") > 0, "{opened}");

    let pin = |digest: &str| {
        format!(
            r#"@id("only-psql") @reason("only the installed psql.")
            forbid (principal, action == Sluice::Action::"connect", resource)
            unless {{ context.process has exe_sha256 && context.process.exe_sha256 == "{digest}" }};"#
        )
    };
    gateway.stop();
    gateway.write_policy("pin", &pin(&digest));
    gateway.start();
    gateway
        .psql(["SELECT 'by psql'"])
        .succeeds()
        .prints("by psql");
    gateway.stop();
    gateway.write_policy("pin", &pin(&"0".repeat(64)));
    gateway.start();
    gateway
        .psql(["SELECT 1"])
        .fails()
        .complains("only the installed psql");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "only-psql", "{denied}");
    assert_eq!(denied.text("process.exe_sha256"), digest, "{denied}");
}

/// The process that connects is gone before anybody can look at it.
#[test]
fn a_policy_forbids_what_could_not_be_established() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let said = orphan(&gateway);
    gateway.event("session.open");
    assert!(!said.contains("could not be established"), "{said}");
    gateway.stop();
    let profile = include_str!("../policies/known-programs.cedar");
    gateway.write_policy("known-programs", profile);
    gateway.start();
    gateway.psql(["SELECT 1"]).succeeds();
    let said = orphan(&gateway);
    assert!(said.contains("could not be established"), "{said}");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "known-programs", "{denied}");
    assert_eq!(denied.text("process.exe"), "", "{denied}");
    assert_eq!(denied.text("process.started_boot_ns"), "", "{denied}");
}

/// Answers what the gateway says to the child of a process that connected and ended.
fn orphan(gateway: &Gateway) -> String {
    let script = Script::plain(gateway, "orphan.py", ORPHAN);
    let address = gateway.address("127.0.0.1");
    let port = address
        .split(' ')
        .find_map(|word| word.strip_prefix("port="));
    let mut agent = gateway
        .agent_command(script.words(["127.0.0.1", port.expect("it has one")]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    let mut said = BufReader::new(agent.stdout.take().expect("it is piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says that it is ready");
    let pid = Pid::from_raw(gateway.pid().cast_signed());
    kill(pid, Signal::SIGSTOP).expect("the gateway is ours");
    let go = agent.stdin.take().expect("it is piped").write_all(b"go\n");
    let ended = agent.wait();
    kill(pid, Signal::SIGCONT).expect("the gateway is ours");
    go.expect("it reads");
    assert!(ended.expect("it ends").success());
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("the child answers");
    rest
}

#[test]
fn status_counts_what_each_agent_did() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let status = |gateway: &Gateway| gateway.sluice(["--json", "status"]);
    let json = status(&gateway).succeeds().json();
    assert_eq!(json["reachable"], true, "{json}");
    assert_eq!(json["broker"]["answers"], true, "{json}");
    assert_eq!(json["frozen"], false, "{json}");
    assert_eq!(json["gateway"]["process"]["pid"], gateway.pid(), "{json}");
    assert_eq!(json["gateway"]["process"]["other_maps"], false, "{json}");
    for _ in 0..3 {
        gateway.psql(["SELECT 1"]).succeeds();
    }
    denied(&gateway, 7, 2);
    let json = status(&gateway).succeeds().json();
    let agent = the_agent(&json);
    assert_eq!(agent["connects"], 3 + 2, "{json}");
    assert_eq!(agent["redirected"], 3, "{json}");
    // Among others: libc asks name services over Unix sockets.
    let times = |reason: &str| {
        let denials = agent["denials"].as_array().expect("a list");
        let found = denials.iter().find(|denied| denied["reason"] == reason);
        found.map_or(0, |denied| denied["count"].as_u64().expect("a number"))
    };
    assert_eq!((times("datagram"), times("link-local")), (7, 2), "{json}");
    for count in ["packets_out", "bytes_out", "packets_in", "bytes_in"] {
        assert!(agent[count].as_u64() > Some(0), "{count}: {json}");
    }
    let text = gateway.sluice(["status"]).succeeds();
    text.prints("get through to the gateway")
        .prints("report-bot")
        .prints("datagram");

    gateway.kill();
    let silent = eventually_fails(&gateway);
    assert_eq!(silent["gateway"]["alive"], false, "{silent}");
    assert_eq!(silent["gateway"]["process"], Value::Null, "{silent}");
    assert_eq!(
        silent["guard"]["problems"],
        Value::Array(vec![]),
        "{silent}"
    );
    assert_eq!(the_agent(&silent)["connects"], 3 + 2, "{silent}");
    gateway.start();
    assert_eq!(status(&gateway).succeeds().json()["reachable"], true);
}

#[test]
fn what_the_kernel_denies_is_in_the_log_within_a_second_and_exact() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let done = denied(&gateway, 2000, 3);
    let datagrams = told(&gateway, "datagram", 2000);
    let streams = told(&gateway, "link-local", 3);
    let last = datagrams.iter().chain(&streams).map(time_of).max();
    let late = last.expect("there are leaves").duration_since(done);
    assert!(late.as_millis() <= 1000, "{late:?} after the last denial");
    for leaf in datagrams.iter().chain(&streams) {
        assert_eq!(leaf.text("agent"), "report-bot", "{leaf}");
        let samples = leaf.0["samples"].as_array().expect("there was room");
        assert!((1..=8).contains(&samples.len()), "{leaf}");
        assert_eq!(samples[0]["comm"], "python3", "{leaf}");
        assert_eq!(samples[0]["uid"], 65534, "{leaf}");
    }
    let sample = &datagrams[0].0["samples"][0];
    assert_eq!(sample["destination"], "192.0.2.1:4242", "{sample}");
    assert_eq!(sample["protocol"], "udp", "{sample}");
    let sample = &streams[0].0["samples"][0];
    assert_eq!(sample["destination"], "169.254.169.254:80", "{sample}");
    assert_eq!(sample["protocol"], "tcp", "{sample}");
    gateway
        .sluice(["tail"])
        .prints("report-bot   ✗ kernel      datagram")
        .prints("python3 to 192.0.2.1:4242");
}

#[test]
fn what_was_denied_while_no_gateway_ran_is_told_by_the_next() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    denied(&gateway, 10, 0);
    told(&gateway, "datagram", 10);
    gateway.kill();
    denied(&gateway, 25, 0);
    gateway.start();
    told(&gateway, "datagram", 35);
    gateway.stop();
    gateway.start();
    sleep(Duration::from_secs(2));
    told(&gateway, "datagram", 35);
}

/// Has the agent denied so much, and answers when it was done.
fn denied(gateway: &Gateway, datagrams: u32, connects: u32) -> Timestamp {
    let script = Script::plain(gateway, "denied.py", DENIED);
    let words = script.words([&*datagrams.to_string(), &connects.to_string()]);
    let ended: Ended = gateway.as_agent(words).succeeds();
    let microseconds = ended.text().trim().parse().expect("it prints the time");
    Timestamp::from_microsecond(microseconds).expect("a time")
}

/// The leaves about one reason, once they add up.
#[track_caller]
fn told(gateway: &Gateway, reason: &str, total: u64) -> Vec<Event> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let events = gateway.events();
        let leaves: Vec<Event> = events
            .named("kernel.denied")
            .filter(|leaf| leaf.text("reason") == reason)
            .cloned()
            .collect();
        let told: u64 = leaves.iter().map(|leaf| leaf.number("count")).sum();
        if told == total {
            return leaves;
        }
        assert!(told < total, "{reason}: {told}, more than {total}");
        assert!(Instant::now() < deadline, "{reason}: {told}, not {total}");
        sleep(Duration::from_millis(20));
    }
}

fn time_of(leaf: &Event) -> Timestamp {
    leaf.text("time").parse().expect("every leaf has its time")
}

fn the_agent(status: &Value) -> &Value {
    let agents = status["agents"].as_array().expect("a list");
    let mine = |agent: &&Value| agent["agent"] == "report-bot";
    agents.iter().find(mine).expect("report-bot did something")
}

/// The status once it is a failure, which takes the heartbeat's three seconds.
fn eventually_fails(gateway: &Gateway) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = gateway.sluice(["--json", "status"]);
        if !status.status.success() {
            return status.json();
        }
        assert!(Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(100));
    }
}
