//! Whose connections are redirected, and whose are not.

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::gateway::psql_words;
use crate::harness::program::{eventually, run};
use crate::harness::{Gateway, Postgres, Script, Setup};

const DIAL: &str = include_str!("clients/dial.py");

#[test]
fn an_agent_over_ipv4_ipv6_and_v4_mapped() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let hosts = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "localhost"];
    for host in hosts {
        gateway
            .psql_at(host, ["SELECT 'by way of the gateway'"])
            .succeeds()
            .prints("by way of the gateway");
    }
    let opened = gateway.wait_for(hosts.len(), "session.open");
    let originals: Vec<String> = opened.iter().map(|event| event.text("original")).collect();
    let port = server.port();
    assert_eq!(originals[0], format!("127.0.0.1:{port}"));
    assert_eq!(originals[1], format!("[::1]:{port}"));
    assert_eq!(originals[2], format!("127.0.0.1:{port}"));
}

#[test]
fn a_client_sees_the_address_that_it_dialled() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::plain(&gateway, "dial.py", DIAL);
    let port = server.port().to_string();
    for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        gateway
            .as_agent(script.words(["tcp", host, &port]))
            .succeeds()
            .prints(&format!("connected to {host} {port}"));
    }
}

#[test]
fn an_unregistered_process_is_untouched() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let address = server.address("127.0.0.1");
    // In clear, by its own password, with its own rights: nothing stands between.
    server
        .directly([
            "psql",
            "-X",
            "-At",
            "-d",
            &address,
            "-c",
            "SELECT card_number FROM customers WHERE id = 1",
        ])
        .succeeds()
        .prints("4111111111111111");
    assert_eq!(gateway.events().count("session.open"), 0);
    assert_eq!(gateway.events().count("deny"), 0);
}

#[test]
fn a_subagent_in_a_nested_control_group_inherits() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let nested = gateway.agents_group().join("report-bot/step-7");
    fs::create_dir_all(&nested).expect("root may make control groups");
    run(in_group(
        &nested,
        &psql_words(&gateway.address("127.0.0.1"), ["SELECT 'nested'"]),
    ))
    .succeeds()
    .prints("nested");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("agent"), "report-bot");
    let group = opened.text("process.cgroup");
    assert!(group.ends_with("report-bot/step-7"), "{opened}");
}

#[test]
fn a_group_that_no_agent_is_registered_for_gets_nothing() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let stranger = gateway.agents_group().join("stranger");
    fs::create_dir_all(&stranger).expect("root may make control groups");
    run(in_group(
        &stranger,
        &psql_words(&gateway.address("127.0.0.1"), ["SELECT 1"]),
    ))
    .fails()
    .complains("FATAL");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("stage"), "identify", "{denied}");
    assert_eq!(gateway.events().count("session.open"), 0);
}

#[test]
fn an_address_that_is_no_target_is_refused() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = elsewhere
        .local_addr()
        .expect("it is bound")
        .port()
        .to_string();
    elsewhere.set_nonblocking(true).expect("it is ours");
    let address = format!("host=127.0.0.1 port={port} user=x dbname=shop");
    gateway
        .as_agent(psql_words(&address, ["SELECT 1"]))
        .fails()
        .complains("Connection refused");
    // Already in the kernel, which knows the targets' addresses.
    let denied = eventually("a leaf", Duration::from_secs(5), || {
        let events = gateway.events();
        let mut denials = events.named("kernel.denied").cloned();
        denials.find(|denial| denial.text("samples").contains(&port))
    });
    assert_eq!(denied.text("reason"), "no-target", "{denied}");
    let untouched = elsewhere.accept().expect_err("nobody came through");
    assert_eq!(untouched.kind(), ErrorKind::WouldBlock);
}

#[test]
fn another_database_than_the_targets_is_refused() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let address = format!(
        "host=127.0.0.1 port={} user=x dbname=postgres",
        server.port()
    );
    gateway
        .as_agent(psql_words(&address, ["SELECT 1"]))
        .fails()
        .complains("FATAL");
    gateway.event("deny");
    assert_eq!(gateway.events().count("session.open"), 0);
}

#[test]
fn a_connection_without_a_flow_is_reset() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    for address in [
        format!("127.0.0.1:{}", gateway.port()),
        format!("[::1]:{}", gateway.port()),
    ] {
        let mut stranger = TcpStream::connect(&address).expect("the gateway listens");
        stranger
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("it is ours");
        let error = stranger
            .read(&mut [0; 64])
            .expect_err("a reset is no end of file");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{address}");
    }
    gateway.is_alive();
    assert_eq!(gateway.events().count("session.open"), 0);
}

#[test]
fn an_agent_cannot_dial_the_gateway_itself() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::plain(&gateway, "dial.py", DIAL);
    let port = gateway.port().to_string();
    for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        gateway
            .as_agent(script.words(["tcp", host, &port]))
            .fails()
            .prints("PermissionError");
    }
}

#[test]
fn everything_but_tcp_is_denied() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::plain(&gateway, "dial.py", DIAL);
    for (how, host) in [
        ("udp-connect", "127.0.0.1"),
        ("udp-connect", "::1"),
        ("udp-send", "127.0.0.1"),
        ("udp-send", "::1"),
        ("sctp", "127.0.0.1"),
        ("mptcp", "127.0.0.1"),
        ("ping", "127.0.0.1"),
        ("raw", "127.0.0.1"),
        ("packet", "127.0.0.1"),
    ] {
        let seen = gateway.as_agent(script.words([how, host, "9"])).fails();
        assert!(seen.text().contains("Error"), "{how} {host}: {seen}");
        assert!(!seen.text().contains("connected"), "{how} {host}: {seen}");
    }
}

#[test]
fn sessions_past_the_limit_are_refused_until_one_ends() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).max_sessions(1).start();
    let words = psql_words(&gateway.address("127.0.0.1"), []);
    let mut first = gateway
        .agent_command(words)
        .stdin(Stdio::piped())
        .spawn()
        .expect("psql starts");
    gateway.event("session.open");
    gateway.psql(["SELECT 1"]).fails();
    assert_eq!(gateway.event("deny").text("rule"), "sessions:full");
    drop(first.stdin.take());
    first.wait().expect("psql ends with its input");
    gateway.event("session.close");
    gateway.psql(["SELECT 1"]).succeeds();
}

/// The machine the tests run on may be hybrid, with version 2 at a place of its own, or not.
#[test]
fn on_a_host_with_nothing_but_cgroup_v2() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).on_pure_cgroup2().start();
    gateway
        .sluice(["doctor"])
        .text()
        .lines()
        .find(|line| line.starts_with("cgroup v2") && line.trim_end().ends_with("/sys/fs/cgroup"))
        .expect("doctor sees the mount");
    gateway.psql(["SELECT 1"]).succeeds().prints("1");
    gateway.sluice(["guard", "verify"]).succeeds();
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("agent"), "report-bot", "{opened}");
}

/// A command that enters the control group before it becomes the program.
fn in_group(group: &std::path::Path, words: &[String]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#])
        .arg(group)
        .args(words);
    command
}

/// Numbers of processes and depths of cgroups are other ones in there than those the kernel programs see.
#[test]
fn nothing_of_roots_runs_in_namespaces_of_its_own() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    for namespace in ["--cgroup", "--pid"] {
        for words in [&["guard", "load"][..], &["guard", "verify"], &["broker"]] {
            let sluice = gateway.sluice_command(words);
            let mut command = Command::new("unshare");
            command
                .args([namespace, "--fork", "--"])
                .arg(sluice.get_program())
                .args(sluice.get_args());
            run(command)
                .fails()
                .complains("namespace of its own")
                .complains("--cgroupns=host --pid=host");
        }
    }
}
