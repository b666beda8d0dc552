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

/// Less than the second that is promised: a busy host needs the rest for the writing itself.
const PERIOD: Duration = Duration::from_millis(750);

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
            () = told_to_stop(&mut stop) => break,
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

async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error says that nobody is left to tell.
    let _ = stop.wait_for(|stop| *stop).await;
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
mod tests;
