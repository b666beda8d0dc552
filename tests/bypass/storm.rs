//! Many connects at once, tables that are full, and programs that are replaced meanwhile: no flow is lost, mixed
//! up or left over, and nobody gets past.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use gateway::intercept::Denial;
use gateway_ebpf::{Address, ConnKey, Flow};

use super::attack::NOBODY;
use super::sheet::Sheet;
use super::site::Attended;

const CLIENTS: u16 = 64;
/// Together a little more than 10,000.
const EACH: u16 = 157;

/// What client `number` dials the `n`th time; the attack computes the same (`storm_place` in tcp.c).
fn place(number: u16, n: u16) -> SocketAddr {
    let port = if n % 8 == 7 { 9 } else { 10_000 + n };
    let low = (n % 251 + 1) as u8;
    let address = match n % 3 {
        0 => IpAddr::from([10, 200, number as u8, low]),
        1 => IpAddr::from(Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, number, n)),
        _ => IpAddr::from([10, 201, number as u8, low]),
    };
    SocketAddr::new(address, port)
}

/// Every connect of the storm, and where it goes.
fn connects() -> impl Iterator<Item = (u16, u16)> {
    (0..CLIENTS).flat_map(|number| (0..EACH).map(move |n| (number, n)))
}

fn is_target(n: u16) -> bool {
    n % 8 != 7
}

/// What the gateway's side saw.
#[derive(Default)]
struct Seen {
    /// By original destination: which client's mark came, or none where the client closed at once.
    originals: BTreeMap<SocketAddr, Option<(u16, u16)>>,
    wrong: Vec<String>,
}

#[test]
fn ten_thousand_connects_from_sixty_four_clients() {
    let host = Attended::start();
    let mut sheet = Sheet::new("Many at once", host.capture());
    let targets: BTreeSet<SocketAddr> = connects()
        .filter(|(_, n)| is_target(*n))
        .map(|(number, n)| place(number, n))
        .collect();
    host.maps.targets.replace(&targets).expect("there is room");
    sheet.row(
        "10,048 connects of 64 clients: IPv4, IPv6, mapped",
        "CONNS by 4-tuple and namespace, SK_ACC by socket",
        || {
            let seen = Mutex::new(Seen::default());
            let over = AtomicBool::new(false);
            let (clients, each) = (CLIENTS.to_string(), EACH.to_string());
            let said = thread::scope(|scope| {
                for listener in &host.tcp {
                    // Two at each listener: one that waits for its client's mark holds nobody up.
                    for _ in 0..2 {
                        scope.spawn(|| serve(&host, listener, &seen, &over));
                    }
                }
                let said = host.site.bot().attack(["tcp_storm", &clients, &each]);
                thread::sleep(Duration::from_millis(500));
                over.store(true, Ordering::Relaxed);
                said
            });
            let seen = seen.into_inner().expect("nobody panicked");
            if let Some(wrong) = seen.wrong.first() {
                return Err(format!("{} flows are wrong: {wrong}", seen.wrong.len()));
            }
            let missing = targets
                .iter()
                .filter(|target| !seen.originals.contains_key(target));
            let missing: Vec<_> = missing.collect();
            let more = seen
                .originals
                .keys()
                .filter(|original| !targets.contains(original))
                .count();
            if !missing.is_empty() || more > 0 {
                return Err(format!(
                    "{} of {} are missing, {more} should not be there: {missing:?}",
                    missing.len(),
                    targets.len()
                ));
            }
            let all = u64::from(CLIENTS) * u64::from(EACH);
            let redirected = targets.len() as u64;
            let client = |name: &str| said.last(name).as_u64().unwrap_or_default();
            if (client("done"), client("refused"), client("failed"))
                != (redirected, all - redirected, 0)
            {
                return Err(format!("the clients say {:?} {}", said.lines, said.stderr));
            }
            let counters = host.site.counters().ok_or("the kernel counts nothing")?;
            let counted = (
                counters.connects,
                counters.redirected,
                counters.denied[Denial::NoTarget as usize],
            );
            if counted != (all, redirected, all - redirected) {
                return Err(format!("the kernel counts {counted:?}"));
            }
            match host.site.report().handshakes {
                0 => Ok(format!(
                    "{redirected} flows exact, {} refused, none missing, mixed up or left over",
                    all - redirected
                )),
                left => Err(format!("{left} entries are left over in CONNS")),
            }
        },
    );
    sheet.finish();
}

fn serve(host: &Attended, listener: &TcpListener, seen: &Mutex<Seen>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let outcome = examine(host, stream);
        let mut seen = seen.lock().expect("nobody panicked");
        match outcome {
            Ok((original, mark)) => {
                if seen.originals.insert(original, mark).is_some() {
                    seen.wrong.push(format!("{original} came twice"));
                }
            }
            Err(wrong) => seen.wrong.push(wrong),
        }
    }
}

/// The flow of an accepted socket, checked against what its client says of itself.
fn examine(
    host: &Attended,
    mut stream: TcpStream,
) -> Result<(SocketAddr, Option<(u16, u16)>), String> {
    let flow = host.flow_of(&stream).ok_or("a connection without a flow")?;
    if (flow.uid, flow.cgroup_id) != (NOBODY, host.site.bot_id()) {
        return Err(format!("somebody else's flow: {flow:?}"));
    }
    stream
        .set_nonblocking(false)
        .map_err(|error| error.to_string())?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .map_err(|error| error.to_string())?;
    let mut mark = [0; 8];
    match stream.read_exact(&mut mark) {
        Ok(()) => {
            let [number, n] = [0, 4].map(|at| {
                u32::from_ne_bytes([mark[at], mark[at + 1], mark[at + 2], mark[at + 3]]) as u16
            });
            match place(number, n) == flow.original {
                true => Ok((flow.original, Some((number, n)))),
                false => Err(format!(
                    "{} is the flow of client {number}, connect {n}",
                    flow.original
                )),
            }
        }
        // Closed at once, or reset.
        Err(_) => {
            let closes =
                connects().any(|(number, n)| n % 5 == 4 && place(number, n) == flow.original);
            match closes {
                true => Ok((flow.original, None)),
                false => Err(format!("{} sent nothing", flow.original)),
            }
        }
    }
}

/// Someone fills the table of handshakes: connects are refused by the gateway, which finds no flow, and never
/// go elsewhere.
#[test]
fn the_table_of_handshakes_is_full() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Full tables", host.capture());
    let bot = host.site.bot();
    sheet.row("CONNS is full", "no entry: the gateway resets", || {
        let full = fill_handshakes(&host);
        let said = bot.attack(["tcp_connect", "192.0.2.7", "5432"]);
        match host.accept_within(Duration::from_secs(1)) {
            Some(stream) if host.flow_of(&stream).is_none() => {
                Ok(format!("{full} entries; connection without a flow"))
            }
            Some(_) => Err("there was room".to_owned()),
            None if said.errno() != "ok" => Ok(format!("{full} entries; {}", said.errno())),
            None => Err(said.story()),
        }
    });
    sheet.row("CONNS has room again", "", || {
        empty_handshakes(&host);
        host.redirected(
            &bot,
            &["tcp_connect", "192.0.2.7", "5432"],
            &["192.0.2.7:5432"],
        )
    });
    sheet.row(
        "the ring of events is full",
        "the verdict does not depend on it",
        || {
            // Nobody reads it, and 256 KiB are fewer than 3,000 events.
            let before = host.site.denied(Denial::Datagram);
            let said = bot.attack(["udp_often", "192.0.2.7", "9", "10000"]);
            let counted = host.site.denied(Denial::Datagram) - before;
            let refused = said.last("refused").as_u64();
            match (refused, counted) {
                (Some(10_000), 10_000) => Ok("10,000 denied, 10,000 counted".to_owned()),
                _ => Err(format!("{refused:?} denied, {counted} counted")),
            }
        },
    );
    sheet.finish();
}

fn handshakes(host: &Attended) -> HashMap<MapData, ConnKey, Flow> {
    let pin = host.site.kernel.pins.join("maps-2/CONNS");
    let data = MapData::from_pin(&pin).expect("the guard is loaded");
    HashMap::try_from(Map::HashMap(data)).expect("it is a hash of this version")
}

/// Entries of connections that never were, until there is no room.
fn fill_handshakes(host: &Attended) -> usize {
    let mut table = handshakes(host);
    // SAFETY: every bit pattern is a Flow.
    let nothing: Flow = unsafe { std::mem::zeroed() };
    (0..70_000u32)
        .take_while(|n| {
            let key = ConnKey {
                netns_cookie: u64::MAX,
                source: Address([*n; 4]),
                destination: Address([0; 4]),
                source_port: 1,
                destination_port: 1,
                reserved: 0,
            };
            table.insert(key, nothing, 0).is_ok()
        })
        .count()
}

fn empty_handshakes(host: &Attended) {
    let mut table = handshakes(host);
    let keys: Vec<ConnKey> = table.keys().flatten().collect();
    for key in keys {
        let _ = table.remove(&key);
    }
}

/// `guard load` replaces every program in place; agents that connect all the time notice nothing.
#[test]
fn programs_are_replaced_under_load() {
    let host = Attended::start();
    let mut sheet = Sheet::new("Upgrade of the programs", host.capture());
    sheet.row(
        "guard load, again and again, 8 agents connecting",
        "BPF_LINK_UPDATE",
        || {
            let agents: Vec<_> = (0..8)
                .map(|_| {
                    host.site
                        .bot()
                        .start(["tcp_loop", "192.0.2.7", "5432", "2"])
                })
                .collect();
            let (over, flows, strangers) =
                (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
            let (loads, answers) = thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        match host.accept_within(Duration::from_millis(100)) {
                            Some(stream) if host.flow_of(&stream).is_some() => {
                                flows.fetch_add(1, Ordering::Relaxed)
                            }
                            Some(_) => strangers.fetch_add(1, Ordering::Relaxed),
                            None => 0,
                        };
                    }
                });
                let loads = 10;
                for _ in 0..loads {
                    host.site.load_guard();
                    thread::sleep(Duration::from_millis(50));
                }
                let answers: Vec<String> = agents
                    .into_iter()
                    .flat_map(|agent| agent.end())
                    .map(|line| {
                        format!(
                            "{} {}",
                            line["answer"].as_str().unwrap_or_default(),
                            line["times"]
                        )
                    })
                    .collect();
                thread::sleep(Duration::from_millis(300));
                over.store(true, Ordering::Relaxed);
                (loads, answers)
            });
            let (flows, strangers) = (flows.into_inner(), strangers.into_inner());
            if answers.iter().any(|answer| !answer.starts_with("ok ")) {
                return Err(format!("not every connect succeeded: {answers:?}"));
            }
            let connects: u64 = answers
                .iter()
                .filter_map(|answer| answer.split(' ').nth(1)?.parse::<u64>().ok())
                .sum();
            match (strangers, flows == connects) {
                (0, true) => Ok(format!(
                    "{loads} loads, {connects} connects, all redirected, all with their flow"
                )),
                _ => Err(format!(
                    "{connects} connects, {flows} flows, {strangers} without a flow"
                )),
            }
        },
    );
    sheet.finish();
}
