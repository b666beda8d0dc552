//! TCP: every way to connect goes to the gateway, with the destination and the identity exact.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use super::attack::{Place, socket_from};
use super::outside_reaches_the_peer;
use super::sheet::Sheet;
use super::site::{Attended, PORT};
use crate::harness::uplink::{DEVICE, HOST, HOST6};

#[test]
fn every_kind_of_connect_is_redirected() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("TCP", host.capture());
    outside_reaches_the_peer(&host.site, &mut sheet);
    let bot = host.site.bot();
    let rows: [(&str, &str, &[&str], &[&str]); 19] = [
        (
            "connect, IPv4",
            "connect4",
            &["tcp_connect", "192.0.2.7", "5432"],
            &["192.0.2.7:5432"],
        ),
        (
            "connect, IPv6",
            "connect6",
            &["tcp_connect", "2001:db8::7", "5432"],
            &["[2001:db8::7]:5432"],
        ),
        (
            "connect, IPv4 mapped into IPv6",
            "connect6",
            &["tcp_connect", "::ffff:192.0.2.7", "5432"],
            &["192.0.2.7:5432"],
        ),
        (
            "connect, on the same link",
            "connect4",
            &["tcp_connect", "10.77.0.2", "5432"],
            &["10.77.0.2:5432"],
        ),
        (
            "connect to the gateway's port number elsewhere",
            "connect4",
            &["tcp_connect", "192.0.2.7", "15001"],
            &["192.0.2.7:15001"],
        ),
        (
            "connect, non-blocking",
            "connect4",
            &["tcp_nonblocking", "192.0.2.7", "5432"],
            &["192.0.2.7:5432"],
        ),
        (
            "connect, non-blocking, IPv6",
            "connect6",
            &["tcp_nonblocking", "2001:db8::7", "5432"],
            &["[2001:db8::7]:5432"],
        ),
        (
            "connect from a loopback address of its choice",
            "connect4",
            &["tcp_from", "192.0.2.7", "5432", "127.0.0.9"],
            &["192.0.2.7:5432"],
        ),
        (
            "connect from the host's address",
            "connect4",
            &["tcp_from", "192.0.2.7", "5432", HOST],
            &["192.0.2.7:5432"],
        ),
        (
            "connect from the host's address, IPv6",
            "connect6",
            &["tcp_from", "2001:db8::7", "5432", HOST6],
            &["[2001:db8::7]:5432"],
        ),
        (
            "sendto with MSG_FASTOPEN",
            "connect4",
            &["tcp_fastopen", "192.0.2.7", "5432"],
            &["192.0.2.7:5432"],
        ),
        (
            "sendto with MSG_FASTOPEN, data in the SYN",
            "connect4",
            &["tcp_fastopen", "192.0.2.7", "5432", "cookieless"],
            &["192.0.2.7:5432"],
        ),
        (
            "sendto with MSG_FASTOPEN, IPv6",
            "connect6",
            &["tcp_fastopen", "2001:db8::7", "5432", "cookieless"],
            &["[2001:db8::7]:5432"],
        ),
        (
            "TCP_FASTOPEN_CONNECT",
            "connect4",
            &["tcp_fastopen_connect", "192.0.2.7", "5432"],
            &["192.0.2.7:5432"],
        ),
        (
            "dissolved by AF_UNSPEC, connected again",
            "connect4",
            &["tcp_again", "192.0.2.7", "5432", "10.77.0.2", "80"],
            &["192.0.2.7:5432", "10.77.0.2:80"],
        ),
        (
            "IP_UNICAST_IF",
            "connect4",
            &["tcp_unicast_if", "192.0.2.7", "5432", DEVICE],
            &["192.0.2.7:5432"],
        ),
        (
            "IPV6_UNICAST_IF",
            "connect6",
            &["tcp_unicast_if", "2001:db8::7", "5432", DEVICE],
            &["[2001:db8::7]:5432"],
        ),
        (
            "SO_DONTROUTE",
            "connect4",
            &["tcp_dontroute", "10.77.0.2", "5432"],
            &["10.77.0.2:5432"],
        ),
        (
            "under another program's name (prctl)",
            "identity is cgroup and process, not comm",
            &["tcp_renamed", "192.0.2.7", "5432", "sluice"],
            &["192.0.2.7:5432"],
        ),
    ];
    for (attack, hook, words, originals) in rows {
        sheet.row(attack, hook, || host.redirected(&bot, words, originals));
    }
    for (attack, words) in [
        (
            "io_uring: socket and connect",
            &["uring_connect", "192.0.2.7", "5432"][..],
        ),
        (
            "io_uring, polled by a kernel thread",
            &["uring_connect", "192.0.2.7", "5432", "polled"],
        ),
    ] {
        sheet.row(attack, "connect4", || {
            host.redirected(&bot, words, &["192.0.2.7:5432"])
        });
    }
    sheet.row("io_uring, polled, IPv6", "connect6", || {
        let words = ["uring_connect", "2001:db8::7", "5432", "polled"];
        host.redirected(&bot, &words, &["[2001:db8::7]:5432"])
    });
    sheet.row(
        "bound to the uplink before connect",
        "connect4: bound-device",
        || {
            let words = ["tcp_device_before", "192.0.2.7", "5432", DEVICE];
            host.refused(&bot, &words, &["EPERM"])
        },
    );
    sheet.row(
        "bound to the uplink before connect, IPv6",
        "connect6: bound-device",
        || {
            let words = ["tcp_device_before", "2001:db8::7", "5432", DEVICE];
            host.refused(&bot, &words, &["EPERM"])
        },
    );
    for (attack, peer, source) in [
        ("bound to the uplink after connect", "192.0.2.7", ""),
        (
            "bound to the uplink after connect, from the host's address",
            "192.0.2.7",
            HOST,
        ),
        (
            "bound to the uplink after connect, IPv6",
            "2001:db8::7",
            HOST6,
        ),
    ] {
        sheet.row(attack, "egress: not loopback", || {
            // The connection itself is good; what matters is that nothing goes over the uplink.
            let said = bot.attack(["tcp_device_after", peer, "5432", DEVICE, source]);
            let connected = host.accept_within(Duration::from_secs(2));
            match connected.and_then(|stream| host.flow_of(&stream)) {
                Some(_) => Ok(format!("redirected; then {}", said.story().trim())),
                None => Err(said.story()),
            }
        });
    }
    for (attack, hook, target, via) in [
        (
            "source route over the peer (IP_OPTIONS)",
            "needs CAP_NET_RAW",
            "192.0.2.7",
            "10.77.0.2",
        ),
        (
            "segment routing over the peer (IPV6_RTHDR)",
            "egress: not loopback",
            "2001:db8::7",
            "fd00:77::2",
        ),
    ] {
        sheet.row(attack, hook, || {
            let said = bot.attack(["tcp_source_route", target, "5432", via]);
            host.accept_within(Duration::ZERO);
            Ok(said.story().trim().to_owned())
        });
    }
    for (attack, target, listen, free) in [
        (
            "with a listener of its own on every address",
            "192.0.2.7",
            "0.0.0.0",
            "",
        ),
        (
            "with a listener of its own on every address, IPv6",
            "2001:db8::7",
            "::",
            "",
        ),
        (
            "with a listener of its own on the peer's address (IP_FREEBIND)",
            "192.0.2.7",
            "192.0.2.7",
            "free",
        ),
        (
            "with a listener of its own on the peer's address, IPv6",
            "2001:db8::7",
            "2001:db8::7",
            "free",
        ),
    ] {
        sheet.row(attack, "egress: not loopback", || {
            let said = bot.attack(["tcp_own_listener", target, "4444", listen, free]);
            match said.errno().as_str() {
                "ok" => Err(said.story()),
                errno => Ok(errno.to_owned()),
            }
        });
    }
    sheet.row(
        "turned from IPv6 to IPv4 (IPV6_ADDRFORM), connected again",
        "connect6, connect4",
        || {
            let words = [
                "tcp_converted",
                "::ffff:192.0.2.7",
                "5432",
                "10.77.0.2",
                "80",
            ];
            host.redirected(&bot, &words, &["192.0.2.7:5432", "10.77.0.2:80"])
        },
    );
    for (attack, hook, host_, port) in [
        (
            "connect to an address that is no target",
            "connect4: no-target",
            "192.0.2.7",
            "4444",
        ),
        (
            "connect to an address that is no target, IPv6",
            "connect6: no-target",
            "2001:db8::7",
            "4444",
        ),
        (
            "connect to an address that is no target, mapped",
            "connect6: no-target",
            "::ffff:192.0.2.7",
            "4444",
        ),
        (
            "DNS over TLS",
            "connect4: no-target",
            "198.51.100.53",
            "853",
        ),
    ] {
        sheet.row(attack, hook, || {
            host.refused(&bot, &["tcp_connect", host_, port], &["ECONNREFUSED"])
        });
    }
    for (attack, hook, host_) in [
        (
            "the metadata service",
            "connect4: link-local",
            "169.254.169.254",
        ),
        (
            "the metadata service, mapped",
            "connect6: link-local",
            "::ffff:169.254.169.254",
        ),
        ("link-local IPv6", "connect6: link-local", "fe80::2%1"),
        ("multicast", "connect4: many", "224.0.0.1"),
        ("broadcast", "connect4: many", "255.255.255.255"),
        ("multicast, IPv6", "connect6: many", "ff02::1"),
    ] {
        sheet.row(attack, hook, || {
            host.refused(&bot, &["tcp_connect", host_, "80"], &["EPERM"])
        });
    }
    let gateway = PORT.to_string();
    for (attack, host_) in [
        ("the gateway itself", "127.0.0.1"),
        (
            "the gateway itself, by another loopback address",
            "127.1.2.3",
        ),
        ("the gateway itself, by 0.0.0.0", "0.0.0.0"),
        ("the gateway itself, IPv6", "::1"),
        ("the gateway itself, by ::", "::"),
        ("the gateway itself, mapped", "::ffff:127.0.0.1"),
    ] {
        sheet.row(attack, "connect: gateway-itself", || {
            host.refused(&bot, &["tcp_connect", host_, &gateway], &["EPERM"])
        });
    }
    sheet.finish();
}

/// A flow is the connecting process's, wherever the socket goes and whatever cgroup below it is in.
#[test]
fn what_was_made_inside_stays_inside() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("TCP, whose", host.capture());
    let bot = host.site.bot();
    for depth in ["bot/child", "bot/child/grandchild"] {
        let nested = bot.in_group(host.site.agents_group().join(depth));
        sheet.row(
            &format!("from the cgroup {depth}"),
            "inherited by child cgroups",
            || {
                host.redirected(
                    &nested,
                    &["tcp_connect", "192.0.2.7", "5432"],
                    &["192.0.2.7:5432"],
                )
            },
        );
    }
    sheet.row(
        "from a threaded cgroup",
        "inherited by child cgroups",
        || threaded(&mut host, &bot),
    );
    sheet.row(
        "made inside, connected by a process outside",
        "the socket's own cgroup",
        || {
            let socket = socket_from(&bot, &["hand_out"]);
            let outsider = host.site.outsider();
            let said = outsider.attack_with(
                Stdio::from(socket),
                ["received_connect", "192.0.2.7", "5432"],
            );
            match host.accept_within(Duration::from_secs(5)) {
                Some(stream) => match host.flow_of(&stream) {
                    Some(flow) if flow.original.to_string() == "192.0.2.7:5432" => {
                        Ok("redirected all the same".to_owned())
                    }
                    other => Err(format!("{other:?}")),
                },
                // Its process is no agent: refusing is as good.
                None if said.errno() != "ok" => Ok(said.errno()),
                None => Err(said.story()),
            }
        },
    );
    sheet.finish();
}

fn threaded(host: &mut Attended, bot: &Place) -> super::sheet::Outcome {
    let parent = bot.in_group(bot.group.with_file_name("threads"));
    let nested = parent.in_group(parent.group.join("t1"));
    std::fs::write(nested.group.join("cgroup.type"), "threaded").map_err(|e| e.to_string())?;
    let said = nested.attack(["tcp_connect", "192.0.2.7", "5432"]);
    host.came(&nested, &said, &["192.0.2.7:5432"])
}

/// A socket keeps its maker's cgroup: one from outside is seen by no hook of the agents' cgroup.
#[test]
fn sockets_from_outside() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Sockets from outside", host.capture());
    outside_reaches_the_peer(&host.site, &mut sheet);
    let (bot, outsider) = (host.site.bot(), host.site.outsider());
    let from_outside = |kind: &str| -> OwnedFd { socket_from(&outsider, &["hand_out", kind]) };
    for (attack, hook, kind, peer) in [
        (
            "TCP, inherited unconnected",
            "guard_connect4",
            "4",
            "192.0.2.7",
        ),
        (
            "TCP, inherited unconnected, IPv6",
            "guard_connect6",
            "6",
            "2001:db8::7",
        ),
        (
            "TCP, inherited unconnected, mapped",
            "guard_connect6",
            "6",
            "::ffff:192.0.2.7",
        ),
        (
            "UDP, inherited unconnected, connect",
            "guard_connect4",
            "4u",
            "192.0.2.7",
        ),
        (
            "UDP, inherited unconnected, connect, IPv6",
            "guard_connect6",
            "6u",
            "2001:db8::7",
        ),
    ] {
        sheet.row(attack, hook, || {
            let said = bot.attack_with(
                Stdio::from(from_outside(kind)),
                ["received_connect", peer, "5432"],
            );
            host.was_refused(&said, &["EPERM"])
        });
    }
    for (attack, hook, kind, peer) in [
        (
            "UDP, inherited unconnected, sendto",
            "guard_sendmsg4",
            "4u",
            "192.0.2.7",
        ),
        (
            "UDP, inherited unconnected, sendto, IPv6",
            "guard_sendmsg6",
            "6u",
            "2001:db8::7",
        ),
        (
            "UDP, inherited unconnected, to a resolver",
            "guard_sendmsg4",
            "4u",
            "198.51.100.53",
        ),
    ] {
        let port = if peer.ends_with(".53") { "53" } else { "5432" };
        sheet.row(attack, hook, || {
            let said = bot.attack_with(
                Stdio::from(from_outside(kind)),
                ["received_sendto", peer, port],
            );
            host.was_refused(&said, &["EPERM"])
        });
    }
    sheet.row(
        "TCP, passed by SCM_RIGHTS, unconnected",
        "guard_connect4",
        || {
            let (here, there) =
                std::os::unix::net::UnixStream::pair().map_err(|e| e.to_string())?;
            let mut giver = outsider.command(super::attack::program(), ["hand_out", "4"]);
            giver.stdin(Stdio::from(OwnedFd::from(there)));
            let mut giver = giver.spawn().map_err(|e| e.to_string())?;
            let said = bot.attack_with(
                Stdio::from(OwnedFd::from(here)),
                ["take_in", "192.0.2.7", "5432"],
            );
            let _ = giver.wait();
            host.was_refused(&said, &["EPERM"])
        },
    );
    sheet.row(
        "taken by pidfd_getfd from its own user's process",
        "guard_connect4",
        || {
            let mut holder = outsider.start(["keep_socket", "tcp"]);
            let fd = holder.says()["result"].to_string();
            let pid = holder.child.id().to_string();
            host.refused(
                &bot,
                &["take_descriptor", &pid, &fd, "192.0.2.7", "5432"],
                &["EPERM"],
            )
        },
    );
    sheet.row(
        "taken by pidfd_getfd from another user's process",
        "the agent's own user",
        || {
            let mut holder = outsider
                .as_user(super::attack::SOMEBODY)
                .start(["keep_socket", "tcp"]);
            let fd = holder.says()["result"].to_string();
            let pid = holder.child.id().to_string();
            let said = bot.attack(["take_descriptor", &pid, &fd, "192.0.2.7", "5432"]);
            match said.last("call").as_str() {
                Some("pidfd_getfd") => host.was_refused(&said, &["EPERM"]),
                _ => Err(said.story()),
            }
        },
    );
    sheet.out_of_reach(
        "TCP, passed connected by an accomplice outside",
        "sluice exec closes descriptors; a user of its own",
        || {
            let socket = socket_from(&outsider, &["accomplice", "192.0.2.7", "5432"]);
            let said = bot.attack_with(Stdio::from(socket), ["received_send"]);
            match said.errno().as_str() {
                "ok" => Ok("sent".to_owned()),
                _ => Err(format!("{}: then the documentation is wrong", said.story())),
            }
        },
    );
    sheet.finish();
}

/// Who is not redirected has no flow, and so gets nothing from a gateway.
#[test]
fn nobody_takes_over_anothers_flow() {
    let host = Attended::start();
    let mut sheet = Sheet::new("Flows", host.capture());
    let gateway = PORT.to_string();
    let (bot, outsider) = (host.site.bot(), host.site.outsider());
    for address in ["127.0.0.1", "::1"] {
        sheet.row(
            &format!("a process outside dials the gateway at {address}"),
            "no flow: the gateway resets",
            || {
                let said = outsider.attack(["tcp_connect", address, &gateway]);
                match host.accept_within(Duration::from_secs(5)) {
                    Some(stream) if host.flow_of(&stream).is_none() => Ok("no flow".to_owned()),
                    Some(_) => Err("it has a flow".to_owned()),
                    None => Err(said.story()),
                }
            },
        );
    }
    sheet.row(
        "the same 4-tuple again, from outside, after the agent's connection",
        "CONNS is emptied when it is claimed",
        || {
            let said = bot.attack(["tcp_connect", "192.0.2.7", "5432"]);
            let own = said.last("own").as_str().unwrap_or_default().to_owned();
            let stream = host
                .accept_within(Duration::from_secs(5))
                .ok_or("no connection")?;
            host.flow_of(&stream).ok_or("no flow")?;
            let port = stream
                .peer_addr()
                .map_err(|e| e.to_string())?
                .port()
                .to_string();
            drop(stream);
            let said =
                outsider.attack(["tcp_from_port", "127.0.0.1", &gateway, "127.0.0.1", &port]);
            match host.accept_within(Duration::from_secs(5)) {
                Some(stream) if host.flow_of(&stream).is_none() => Ok(format!("no flow for {own}")),
                Some(_) => Err("it has the agent's flow".to_owned()),
                None => Err(said.story()),
            }
        },
    );
    sheet.finish();
}

/// What only `egress` stops really leaves without it.
#[test]
fn without_egress_these_would_leave() {
    let host = Attended::start();
    let mut sheet = Sheet::new("TCP and UDP, egress taken away", host.capture());
    let links = host.site.kernel.pins.join("links");
    std::fs::remove_file(links.join("egress")).expect("it is pinned");
    let bot = host.site.bot();
    let attacks: [(&str, &[&str]); 6] = [
        (
            "bound to the uplink after connect, from the host's address",
            &["tcp_device_after", "192.0.2.7", "5432", DEVICE, HOST],
        ),
        (
            "segment routing over the peer (IPV6_RTHDR)",
            &["tcp_source_route", "2001:db8::7", "5432", "fd00:77::2"],
        ),
        (
            "with a listener of its own on every address",
            &["tcp_own_listener", "192.0.2.7", "4444", "0.0.0.0", ""],
        ),
        (
            "with a listener of its own on every address, IPv6",
            &["tcp_own_listener", "2001:db8::7", "4444", "::", ""],
        ),
        (
            "with a listener of its own on the peer's address (IP_FREEBIND)",
            &["tcp_own_listener", "192.0.2.7", "4444", "192.0.2.7", "free"],
        ),
        (
            "UDP, bound to the uplink once connected to a resolver",
            &["udp_device_after", "198.51.100.53", DEVICE, HOST],
        ),
    ];
    for (attack, words) in attacks {
        sheet.counterproof(attack, || {
            Ok(bot.attack(words.iter().copied()).story().trim().to_owned())
        });
    }
    sheet.finish();
}
