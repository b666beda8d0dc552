//! What is planned, as tables; and the whole watch on kernel maps of its own. Needs root.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use aya_obj::generated::bpf_map_type;
use gateway_ebpf::{DatagramKey, Flow, ReportedKey, TargetKey};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::super::maps::{Maps, Table};
use super::super::{pins, sys};
use super::*;
use crate::audit::chain::Record;
use crate::identity::cgroup::tests::agent;
use crate::store::log::LogReader;

fn counters(denied: &[(Denial, u64)]) -> Counters {
    let mut counters = Counters {
        connects: 7,
        redirected: 1,
        local: 0,
        dns: 0,
        packets_out: 0,
        bytes_out: 0,
        packets_in: 0,
        bytes_in: 0,
        denied: [0; Denial::COUNT],
    };
    for (reason, count) in denied {
        counters.denied[*reason as usize] = *count;
    }
    counters
}

fn event(subtree: u64, reason: Denial) -> KernelEvent {
    KernelEvent {
        boot_ns: 1,
        cgroup_id: subtree + 1,
        subtree,
        netns_cookie: 5,
        destination: Address::v4(u32::from_ne_bytes([192, 0, 2, 7])),
        tgid: 42,
        uid: 65534,
        reason: reason as u32,
        protocol: IPPROTO_TCP,
        port: 5432,
        reserved: 0,
        comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
    }
}

fn call() -> DeniedCall {
    denied_call(&event(1, Denial::NoTarget), Denial::NoTarget)
}

/// (subtree, reason, count, total, samples)
type Planned = (u64, Denial, u64, u64, usize);

#[test]
fn leaves_are_what_the_counters_are_ahead() {
    use Denial::{Egress, NoTarget};
    let sampled = |key: Key, n: usize| HashMap::from([(key, vec![call(); n])]);
    let none = HashMap::new();
    let no_target = NoTarget as u32;
    type Row<'a> = (
        &'a str,
        Vec<(u64, Counters)>,
        Vec<((u64, Denial), u64)>,
        HashMap<Key, Vec<DeniedCall>>,
        Vec<Planned>,
    );
    let rows: Vec<Row> = vec![
        ("nothing counted", vec![], vec![], none.clone(), vec![]),
        (
            "nothing denied",
            vec![(9, counters(&[]))],
            vec![],
            none.clone(),
            vec![],
        ),
        (
            "never reported: all of it",
            vec![(9, counters(&[(NoTarget, 3)]))],
            vec![],
            none.clone(),
            vec![(9, NoTarget, 3, 3, 0)],
        ),
        (
            "partly reported: the rest",
            vec![(9, counters(&[(NoTarget, 10)]))],
            vec![((9, NoTarget), 7)],
            none.clone(),
            vec![(9, NoTarget, 3, 10, 0)],
        ),
        (
            "all reported",
            vec![(9, counters(&[(NoTarget, 10)]))],
            vec![((9, NoTarget), 10)],
            sampled((9, no_target), 1),
            vec![],
        ),
        (
            "a counter behind its record is not counted again",
            vec![(9, counters(&[(NoTarget, 4)]))],
            vec![((9, NoTarget), 10)],
            none.clone(),
            vec![],
        ),
        (
            "one leaf per subtree and reason",
            vec![
                (9, counters(&[(NoTarget, 1), (Egress, 2)])),
                (10, counters(&[(NoTarget, 4)])),
            ],
            vec![((10, NoTarget), 1), ((9, Egress), 2)],
            none.clone(),
            vec![(9, NoTarget, 1, 1, 0), (10, NoTarget, 3, 4, 0)],
        ),
        (
            "samples go to their own leaf",
            vec![
                (9, counters(&[(NoTarget, 500), (Egress, 1)])),
                (10, counters(&[(NoTarget, 1)])),
            ],
            vec![],
            sampled((9, no_target), 8),
            vec![
                (9, NoTarget, 500, 500, 8),
                (9, Egress, 1, 1, 0),
                (10, NoTarget, 1, 1, 0),
            ],
        ),
        (
            "what found no room shows the samples of those without counters",
            vec![
                (OVERFLOW, counters(&[(NoTarget, 20)])),
                (9, counters(&[(NoTarget, 1)])),
            ],
            vec![],
            HashMap::from([
                ((7, no_target), vec![call(); 5]),
                ((8, no_target), vec![call(); 5]),
                ((8, Egress as u32), vec![call(); 5]),
                ((9, no_target), vec![call(); 1]),
            ]),
            vec![(OVERFLOW, NoTarget, 20, 20, 8), (9, NoTarget, 1, 1, 1)],
        ),
        (
            "counters do not overflow the count",
            vec![(9, counters(&[(NoTarget, u64::MAX)]))],
            vec![((9, NoTarget), 1)],
            none.clone(),
            vec![(9, NoTarget, u64::MAX - 1, u64::MAX, 0)],
        ),
    ];
    for (name, counters, reported, samples, expected) in rows {
        let on_record = |subtree, reason| {
            let found = reported.iter().find(|(key, _)| *key == (subtree, reason));
            found.map_or(0, |(_, count)| *count)
        };
        let planned: Vec<Planned> = plan(&counters, on_record, &samples)
            .into_iter()
            .map(|leaf| {
                let samples = leaf.samples.len();
                (leaf.subtree, leaf.reason, leaf.count, leaf.total, samples)
            })
            .collect();
        assert_eq!(planned, expected, "{name}");
    }
}

#[test]
fn calls_are_described_as_far_as_the_hook_could_tell() {
    let v6 = Address([
        u32::from_ne_bytes([0x20, 1, 0xd, 0xb8]),
        0,
        0,
        1_u32.to_be(),
    ]);
    let v4 = event(1, Denial::NoTarget).destination;
    let unknown = Address::v4(0);
    for (name, address, port, expected) in [
        ("address and port", v4, 5432, Some("192.0.2.7:5432")),
        ("IPv6", v6, 443, Some("[2001:db8::1]:443")),
        ("no port", v4, 0, Some("192.0.2.7")),
        ("a port only", unknown, 53, Some("0.0.0.0:53")),
        ("nothing", unknown, 0, None),
        ("no port at all", v4, 70_000, Some("192.0.2.7")),
    ] {
        assert_eq!(destination(address, port).as_deref(), expected, "{name}");
    }
    for (name, number, reason, expected) in [
        ("tcp", 6, Denial::NoTarget, Some("tcp")),
        ("udp", 17, Denial::Datagram, Some("udp")),
        ("other", 1, Denial::Egress, Some("1")),
        ("unknown", 0, Denial::Egress, None),
        ("a raw socket", 3, Denial::SocketKind, Some("raw")),
        ("a socket type", 6, Denial::SocketKind, Some("6")),
    ] {
        assert_eq!(protocol(number, reason).as_deref(), expected, "{name}");
    }
    let call = call();
    assert_eq!(
        (call.comm.as_str(), call.tgid, call.uid),
        ("curl", 42, 65534)
    );
}

#[test]
fn samples_are_capped_and_unknown_reasons_dropped() {
    let (netns, _receiver) = mpsc::channel(1);
    let mut noticed = Noticed::new(netns);
    let now = Instant::now();
    for _ in 0..100 {
        noticed.notice(&event(9, Denial::NoTarget), now);
    }
    noticed.notice(
        &KernelEvent {
            reason: 999,
            ..event(9, Denial::NoTarget)
        },
        now,
    );
    assert_eq!(noticed.samples.len(), 1);
    assert_eq!(
        noticed.samples[&(9, Denial::NoTarget as u32)].len(),
        SAMPLES
    );
    for subtree in 0..2 * BUSY as u64 {
        noticed.notice(&event(subtree, Denial::Egress), now);
    }
    assert_eq!(noticed.samples.len(), BUSY);
}

#[test]
fn a_namespace_is_asked_for_once_a_second() {
    let (netns, mut receiver) = mpsc::channel(2);
    let mut noticed = Noticed::new(netns);
    let start = Instant::now();
    let denied = |cookie: u64| KernelEvent {
        netns_cookie: cookie,
        ..event(9, Denial::Netns)
    };
    let mut asked = || {
        let mut cookies = Vec::new();
        while let Ok(new) = receiver.try_recv() {
            assert_eq!((new.tgid, new.cgroup_id), (42, 10));
            cookies.push(new.netns_cookie);
        }
        cookies
    };
    noticed.notice(&denied(5), start);
    noticed.notice(&denied(5), start + ASKED / 2);
    noticed.notice(&denied(0), start);
    noticed.notice(&event(9, Denial::NoTarget), start);
    assert_eq!(asked(), [5]);
    noticed.notice(&denied(5), start + ASKED);
    noticed.notice(&denied(6), start + ASKED);
    assert_eq!(asked(), [5, 6], "again after a second");
    for cookie in 7..10 {
        noticed.notice(&denied(cookie), start + ASKED);
    }
    assert_eq!(asked(), [7, 8], "no more than there is room for");
    noticed.notice(&denied(9), start + ASKED);
    assert_eq!(asked(), [9], "one that found no room was not asked for");
}

/// Maps as the guard makes them, but pinned nowhere and fed by the test.
struct Kernel {
    counters: Table<u64, Counters>,
    endowment: Vec<OwnedFd>,
}

impl Kernel {
    fn new() -> Self {
        let hash = bpf_map_type::BPF_MAP_TYPE_HASH;
        let map = |kind, key: usize, value: usize, entries| {
            sys::create_map(kind, key as u32, value as u32, entries).expect("root may make maps")
        };
        let counters = map(hash, 8, size_of::<Counters>(), 16);
        let shared = counters.try_clone().expect("a descriptor");
        let endowment = vec![
            map(hash, 4, size_of::<Flow>(), 1),
            map(hash, size_of::<DatagramKey>(), size_of::<Flow>(), 1),
            map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 8, 1),
            map(hash, size_of::<TargetKey>(), 4, 1),
            shared,
            map(hash, size_of::<ReportedKey>(), 8, 64),
            map(bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, 4096),
        ];
        Self {
            counters: Table::new(pins::COUNTERS, counters).expect("it has the layout"),
            endowment,
        }
    }

    fn denies(&self, subtree: u64, denied: &[(Denial, u64)]) {
        let counted = counters(denied);
        self.counters
            .set(&subtree, &counted)
            .expect("there is room");
    }

    fn maps(&self) -> Maps {
        let copy = |fd: &OwnedFd| fd.as_fd().try_clone_to_owned().expect("a descriptor");
        Maps::from_fds(self.endowment.iter().map(copy).collect()).expect("they have the layouts")
    }

    fn on_record(&self, subtree: u64, reason: Denial) -> u64 {
        let counters = self.maps().counters;
        counters.reported(subtree, reason).expect("it can be read")
    }
}

/// A watch that runs, as one gateway has it.
struct Watch {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<EventRing>,
    _netns: mpsc::Receiver<NewNetns>,
}

impl Watch {
    fn start(kernel: &Kernel, tree: &Arc<AgentTree>, log: &Arc<Log>) -> Self {
        let maps = kernel.maps();
        let (netns, receiver) = mpsc::channel(1);
        let (stop, stopped) = watch::channel(false);
        let counters = Arc::new(maps.counters);
        let (tree, log) = (Arc::clone(tree), Arc::clone(log));
        let task = tokio::spawn(watch(maps.events, counters, tree, log, netns, stopped));
        Self {
            stop,
            task,
            _netns: receiver,
        }
    }

    async fn stop(self) {
        self.stop.send(true).expect("it runs");
        self.task.await.expect("it gives the ring back");
    }
}

type Told = (Option<String>, Option<String>, String, u64);

/// Agent, cgroup, reason and count of every leaf.
fn told(log: &Path) -> Vec<Told> {
    let mut reader = LogReader::open(log).expect("there is a log");
    let mut told = Vec::new();
    while let Some(line) = reader.next_line().expect("it can be read") {
        if let Event::KernelDenied {
            agent,
            cgroup,
            reason,
            count,
            ..
        } = Record::parse(line).expect("a line").event
        {
            told.push((agent, cgroup, reason, count));
        }
    }
    told
}

/// Waits for that many leaves, two seconds at most.
async fn told_soon(log: &Path, count: usize) -> Vec<Told> {
    for _ in 0..200 {
        if told(log).len() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    told(log)
}

/// One agent's cgroup; a directory stands for it.
fn one_agent(mount: &Path) -> (Arc<AgentTree>, u64) {
    let cgroup = mount.join("agents.slice/bot");
    fs::create_dir_all(&cgroup).expect("a directory");
    let agents = [agent("bot", "agents.slice/bot")];
    let tree = AgentTree::new(mount, "agents.slice", agents.into_iter());
    (
        Arc::new(tree),
        fs::metadata(&cgroup).expect("it is there").ino(),
    )
}

#[tokio::test]
async fn nothing_is_lost_between_gateways_and_nothing_told_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, bot) = one_agent(folder.path());
    let place = folder.path().join("log");
    let log = Arc::new(Log::open(&place, SystemTime::now()).unwrap());
    let kernel = Kernel::new();
    let leaf = |reason: Denial, count| {
        let cgroup = Some("agents.slice/bot".to_owned());
        (
            Some("bot".to_owned()),
            cgroup,
            reason.name().to_owned(),
            count,
        )
    };

    kernel.denies(bot, &[(Denial::NoTarget, 3)]);
    let first = Watch::start(&kernel, &tree, &log);
    let mut expected = vec![leaf(Denial::NoTarget, 3)];
    assert_eq!(told_soon(&place, 1).await, expected, "while no gateway ran");
    kernel.denies(bot, &[(Denial::NoTarget, 10), (Denial::Bind, 1)]);
    expected.extend([leaf(Denial::NoTarget, 7), leaf(Denial::Bind, 1)]);
    let start = Instant::now();
    assert_eq!(told_soon(&place, 3).await, expected, "as it happens");
    assert!(start.elapsed() < Duration::from_secs(1));
    kernel.denies(bot, &[(Denial::NoTarget, 12), (Denial::Bind, 1)]);
    first.stop().await;
    expected.push(leaf(Denial::NoTarget, 2));
    assert_eq!(told(&place), expected, "a last time when it stops");
    assert_eq!(kernel.on_record(bot, Denial::NoTarget), 12);

    kernel.denies(bot, &[(Denial::NoTarget, 15), (Denial::Bind, 1)]);
    kernel.denies(OVERFLOW, &[(Denial::Egress, 4)]);
    kernel.denies(u64::MAX, &[(Denial::Egress, 5)]);
    let second = Watch::start(&kernel, &tree, &log);
    let nobody = |count| (None, None, Denial::Egress.name().to_owned(), count);
    expected.extend([nobody(4), leaf(Denial::NoTarget, 3), nobody(5)]);
    let mut all = told_soon(&place, 7).await;
    // The order of subtrees is that of their ids.
    all[4..].sort();
    expected[4..].sort();
    assert_eq!(all, expected, "by the next one, and only what is new");
    second.stop().await;
    assert_eq!(told(&place).len(), 7);
}

#[tokio::test]
async fn what_the_log_does_not_take_is_told_when_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let (tree, bot) = one_agent(folder.path());
    let small = SmallDisk::mounted_at(folder.path().join("disk"));
    let log = Arc::new(Log::open(&small.0.join("log"), SystemTime::now()).unwrap());
    let place = small.0.join("log");
    let kernel = Kernel::new();
    fs::write(small.0.join("filler"), vec![0; 1 << 20]).expect_err("it is full");

    kernel.denies(bot, &[(Denial::NoTarget, 5)]);
    let watch = Watch::start(&kernel, &tree, &log);
    tokio::time::sleep(PERIOD + PERIOD / 2).await;
    kernel.denies(bot, &[(Denial::NoTarget, 9)]);
    assert!(!log.is_open(), "it could not be written");
    assert_eq!(kernel.on_record(bot, Denial::NoTarget), 0);

    fs::remove_file(small.0.join("filler")).unwrap();
    log.reopen(SystemTime::now()).unwrap();
    let counts: Vec<u64> = told_soon(&place, 1)
        .await
        .iter()
        .map(|told| told.3)
        .collect();
    assert_eq!(counts, [9], "all of it, once");
    assert_eq!(kernel.on_record(bot, Denial::NoTarget), 9);
    watch.stop().await;
}

/// A file system with room for a few leaves, gone with the test.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mounted_at(place: std::path::PathBuf) -> Self {
        fs::create_dir_all(&place).expect("a directory");
        let size = Some("size=64k");
        mount(Some("none"), &place, Some("tmpfs"), MsFlags::empty(), size).expect("root may mount");
        Self(place)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
