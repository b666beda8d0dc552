//! The gateway is killed: agents are cut off at once, everybody else is untouched, and nothing that was
//! proven before is lost.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::gateway::psql_words;
use crate::harness::program::{eventually, run};
use crate::harness::{Gateway, Postgres, Setup};

#[test]
fn agents_are_refused_others_connect_and_a_restart_mends_it() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT 1"]).succeeds();
    gateway.wait_for(1, "session.close");

    gateway.kill();
    for host in ["127.0.0.1", "::1"] {
        let refused = gateway
            .psql_at(host, ["SELECT 1"])
            .fails()
            .complains("Connection refused");
        assert!(refused.took < Duration::from_secs(1), "{refused}");
    }
    let address = server.address("127.0.0.1");
    server
        .directly([
            "psql",
            "-X",
            "-At",
            "-d",
            &address,
            "-c",
            "SELECT 'untouched'",
        ])
        .succeeds()
        .prints("untouched");

    gateway.start();
    gateway.psql(["SELECT 'again'"]).succeeds().prints("again");
    gateway.event("gateway.crashed");
    gateway.sluice(["audit", "verify"]).succeeds().prints("ok");
}

#[test]
fn a_session_that_was_open_is_closed_as_crashed() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    let mut psql = gateway
        .agent_command(psql_words(&gateway.address("127.0.0.1"), []))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("psql starts");
    let mut stdin = psql.stdin.take().expect("stdin is piped");
    stdin
        .write_all(b"SELECT 'before the crash';\n")
        .expect("psql reads");
    let open = gateway.wait_for(1, "stmt.result")[0].text("session");

    gateway.kill();
    drop(stdin);
    psql.wait().expect("psql ends without its server");
    gateway.start();

    let crashed = gateway.event("gateway.crashed");
    assert!(crashed.text("open_sessions").contains(&open), "{crashed}");
    let closed = gateway.event("session.close");
    assert_eq!(closed.text("session"), open);
    assert_eq!(closed.text("outcome"), "crashed");
    gateway.sluice(["audit", "verify"]).succeeds().prints("ok");
    gateway
        .sluice(["replay", &open])
        .succeeds()
        .prints("before the crash");
}

#[test]
fn a_clean_stop_is_no_crash() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT 1"]).succeeds();
    gateway.stop();
    gateway.start();
    assert_eq!(gateway.events().count("gateway.stop"), 1);
    assert_eq!(gateway.events().count("gateway.start"), 2);
    assert_eq!(gateway.events().count("gateway.crashed"), 0);
}

#[test]
fn a_second_gateway_does_not_share_the_log() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.sluice(["run"]).fails();
    gateway.is_alive();
    gateway.psql(["SELECT 1"]).succeeds();
}

#[test]
fn the_guard_outlives_the_gateway_and_says_so() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.sluice(["guard", "verify"]).succeeds();
    gateway.kill();
    gateway.sluice(["guard", "verify"]).succeeds();
    gateway.sluice(["guard", "load"]).succeeds();
    gateway.start();
    gateway.psql(["SELECT 1"]).succeeds();
}

#[test]
fn a_gateway_whose_maps_were_replaced_says_so_until_it_is_restarted() {
    const REPLACED: &str = "the kernel's maps were replaced: restart the gateway";
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT 1"]).succeeds();
    // With the same maps nothing is replaced.
    gateway.sluice(["guard", "load"]).succeeds();
    gateway.hand_over();
    gateway.psql(["SELECT 1"]).succeeds();

    gateway.sluice(["guard", "unload", "--force"]).succeeds();
    gateway.sluice(["guard", "load"]).succeeds();
    eventually("the alarm", Duration::from_secs(10), || {
        let events = gateway.events();
        let mut alarms = events.named("guard.alarm");
        alarms
            .any(|alarm| alarm.text("problems").contains(REPLACED))
            .then_some(())
    });
    gateway
        .psql(["SELECT 1"])
        .fails()
        .complains("Connection refused");

    let serves = gateway.pid();
    gateway.signal(Signal::SIGHUP);
    let failed = gateway.event("gateway.handover_failed");
    assert!(failed.text("reason").contains(REPLACED), "{failed}");
    assert_eq!(gateway.pid(), serves);
    gateway.is_alive();
    // The broker finds nothing wrong any more, and still nobody gets through.
    thread::sleep(Duration::from_secs(3));
    gateway.psql(["SELECT 1"]).fails();
    assert_eq!(gateway.events().count("guard.cleared"), 0);

    let logged = gateway.stop();
    assert!(logged.contains(REPLACED), "{logged}");
    gateway.start();
    gateway.psql(["SELECT 'again'"]).succeeds().prints("again");
    gateway.sluice(["audit", "verify"]).succeeds().prints("ok");
}

#[test]
fn agents_are_refused_within_seconds_when_the_gateway_is_stuck() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT 1"]).succeeds();
    gateway.signal(Signal::SIGSTOP);
    // Until the last beat is stale, connects wait in the backlog.
    thread::sleep(Duration::from_secs(3));
    let refused = gateway.psql(["SELECT 1"]).fails();
    assert!(refused.took < Duration::from_secs(1), "{refused}");
    gateway.signal(Signal::SIGCONT);
    eventually("service", Duration::from_secs(10), || {
        let ended = gateway.psql(["SELECT 1"]);
        ended.status.success().then_some(())
    });
}

#[test]
fn a_full_disk_cuts_agents_off_until_it_has_room() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).storage_of("6m").start();
    gateway.psql(["SELECT 1"]).succeeds();
    gateway.fill_storage();
    let refused = eventually("a refusal by the kernel", Duration::from_secs(10), || {
        let ended = gateway.psql(["SELECT 1"]);
        ended.stderr.contains("Connection refused").then_some(ended)
    });
    assert!(refused.took < Duration::from_secs(1), "{refused}");
    gateway.empty_storage();
    eventually("service", Duration::from_secs(10), || {
        let ended = gateway.psql(["SELECT 1"]);
        ended.status.success().then_some(())
    });
    gateway.event("guard.alarm");
    gateway.event("guard.cleared");
    gateway.sluice(["audit", "verify"]).succeeds().prints("ok");
}

#[test]
fn agents_are_cut_off_while_nobody_watches_the_kernel_programs() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    gateway.end_broker(Signal::SIGKILL);
    // A broker may be restarted meanwhile.
    gateway.psql(["SELECT 1"]).succeeds();
    thread::sleep(Duration::from_secs(11));
    eventually("a refusal", Duration::from_secs(5), || {
        (!gateway.psql(["SELECT 1"]).status.success()).then_some(())
    });
    let alarm = gateway.event("guard.alarm");
    assert!(alarm.text("problems").contains("nobody watches"), "{alarm}");
    gateway.start_broker();
    gateway.event("guard.cleared");
    eventually("service", Duration::from_secs(10), || {
        gateway.psql(["SELECT 1"]).status.success().then_some(())
    });
}

#[test]
fn the_gateway_leaves_no_core_dump() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let mut limits = Command::new("cat");
    limits.arg(format!("/proc/{}/limits", gateway.pid()));
    let limits = run(limits).succeeds();
    let core = limits
        .lines()
        .into_iter()
        .find(|line| line.starts_with("Max core file size"))
        .expect("every kernel lists it");
    let values: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(values, ["0", "0"], "{core}");
}
