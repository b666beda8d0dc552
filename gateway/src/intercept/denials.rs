//! What the kernel denied, as evidence: within a second, with exact counts, whatever became of the events.
//!
//! The count of a leaf is the difference between a counter and how much of it is on record (REPORTED), which
//! is advanced after the leaf is written. So what was denied while no gateway ran is told by the next one, and
//! a full ring buffer costs nothing but samples. Only a crash between the two makes a count appear twice.
//! While the log takes no leaf, nothing is advanced and the counts grow together until it does.
//!
//! The same events tell of network namespaces in which the gateway does not listen yet.

use std::collections::HashMap;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gateway_ebpf::decide::{Denial, IPPROTO_TCP, IPPROTO_UDP};
use gateway_ebpf::{Address, Counters, KernelEvent};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::flow::until_zero;
use super::{CounterTable, EventRing, InterceptError};
use crate::audit::event::{DeniedCall, Event};
use crate::identity::cgroup::AgentTree;
use crate::store::log::{Log, LogError};

/// A little less than the second that is promised, for the writing itself.
const PERIOD: Duration = Duration::from_millis(900);

/// How many calls a leaf shows.
const SAMPLES: usize = 8;

/// How many (subtree, reason) pairs have samples at a time, and how many events one pass takes from the
/// ring at most. Beyond it samples are lost, not counts.
const BUSY: usize = 4096;

/// How long a namespace that was asked for is not asked for again; a client that tries again asks again.
const ASKED: Duration = Duration::from_secs(1);

/// The subtree whose counters hold what found no room.
const OVERFLOW: u64 = 0;

/// A network namespace that an agent wanted to connect from, and in which the gateway does not listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNetns {
    pub tgid: u32,
    pub netns_cookie: u64,
    pub cgroup_id: u64,
}

/// Writes the leaves until `stop` is true (or dropped), then once more, and gives the ring back for a
/// successor.
pub async fn watch(
    mut events: EventRing,
    counters: Arc<CounterTable>,
    tree: Arc<AgentTree>,
    log: Arc<Log>,
    netns: mpsc::Sender<NewNetns>,
    mut stop: watch::Receiver<bool>,
) -> EventRing {
    let reporter = Arc::new(Reporter {
        counters,
        tree,
        log,
        on_record: Mutex::default(),
    });
    let mut noticed = Noticed::new(netns);
    let mut pass = interval(PERIOD);
    pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut readable = true;
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            _ = pass.tick() => {
                readable = noticed.take_waiting(&mut events).await;
                Reporter::report(&reporter, &mut noticed).await;
            }
            event = events.next(), if readable => match event {
                Ok(event) => noticed.notice(&event, Instant::now()),
                // Not again before the next pass: an error that stays must not spin.
                Err(error) => readable = noticed.unreadable(&error),
            },
        }
    }
    // What is still in the ring is the successor's: it may have to answer for it.
    Reporter::report(&reporter, &mut noticed).await;
    events
}

/// A subtree and the number of a [`Denial`].
type Key = (u64, u32);

/// What the events said since the last pass.
struct Noticed {
    samples: HashMap<Key, Vec<DeniedCall>>,
    asked: HashMap<u64, Instant>,
    netns: mpsc::Sender<NewNetns>,
}

impl Noticed {
    fn new(netns: mpsc::Sender<NewNetns>) -> Self {
        Self {
            samples: HashMap::new(),
            asked: HashMap::new(),
            netns,
        }
    }

    fn notice(&mut self, event: &KernelEvent, now: Instant) {
        let Some(reason) = reason(event) else {
            return;
        };
        if reason == Denial::Netns {
            self.ask(event, now);
        }
        let key = (event.subtree, event.reason);
        if self.samples.len() >= BUSY && !self.samples.contains_key(&key) {
            return;
        }
        let samples = self.samples.entry(key).or_default();
        if samples.len() < SAMPLES {
            samples.push(denied_call(event, reason));
        }
    }

    fn ask(&mut self, event: &KernelEvent, now: Instant) {
        let is_recent = |asked: &Instant| now.duration_since(*asked) < ASKED;
        if event.netns_cookie == 0 || self.asked.get(&event.netns_cookie).is_some_and(is_recent) {
            return;
        }
        self.asked.retain(|_, asked| is_recent(asked));
        let new = NewNetns {
            tgid: event.tgid,
            netns_cookie: event.netns_cookie,
            cgroup_id: event.cgroup_id,
        };
        // A full channel has work enough; who is refused now will try again.
        if self.asked.len() < BUSY && self.netns.try_send(new).is_ok() {
            self.asked.insert(event.netns_cookie, now);
        }
    }

    /// Every event that is there already, without waiting for more. False when the ring cannot be read.
    async fn take_waiting(&mut self, events: &mut EventRing) -> bool {
        for _ in 0..BUSY {
            let waiting = tokio::select! {
                biased;
                event = events.next() => event,
                () = ready(()) => return true,
            };
            match waiting {
                Ok(event) => self.notice(&event, Instant::now()),
                Err(error) => return self.unreadable(&error),
            }
        }
        true
    }

    fn unreadable(&self, error: &std::io::Error) -> bool {
        tracing::error!(%error, "the kernel's events cannot be read; denials are counted without samples");
        false
    }
}

/// One leaf before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    subtree: u64,
    reason: Denial,
    /// What is not on record yet.
    count: u64,
    /// The counter, which is on record when the leaf is.
    total: u64,
    samples: Vec<DeniedCall>,
}

/// What has to be written: every counter that is ahead of its record. Pure.
fn plan(
    counters: &[(u64, Counters)],
    on_record: impl Fn(u64, Denial) -> u64,
    samples: &HashMap<Key, Vec<DeniedCall>>,
) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for (subtree, counted) in counters {
        for reason in Denial::ALL {
            let total = total(counted, reason);
            // A counter behind its record belongs to a gateway that has just written more.
            let count = total.saturating_sub(on_record(*subtree, reason));
            if count > 0 {
                leaves.push(Leaf {
                    subtree: *subtree,
                    reason,
                    count,
                    total,
                    samples: samples_of(*subtree, reason, counters, samples),
                });
            }
        }
    }
    leaves
}

/// Events name the subtree even when its counts found no room.
fn samples_of(
    subtree: u64,
    reason: Denial,
    counters: &[(u64, Counters)],
    samples: &HashMap<Key, Vec<DeniedCall>>,
) -> Vec<DeniedCall> {
    let own = samples.get(&(subtree, reason as u32));
    if subtree != OVERFLOW {
        return own.cloned().unwrap_or_default();
    }
    let has_room = |subtree: u64| counters.iter().any(|(known, _)| *known == subtree);
    let homeless = samples
        .iter()
        .filter(|((subtree, of), _)| *of == reason as u32 && !has_room(*subtree))
        .map(|(_, calls)| calls);
    let all = own.into_iter().chain(homeless).flatten();
    all.take(SAMPLES).cloned().collect()
}

fn total(counters: &Counters, reason: Denial) -> u64 {
    counters
        .denied
        .get(reason as usize)
        .copied()
        .unwrap_or_default()
}

/// Turns counters into leaves.
struct Reporter {
    counters: Arc<CounterTable>,
    tree: Arc<AgentTree>,
    log: Arc<Log>,
    /// As far as this process knows; saves asking the kernel about counters that stand still.
    on_record: Mutex<HashMap<Key, u64>>,
}

#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error(transparent)]
    Kernel(#[from] InterceptError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Reporter {
    /// One pass, on a thread that may block. Samples are kept when it fails, for the next.
    async fn report(reporter: &Arc<Self>, noticed: &mut Noticed) {
        let samples = std::mem::take(&mut noticed.samples);
        let shared = Arc::clone(reporter);
        let passed = tokio::task::spawn_blocking(move || {
            let written = shared.pass(&samples);
            (written, samples)
        });
        match passed.await {
            Ok((Ok(()), _)) => {}
            Ok((Err(error), samples)) => {
                tracing::error!(%error, "kernel denials are not on record yet");
                noticed.samples = samples;
            }
            Err(error) => tracing::error!(%error, "kernel denials are not on record yet"),
        }
    }

    fn pass(&self, samples: &HashMap<Key, Vec<DeniedCall>>) -> Result<(), ReportError> {
        let counters = self.counters.read()?;
        let mut on_record = self
            .on_record
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.look_up_changed(&counters, &mut on_record)?;
        let recorded = |subtree, reason| {
            let known = on_record.get(&(subtree, reason as u32));
            known.copied().unwrap_or_default()
        };
        for leaf in plan(&counters, recorded, samples) {
            let (subtree, reason, total) = (leaf.subtree, leaf.reason, leaf.total);
            self.log.append(&self.event(leaf))?;
            on_record.insert((subtree, reason as u32), total);
            self.counters.set_reported(subtree, reason, total)?;
        }
        Ok(())
    }

    /// Asks the kernel again for the record of every counter that has moved: during a hand-over another
    /// process may have written.
    fn look_up_changed(
        &self,
        counters: &[(u64, Counters)],
        on_record: &mut HashMap<Key, u64>,
    ) -> Result<(), InterceptError> {
        for (subtree, counted) in counters {
            for reason in Denial::ALL {
                let total = total(counted, reason);
                let known = on_record.entry((*subtree, reason as u32)).or_default();
                if total > *known {
                    *known = self.counters.reported(*subtree, reason)?.max(*known);
                }
            }
        }
        Ok(())
    }

    fn event(&self, leaf: Leaf) -> Event {
        let located = match leaf.subtree {
            OVERFLOW => None,
            subtree => self.tree.locate(subtree).ok(),
        };
        let (cgroup, agent) = located
            .map(|located| (located.cgroup_path, located.agent))
            .unzip();
        Event::KernelDenied {
            agent: agent.flatten().map(|agent| agent.name.clone()),
            cgroup,
            cgroup_id: leaf.subtree,
            reason: leaf.reason.name().to_owned(),
            count: leaf.count,
            samples: leaf.samples,
        }
    }
}

fn reason(event: &KernelEvent) -> Option<Denial> {
    let index = usize::try_from(event.reason).ok()?;
    Denial::ALL.get(index).copied()
}

fn denied_call(event: &KernelEvent, reason: Denial) -> DeniedCall {
    DeniedCall {
        tgid: event.tgid,
        uid: event.uid,
        comm: until_zero(&event.comm).into_owned(),
        destination: destination(event.destination, event.port),
        protocol: protocol(event.protocol, reason),
    }
}

/// Nothing where the hook could not tell: neither an address nor a port.
fn destination(address: Address, port: u32) -> Option<String> {
    let ip = address.to_ip();
    match u16::try_from(port) {
        Ok(0) | Err(_) if ip.is_unspecified() => None,
        Ok(0) | Err(_) => Some(ip.to_string()),
        Ok(port) => Some(SocketAddr::new(ip, port).to_string()),
    }
}

fn protocol(number: u32, reason: Denial) -> Option<String> {
    match (reason, number) {
        (_, 0) => None,
        // There, it is the socket's type.
        (Denial::SocketKind, 3) => Some("raw".to_owned()),
        (Denial::SocketKind, number) => Some(number.to_string()),
        (_, IPPROTO_TCP) => Some("tcp".to_owned()),
        (_, IPPROTO_UDP) => Some("udp".to_owned()),
        (_, number) => Some(number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
