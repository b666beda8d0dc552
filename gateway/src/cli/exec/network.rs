//! The network of an isolated agent: loopback, and a dummy interface with addresses and default routes that
//! lead nowhere.
//!
//! The dummy is for programs that look before they connect: `AI_ADDRCONFIG` gives no addresses of a family
//! the host has none of, and connect(2) without a route fails before any kernel program runs. There is no
//! uplink: what no kernel program redirects ends in the dummy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Error, Handle, LinkDummy, LinkIfb, LinkUnspec, RouteMessageBuilder};

use crate::config;

const INTERFACE: &str = "dummy0";

/// What the agent has for addresses when the configuration names none: one of those for documentation (RFC
/// 5737), and a unique local one (RFC 4193).
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x6c75, 0x6963, 0x6500, 0, 0, 0, 2);

/// Loopback is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// Sets up the network namespace this process is in, which must be new.
pub fn set_up(kernel: &config::Kernel) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection().context("opening netlink")?;
        tokio::spawn(connection);
        add_interfaces(&netlink).await?;
        let index = if_nametoindex(INTERFACE).context("finding the dummy interface")?;
        let address = kernel.local_address.unwrap_or(ADDRESS);
        add_ipv4(&netlink, index, address)
            .await
            .with_context(|| format!("giving {INTERFACE} the address {address}"))?;
        let address6 = kernel.local_address6.unwrap_or(ADDRESS6);
        match add_ipv6(&netlink, index, address6).await {
            Err(error) if !is_without_ipv6(&error) => {
                Err(error).with_context(|| format!("giving {INTERFACE} the address {address6}"))
            }
            _ => Ok(()),
        }
    })
}

async fn add_interfaces(netlink: &Handle) -> Result<()> {
    let loopback = LinkUnspec::new_with_index(LOOPBACK).up().build();
    let up = netlink.link().set(loopback).execute().await;
    up.context("bringing lo up")?;
    // Without a filter that feeds it, an ifb drops everything too; some kernels have only the one.
    let kinds: [LinkMessage; 2] = [
        LinkDummy::new(INTERFACE).up().build(),
        LinkIfb::new(INTERFACE).up().build(),
    ];
    for kind in kinds {
        match netlink.link().add(kind).execute().await {
            Ok(()) => return Ok(()),
            Err(error) if errno(&error) == libc::EOPNOTSUPP => {}
            Err(error) => return Err(error).context("adding the dummy interface"),
        }
    }
    bail!("this kernel has no dummy interfaces: `modprobe dummy`, or build it with CONFIG_DUMMY")
}

async fn add_ipv4(netlink: &Handle, index: u32, address: Ipv4Addr) -> Result<(), Error> {
    let request = netlink.address().add(index, IpAddr::V4(address), 32);
    request.execute().await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(index)
        .scope(RouteScope::Link);
    add_route(netlink, route.build()).await
}

async fn add_ipv6(netlink: &Handle, index: u32, address: Ipv6Addr) -> Result<(), Error> {
    let mut request = netlink.address().add(index, IpAddr::V6(address), 128);
    // It is the only one on this link: without asking whether it is taken, it can be used at once.
    request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    request.execute().await?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index);
    add_route(netlink, route.build()).await
}

async fn add_route(netlink: &Handle, route: RouteMessage) -> Result<(), Error> {
    netlink.route().add(route).execute().await
}

/// Not built in, not loaded, or turned off: then the agent has none, like the host.
fn is_without_ipv6(error: &Error) -> bool {
    matches!(
        errno(error),
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EACCES
    )
}

fn errno(error: &Error) -> i32 {
    match error {
        Error::NetlinkError(message) => -message.raw_code(),
        _ => 0,
    }
}
