//! The maps that the gateway works with, by descriptor: the broker opens the pins as root, the gateway uses
//! what it is handed without any privilege.
//!
//! That needs Linux 5.19, or `kernel.unprivileged_bpf_disabled=0`: before, bpf(2) as a whole was closed.

use std::collections::BTreeSet;
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use aya::Pod;
use aya::maps::{Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type;
use gateway_ebpf::decide::Denial;
use gateway_ebpf::{
    Address, Counters, DatagramKey, Flow as KernelFlow, KernelEvent, ReportedKey, TargetKey,
};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::flow::Flow;
use super::{InterceptError, pins, sys};

/// Everything the gateway needs of the kernel side.
#[derive(Debug)]
pub struct Maps {
    pub flows: FlowTable,
    pub datagrams: DatagramTable,
    pub heartbeat: Heartbeat,
    pub targets: TargetTable,
    pub counters: CounterTable,
    pub events: EventRing,
}

/// What may be done through a descriptor that the gateway gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

const ENDOWMENT: [(&str, Access); 7] = [
    (pins::SK_ACC, Access::Read),
    (pins::DATAGRAMS, Access::Read),
    (pins::HEARTBEAT, Access::Write),
    (pins::TARGETS, Access::Write),
    (pins::COUNTERS, Access::Read),
    (pins::REPORTED, Access::Write),
    // Reading the ring moves its position.
    (pins::EVENTS, Access::Write),
];

impl Maps {
    /// The pins' names, in the order in which their descriptors travel.
    pub const NAMES: &'static [&'static str] = &[
        ENDOWMENT[0].0,
        ENDOWMENT[1].0,
        ENDOWMENT[2].0,
        ENDOWMENT[3].0,
        ENDOWMENT[4].0,
        ENDOWMENT[5].0,
        ENDOWMENT[6].0,
    ];

    /// Opens the pins, in the order of [`Self::NAMES`]. Needs root.
    pub fn open_pins(pins: &Path) -> Result<Vec<OwnedFd>, InterceptError> {
        let open = |(name, access): (&str, Access)| open_pin(pins, name, access);
        ENDOWMENT.into_iter().map(open).collect()
    }

    /// From descriptors in the order of [`Self::NAMES`]. Needs no privileges.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, InterceptError> {
        let count = fds.len();
        let Ok(
            [
                accepted,
                datagrams,
                heartbeat,
                targets,
                counters,
                reported,
                events,
            ],
        ) = <[OwnedFd; ENDOWMENT.len()]>::try_from(fds)
        else {
            return Err(InterceptError::bpf(
                "taking over the kernel maps",
                format!("{} descriptors, not {}", count, ENDOWMENT.len()),
            ));
        };
        Ok(Self {
            flows: FlowTable::new(accepted)?,
            datagrams: DatagramTable(Table::new(pins::DATAGRAMS, datagrams)?),
            heartbeat: Heartbeat(Table::new(pins::HEARTBEAT, heartbeat)?),
            targets: TargetTable(Table::new(pins::TARGETS, targets)?),
            counters: CounterTable {
                counters: Table::new(pins::COUNTERS, counters)?,
                reported: Table::new(pins::REPORTED, reported)?,
            },
            events: EventRing::new(events)?,
        })
    }

    /// Which maps these are. Needs no privileges.
    pub fn id(&self) -> Result<MapsId, InterceptError> {
        MapsId::of(self.heartbeat.0.fd())
    }

    /// The descriptors, in the order of [`Self::NAMES`], for a successor.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![
            self.flows.0.fd(),
            self.datagrams.0.fd(),
            self.heartbeat.0.fd(),
            self.targets.0.fd(),
            self.counters.counters.fd(),
            self.counters.reported.fd(),
            self.events.fd(),
        ]
    }
}

/// Tells a set of maps from the one before: unloading the guard and loading it again makes new ones, while a
/// gateway's descriptors keep the old ones, which no kernel program uses any more. It is the kernel's id of one
/// of them; ids are not used again before all have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapsId(u32);

impl MapsId {
    /// Of the maps that are pinned now. Needs root.
    pub fn pinned(pins: &Path) -> Result<Self, InterceptError> {
        Self::of(open_pin(pins, pins::HEARTBEAT, Access::Read)?.as_fd())
    }

    fn of(heartbeat: BorrowedFd<'_>) -> Result<Self, InterceptError> {
        let id = sys::map_id(heartbeat);
        id.map(Self)
            .map_err(|error| InterceptError::bpf("asking for the id of the map HEARTBEAT", error))
    }
}

fn open_pin(pins: &Path, name: &str, access: Access) -> Result<OwnedFd, InterceptError> {
    let path = pins::map(pins, name);
    let opened = match access {
        Access::Read => sys::open_pin_read_only(&path),
        Access::Write => sys::open_pin(&path),
    };
    opened.map_err(|error| {
        let hint = "is the guard loaded? `sluice guard load`";
        InterceptError::bpf(format!("opening {} ({hint})", path.display()), error)
    })
}

/// A map whose keys and values are as long as the types say: that is checked once, here.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    pub(super) fn new(name: &'static str, fd: OwnedFd) -> Result<Self, InterceptError> {
        let failed =
            |error: io::Error| InterceptError::bpf(format!("taking over the map {name}"), error);
        let shape = sys::map_shape(fd.as_fd()).map_err(failed)?;
        if (shape.key_size, shape.value_size) != (size_of::<K>() as u32, size_of::<V>() as u32) {
            return Err(failed(io::Error::other(format!(
                "it has another layout ({shape:?}): run `sluice guard load` of this version"
            ))));
        }
        Ok(Self {
            name,
            fd,
            types: PhantomData,
        })
    }

    pub(super) fn open(pins: &Path, name: &'static str) -> Result<Self, InterceptError> {
        Self::new(name, open_pin(pins, name, Access::Write)?)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, InterceptError> {
        // SAFETY: the sizes were compared when this was made.
        unsafe { sys::lookup(self.fd(), key) }.map_err(|error| self.failed("reading", error))
    }

    pub(super) fn set(&self, key: &K, value: &V) -> Result<(), InterceptError> {
        // SAFETY: as above.
        unsafe { sys::update(self.fd(), key, value) }.map_err(|error| self.failed("writing", error))
    }

    pub(super) fn remove(&self, key: &K) -> Result<(), InterceptError> {
        // SAFETY: as above.
        unsafe { sys::delete(self.fd(), key) }.map_err(|error| self.failed("removing from", error))
    }

    /// Every key there is. When entries come and go meanwhile, the walk may start anew; so it is bounded,
    /// and a key may appear twice.
    pub(super) fn keys(&self) -> Result<Vec<K>, InterceptError> {
        let shape = sys::map_shape(self.fd()).map_err(|error| self.failed("walking", error))?;
        let mut keys: Vec<K> = Vec::new();
        while keys.len() < 2 * shape.max_entries as usize {
            // SAFETY: as above.
            let next = unsafe { sys::next_key(self.fd(), keys.last()) };
            match next.map_err(|error| self.failed("walking", error))? {
                Some(key) => keys.push(key),
                None => break,
            }
        }
        Ok(keys)
    }

    fn failed(&self, doing: &str, error: io::Error) -> InterceptError {
        InterceptError::bpf(format!("{doing} the map {}", self.name), error)
    }
}

/// The flows of accepted sockets, read by the socket's descriptor.
#[derive(Debug)]
pub struct FlowTable(Table<i32, KernelFlow>);

impl FlowTable {
    fn new(fd: OwnedFd) -> Result<Self, InterceptError> {
        Ok(Self(Table::new(pins::SK_ACC, fd)?))
    }

    /// Opens the table that the guard pinned. Needs root.
    pub fn open(pins: &Path) -> Result<Self, InterceptError> {
        Self::new(open_pin(pins, pins::SK_ACC, Access::Read)?)
    }

    /// The flow of a socket that accept(2) returned. `None`: it was not redirected here, nobody vouches for it.
    pub fn flow_of(&self, socket: BorrowedFd<'_>) -> Result<Option<Flow>, InterceptError> {
        self.0.get(&socket.as_raw_fd())?.map(user_flow).transpose()
    }
}

/// Who sent the datagrams that arrive at the resolver.
#[derive(Debug)]
pub struct DatagramTable(Table<DatagramKey, KernelFlow>);

impl DatagramTable {
    /// The flow of a datagram that came from `source`, in the network namespace with this cookie. `None`: it
    /// did not come through the kernel programs.
    pub fn flow_of(
        &self,
        netns_cookie: u64,
        source: SocketAddr,
    ) -> Result<Option<Flow>, InterceptError> {
        let key = DatagramKey {
            netns_cookie,
            source: kernel_address(source.ip()),
            source_port: source.port(),
            reserved: [0; 3],
        };
        self.0.get(&key)?.map(user_flow).transpose()
    }
}

fn user_flow(flow: KernelFlow) -> Result<Flow, InterceptError> {
    Flow::of(flow).ok_or_else(|| {
        let cause = "its kind is unknown: the guard is of another version, run `sluice guard load`";
        InterceptError::bpf("reading a flow", cause)
    })
}

/// The gateway's sign of life. Without a recent one, agents' connects fail at once.
#[derive(Debug)]
pub struct Heartbeat(Table<u32, u64>);

impl Heartbeat {
    pub fn beat(&self) -> Result<(), InterceptError> {
        // At 0 the kernel programs take the gateway for dead.
        self.0.set(&0, &monotonic_ns()?)
    }

    /// How long ago the last beat was; `None` when the gateway said that it stops, or never was.
    pub fn age(&self) -> Result<Option<Duration>, InterceptError> {
        let last = self.0.get(&0)?.unwrap_or(0);
        let age = monotonic_ns()?.saturating_sub(last);
        Ok((last != 0).then(|| Duration::from_nanos(age)))
    }

    /// From now on connects fail, without waiting until the last beat is stale.
    pub fn stop(&self) -> Result<(), InterceptError> {
        self.0.set(&0, &0)
    }
}

fn monotonic_ns() -> Result<u64, InterceptError> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|error| InterceptError::bpf("reading the clock", error))?;
    // Both are positive.
    Ok(now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs())
}

/// The destinations the kernel redirects; everything else it refuses by itself.
#[derive(Debug)]
pub struct TargetTable(Table<TargetKey, u32>);

impl TargetTable {
    /// Makes these the destinations. It adds before it removes, so one that stays is never missing.
    pub fn replace(&self, all: &BTreeSet<SocketAddr>) -> Result<(), InterceptError> {
        let canonical = |at: &SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let wanted: BTreeSet<SocketAddr> = all.iter().map(canonical).collect();
        for destination in &wanted {
            self.0.set(&target_key(*destination), &1)?;
        }
        for key in self.0.keys()? {
            if !wanted.contains(&SocketAddr::new(key.address.to_ip(), key.port)) {
                self.0.remove(&key)?;
            }
        }
        Ok(())
    }
}

fn target_key(destination: SocketAddr) -> TargetKey {
    TargetKey {
        address: kernel_address(destination.ip()),
        port: destination.port(),
        reserved: 0,
    }
}

pub(super) fn kernel_address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*chunk);
    }
    Address(words)
}

/// What each agent's subtree did, and how much of it is in the evidence log.
#[derive(Debug)]
pub struct CounterTable {
    counters: Table<u64, Counters>,
    reported: Table<ReportedKey, u64>,
}

impl CounterTable {
    /// All counters by subtree; 0 is what found no room.
    pub fn read(&self) -> Result<Vec<(u64, Counters)>, InterceptError> {
        read_counters(&self.counters)
    }

    pub fn reported(&self, subtree: u64, reason: Denial) -> Result<u64, InterceptError> {
        let count = self.reported.get(&reported_key(subtree, reason))?;
        Ok(count.unwrap_or(0))
    }

    pub fn set_reported(
        &self,
        subtree: u64,
        reason: Denial,
        count: u64,
    ) -> Result<(), InterceptError> {
        self.reported.set(&reported_key(subtree, reason), &count)
    }
}

pub(super) fn read_counters(
    table: &Table<u64, Counters>,
) -> Result<Vec<(u64, Counters)>, InterceptError> {
    let subtrees: BTreeSet<u64> = table.keys()?.into_iter().collect();
    let mut all = Vec::with_capacity(subtrees.len());
    for subtree in subtrees {
        if let Some(counters) = table.get(&subtree)? {
            all.push((subtree, counters));
        }
    }
    Ok(all)
}

fn reported_key(subtree: u64, reason: Denial) -> ReportedKey {
    ReportedKey {
        subtree,
        reason: reason as u32,
        reserved: 0,
    }
}

/// What the kernel programs tell as it happens. The ring has room for some thousand events and drops what
/// comes when it is full; the counters do not.
#[derive(Debug)]
pub struct EventRing {
    fd: OwnedFd,
    /// Mapped when the first event is asked for: the reading position is taken over then, and until then
    /// another process may be reading.
    reader: Option<Reader>,
}

struct Reader {
    ring: RingBuf<MapData>,
    readable: AsyncFd<OwnedFd>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl EventRing {
    fn new(fd: OwnedFd) -> Result<Self, InterceptError> {
        let failed = |error| InterceptError::bpf("taking over the map EVENTS", error);
        let shape = sys::map_shape(fd.as_fd()).map_err(failed)?;
        if shape.kind != bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
            return Err(failed(io::Error::other("not a ring buffer")));
        }
        Ok(Self { fd, reader: None })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next event; waits until there is one. Cancelling it loses none. One process at a time may read.
    pub async fn next(&mut self) -> io::Result<KernelEvent> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            empty => empty.insert(Reader::open(self.fd.as_fd())?),
        };
        reader.next().await
    }
}

impl Reader {
    fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = MapData::from_fd(fd.try_clone_to_owned()?)
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map_err(io::Error::other)?;
        let fd = fd.try_clone_to_owned()?;
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, here with the AsyncFd.
        let readable = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { ring, readable })
    }

    async fn next(&mut self) -> io::Result<KernelEvent> {
        loop {
            if let Some(event) = take(&mut self.ring) {
                return Ok(event);
            }
            let mut ready = self.readable.readable().await?;
            // Only what was seen before is cleared: an event in between makes it readable again.
            ready.clear_ready();
            if let Some(event) = take(&mut self.ring) {
                return Ok(event);
            }
        }
    }
}

/// An event of another length is another version's; it is passed over.
fn take(ring: &mut RingBuf<MapData>) -> Option<KernelEvent> {
    while let Some(item) = ring.next() {
        if item.len() == size_of::<KernelEvent>() {
            // SAFETY: as many bytes as the type has, and every bit pattern is a value of it.
            return Some(unsafe { item.as_ptr().cast::<KernelEvent>().read_unaligned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_the_kernel_form() {
        for text in ["192.0.2.7", "127.0.0.1", "2001:db8::1:2", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(kernel_address(ip).to_ip(), ip, "{text}");
        }
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(
            kernel_address(mapped),
            kernel_address("192.0.2.7".parse().unwrap())
        );
    }

    #[test]
    fn what_the_gateway_holds_can_be_shared_between_tasks() {
        fn shared<T: Send + Sync>() {}
        shared::<Maps>();
        shared::<EventRing>();
    }
}
