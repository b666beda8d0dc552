//! Loading, verifying, unloading.

use std::fs;

use gateway::intercept::InterceptError;
use gateway::intercept::guard::{self, RunningAgents};

use super::instance::Instance;

#[test]
fn loading_again_changes_nothing_for_those_who_are_connected() {
    let instance = Instance::start();
    let before = guard::verify(instance.kernel()).expect("in place");
    guard::load(instance.kernel(), instance.port).expect("loads again");
    let after = guard::verify(instance.kernel()).expect("still in place");
    let links = |report: &guard::Report| {
        report
            .links
            .iter()
            .map(|link| link.link_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        links(&before),
        links(&after),
        "the links stay, their programs are replaced"
    );
    let mut agent = instance.agent("s = connect('192.0.2.7', 5432)\nwait()");
    agent.says();
    assert!(
        instance.flow_of(&instance.accept()).is_some(),
        "the table opened before goes on"
    );
}

/// A pin survives its cgroup; trusting it would call an unwatched cgroup watched.
#[test]
fn verify_sees_that_the_cgroup_was_made_anew() {
    let instance = Instance::start();
    fs::remove_dir(instance.agents()).expect("it is empty");
    let missing = guard::verify(instance.kernel()).expect_err("there is no agents' cgroup");
    assert!(missing.to_string().contains("connect4"), "{missing}");
    fs::create_dir(instance.agents()).expect("made anew");
    let stale = guard::verify(instance.kernel()).expect_err("attached to the one that is gone");
    let InterceptError::NotEnforced(problems) = &stale else {
        panic!("{stale}")
    };
    assert_eq!(problems.len(), 1, "one line per cause: {problems:?}");
    assert!(
        !problems[0].contains("gateway_sock_ops"),
        "that one is well: {problems:?}"
    );
    guard::load(instance.kernel(), instance.port).expect("loading repairs");
    guard::verify(instance.kernel()).expect("in place again");
}

#[test]
fn the_guard_is_not_unloaded_under_running_agents() {
    let instance = Instance::start();
    let mut agent = instance.agent("say('here')\nwait()");
    agent.says();
    let refused =
        guard::unload(instance.kernel(), RunningAgents::Refuse).expect_err("an agent runs");
    assert!(
        matches!(refused, InterceptError::AgentsRunning(_)),
        "{refused}"
    );
    guard::verify(instance.kernel()).expect("still in place");
    agent.says_at_the_end();
}

#[test]
fn verify_looks_at_every_cgroup_of_the_agents() {
    let instance = Instance::start();
    let before = guard::verify(instance.kernel()).expect("in place").cgroups;
    fs::create_dir_all(instance.agents().join("one/two")).expect("cgroups can be made");
    let after = guard::verify(instance.kernel()).expect("in place").cgroups;
    assert_eq!(after, before + 2);
}

/// A link that root detaches stays pinned and open.
#[test]
fn verify_sees_a_detached_link_whatever_the_hook() {
    let instance = Instance::start();
    for program in [
        "egress",
        "guard_connect4",
        "port_lookup",
        "connect_unix",
        "device",
    ] {
        let pin = instance.kernel().pins.join("links").join(program);
        fs::remove_file(&pin).expect("it is pinned");
        let problems = guard::verify(instance.kernel())
            .expect_err("it is gone")
            .to_string();
        assert!(problems.contains(program), "{program}: {problems}");
        guard::load(instance.kernel(), instance.port).expect("loading repairs");
        guard::verify(instance.kernel()).expect("in place again");
    }
}

#[test]
fn runs_are_counted_per_program() {
    let instance = Instance::start();
    let counting = guard::count_runs().expect("the kernel counts");
    let runs = |program: &str| {
        let report = guard::verify(instance.kernel()).expect("in place");
        let link = report.links.iter().find(|link| link.program == program);
        link.expect(program).runs
    };
    let before = runs("connect4");
    let mut agent = instance.agent("s = connect('192.0.2.7', 5432)\nwait()");
    agent.says();
    assert_eq!(runs("connect4"), before + 1);
    let before = runs("connect4");
    drop(std::net::TcpStream::connect(("127.0.0.1", instance.port)));
    assert_eq!(runs("connect4"), before, "not for others");
    drop(counting);
}

/// New programs take the old ones' place: no connect runs without one, and none is refused.
#[test]
fn loading_again_under_load_lets_nothing_pass_and_refuses_nothing() {
    const CONNECTS: usize = 200;
    let instance = Instance::start();
    let direct = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    direct
        .set_nonblocking(true)
        .expect("it can be non-blocking");
    let address = direct.local_addr().expect("bound");
    instance.target(&address.to_string());
    let script = format!(
        "
import time
say('here')
held = []
for n in range({CONNECTS}):
    attempt(lambda: held.append(socket.create_connection(('127.0.0.1', {}), 5)))
    time.sleep(0.005)
wait()",
        address.port()
    );
    let mut agent = instance.agent(&script);
    agent.says();
    let mut reloads = 0;
    for connect in 0..CONNECTS {
        if connect % 20 == 0 {
            guard::load(instance.kernel(), instance.port).expect("loads again");
            reloads += 1;
        }
        let accepted = instance.accept();
        let flow = instance.flow_of(&accepted).expect("each has a flow");
        assert_eq!(flow.original, address);
        assert_eq!(agent.says(), "ok", "connect {connect}");
    }
    direct.accept().expect_err("nobody got past");
    assert_eq!(reloads, 10);
    assert_eq!(instance.handshakes(), 0);
}
