//! Where the gateway listens: which network namespaces are registered, and the program that gives
//! connections to its port to its sockets only, so that nobody else can take the port over while it is down.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::Map;
use gateway_ebpf::Listener;

use super::maps::Table;
use super::object::{Object, Shared};
use super::{InterceptError, hooks, pins, sys};

/// Says that the gateway listens in a network namespace, or (`None`) no longer does. Agents in others are
/// refused by the kernel. Needs root.
pub fn register_netns(
    pins: &Path,
    cookie: u64,
    listener: Option<Listener>,
) -> Result<(), InterceptError> {
    let listeners: Table<u64, Listener> = Table::open(pins, pins::LISTENERS)?;
    match listener {
        Some(listener) => listeners.set(&cookie, &listener),
        None => listeners.remove(&cookie),
    }
}

/// The cookies of the registered network namespaces. Needs root.
pub fn registered_netns(pins: &Path) -> Result<Vec<u64>, InterceptError> {
    Table::<u64, Listener>::open(pins, pins::LISTENERS)?.keys()
}

/// Makes these the sockets that connections to the gateway's port reach in the host's network namespace:
/// TCP of IPv4 and IPv6, UDP of IPv4 and IPv6. Needs root.
pub fn publish_sockets(
    pins: &Path,
    sockets: [Option<BorrowedFd<'_>>; 4],
) -> Result<(), InterceptError> {
    fill(&Table::open(pins, pins::SOCKETS)?, sockets)
}

fn fill(
    table: &Table<u32, u32>,
    sockets: [Option<BorrowedFd<'_>>; 4],
) -> Result<(), InterceptError> {
    for (index, socket) in (0..).zip(sockets) {
        match socket {
            // The kernel forgets a socket by itself when it is closed.
            Some(socket) => table.set(&index, &(socket.as_raw_fd() as u32))?,
            // A slot that is empty already is an error of its own kind (EINVAL).
            None => drop(table.remove(&index)),
        }
    }
    Ok(())
}

/// The program that watches the gateway's port in one other network namespace. Dropping it detaches it.
#[derive(Debug)]
pub struct NetnsLookup {
    _link: OwnedFd,
}

/// Watches the gateway's port in `netns`, so that it leads to these sockets only. Needs root.
pub fn attach_lookup(
    pins: &Path,
    netns: BorrowedFd<'_>,
    sockets: [Option<BorrowedFd<'_>>; 4],
) -> Result<NetnsLookup, InterceptError> {
    let failed =
        |error: io::Error| InterceptError::bpf("watching the gateway's port in a namespace", error);
    // A map of its own for the sockets; the settings are the pinned ones.
    let mut object = Object::open(pins, Shared::AllButSockets)?;
    let Some(Map::SockMap(map)) = object.programs.map(pins::SOCKETS) else {
        return Err(InterceptError::ObjectLacks(pins::SOCKETS));
    };
    let map = map.fd().as_fd().try_clone_to_owned().map_err(failed)?;
    fill(&Table::new(pins::SOCKETS, map)?, sockets)?;
    let program = hooks::load(&mut object, hooks::PORT_LOOKUP)?;
    let link = sys::link(program.as_fd(), netns, hooks::PORT_LOOKUP.attach_type).map_err(failed)?;
    Ok(NetnsLookup { _link: link })
}
