//! What the gateway does with the maps, and that it needs no privileges for it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use gateway::intercept::{Denial, EventRing, KernelEvent, Maps};

use super::instance::{Instance, NOBODY};

/// Becomes nobody with this thread alone: credentials are a thread's, as far as the kernel is concerned.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: these calls change this thread's credentials only, and it ends soon.
            unsafe {
                assert_eq!(
                    libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY),
                    0
                );
                assert_eq!(
                    libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
                    0
                );
            }
            work()
        });
        thread.join().expect("it does not panic")
    })
}

#[test]
fn without_privileges_the_descriptors_are_enough() {
    let instance = Instance::start();
    let descriptors = Maps::open_pins(&instance.kernel().pins).expect("the maps are pinned");
    assert_eq!(descriptors.len(), Maps::NAMES.len());
    let mut agent = instance.agent("s = connect('192.0.2.7', 5432)\nwait()");
    agent.says();
    let stream = instance.accept();
    as_nobody(|| {
        Maps::open_pins(&instance.kernel().pins).expect_err("the pins are root's");
        let maps = Maps::from_fds(descriptors).expect("they are what they should be");
        let flow = maps.flows.flow_of(stream.as_fd()).expect("it can be read");
        assert_eq!(flow.expect("it was redirected").uid, NOBODY);
        maps.heartbeat.beat().expect("it can beat");
        let target: SocketAddr = "192.0.2.1:1".parse().expect("an address");
        maps.targets
            .replace(&BTreeSet::from([target]))
            .expect("targets can be set");
        assert!(!maps.counters.read().expect("they can be read").is_empty());
        maps.counters
            .set_reported(7, Denial::Egress, 3)
            .expect("it can be set");
        assert_eq!(
            maps.counters
                .reported(7, Denial::Egress)
                .expect("it can be read"),
            3
        );
        assert_eq!(
            maps.counters
                .reported(7, Denial::Bind)
                .expect("it can be read"),
            0
        );
        // The C library's attempt at nscd has been denied on the way.
        let mut events = maps.events;
        let event = runtime().block_on(next_of(&mut events, Denial::UnixSocket));
        assert_eq!(event.subtree, agent.cgroup_id);
    });
}

#[test]
fn descriptors_in_the_wrong_order_are_refused() {
    let instance = Instance::start();
    let mut descriptors = Maps::open_pins(&instance.kernel().pins).expect("the maps are pinned");
    descriptors.reverse();
    let refused = Maps::from_fds(descriptors).expect_err("another layout");
    assert!(refused.to_string().contains("SK_ACC"), "{refused}");
}

#[test]
fn targets_are_replaced_as_a_whole() {
    let instance = Instance::start();
    let set = |targets: &[&str]| {
        let all = targets
            .iter()
            .map(|target| target.parse().expect("an address"))
            .collect();
        instance
            .maps
            .targets
            .replace(&all)
            .expect("targets can be set");
    };
    let script = "
while told():
    attempt(lambda: socket.create_connection(('192.0.2.1', 1001), 5))
    attempt(lambda: socket.create_connection(('2001:db8::2', 1002), 5))";
    let mut agent = instance.agent(script);
    let mut tries = |expected: [&str; 2]| {
        agent.tell("go");
        assert_eq!([agent.says(), agent.says()], expected);
    };
    set(&["192.0.2.1:1001"]);
    tries(["ok", "ECONNREFUSED"]);
    set(&["[::ffff:192.0.2.1]:1001", "[2001:db8::2]:1002"]);
    tries(["ok", "ok"]);
    set(&["[2001:db8::2]:1002"]);
    tries(["ECONNREFUSED", "ok"]);
    set(&[]);
    tries(["ECONNREFUSED", "ECONNREFUSED"]);
}

#[test]
fn denials_are_told_as_they_happen_and_counted_when_nobody_listens() {
    const MANY: u64 = 4000;
    let instance = Instance::start();
    let descriptors = Maps::open_pins(&instance.kernel().pins).expect("the maps are pinned");
    let mut events = Maps::from_fds(descriptors)
        .expect("they are what they should be")
        .events;
    let runtime = runtime();
    let agent = instance.agent("attempt(lambda: socket.create_connection(('192.0.2.8', 81), 5))");
    let (tgid, cgroup_id) = (agent.child.id(), agent.cgroup_id);
    let event = runtime.block_on(next_of(&mut events, Denial::NoTarget));
    assert_eq!(agent.says_at_the_end(), ["ECONNREFUSED"]);
    assert_eq!(event.reason, Denial::NoTarget as u32);
    assert_eq!((event.tgid, event.uid), (tgid, NOBODY));
    assert_eq!((event.cgroup_id, event.subtree), (cgroup_id, cgroup_id));
    assert_eq!(event.destination.to_ip().to_string(), "192.0.2.8");
    assert_eq!((event.port, event.protocol), (81, 6));
    assert_eq!(event.netns_cookie, instance.netns_cookie);
    assert!(event.comm.starts_with(b"python3"));
    // The ring overflows: verdicts and counters stay as they are.
    let script = format!(
        "
words = set()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range({MANY}):
    try:
        s.sendto(b'x', ('192.0.2.9', 9))
        words.add('sent')
    except OSError as error:
        words.add(errno.errorcode[error.errno])
say(sorted(words))"
    );
    let said = instance.agent(&script).says_at_the_end();
    assert_eq!(said, [serde_json::json!(["EPERM"])]);
    assert_eq!(
        instance.counters("bot").denied[Denial::Datagram as usize],
        MANY
    );
    let mut told = 0;
    runtime.block_on(async {
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(100), events.next()).await
        {
            let event = event.expect("it can be read");
            told += u64::from(event.reason == Denial::Datagram as u32);
        }
    });
    assert!((1000..MANY).contains(&told), "{told} were told");
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// The C library asks nscd on the way, which makes events of its own.
async fn next_of(events: &mut EventRing, reason: Denial) -> KernelEvent {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), events.next());
        let event = event.await.expect("in time").expect("it can be read");
        if event.reason == reason as u32 {
            return event;
        }
    }
}

#[test]
fn counters_are_each_agents_own() {
    let instance = Instance::start();
    for (agent, connects) in [("one", 2), ("two/deeper/still", 3)] {
        let script = format!(
            "
held = [socket.create_connection(('192.0.2.7', 5432), 5) for n in range({connects})]
held[0].sendall(b'x' * 1000)
say('done')"
        );
        let mut agent = instance.agent_named(agent, &script);
        assert_eq!(agent.says(), "done");
    }
    let [one, two] = ["one", "two"].map(|agent| instance.counters(agent));
    assert_eq!((one.connects, one.redirected), (2, 2));
    assert_eq!((two.connects, two.redirected), (3, 3));
    assert!(one.bytes_out > 1000 && two.bytes_out > 1000);
    assert!(one.packets_in >= 2 && one.packets_out >= 5, "{one:?}");
}

#[test]
fn descriptors_travel_in_the_order_of_the_names() {
    let instance = Instance::start();
    let all = instance.maps.fds();
    assert_eq!(all.len(), Maps::NAMES.len());
    let copies = all
        .iter()
        .map(|fd| fd.try_clone_to_owned().expect("it can be copied"))
        .collect();
    let again = Maps::from_fds(copies).expect("the same order");
    assert_ne!(again.fds()[0].as_raw_fd(), all[0].as_raw_fd());
}
