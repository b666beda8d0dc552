//! UDP: nothing but questions to resolvers, and those come to the gateway.

use std::time::{Duration, Instant};

use super::outside_reaches_the_peer;
use super::sheet::{Outcome, Sheet};
use super::site::Attended;
use crate::harness::uplink::{DEVICE, HOST, HOST6};

#[test]
fn datagrams_are_denied() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("UDP", host.capture());
    outside_reaches_the_peer(&host.site, &mut sheet);
    let bot = host.site.bot();
    let rows: [(&str, &str, &[&str]); 22] = [
        (
            "sendto",
            "sendmsg4: datagram",
            &["udp_sendto", "192.0.2.7", "9"],
        ),
        (
            "sendto a target's address and port",
            "sendmsg4: datagram",
            &["udp_sendto", "192.0.2.7", "5432"],
        ),
        (
            "sendto, IPv6",
            "sendmsg6: datagram",
            &["udp_sendto", "2001:db8::7", "9"],
        ),
        (
            "sendto, mapped",
            "sendmsg6: datagram",
            &["udp_sendto", "::ffff:192.0.2.7", "9"],
        ),
        (
            "QUIC: connect to port 443",
            "connect4: datagram",
            &["udp_connected", "192.0.2.7", "443"],
        ),
        (
            "QUIC: connect to port 443, IPv6",
            "connect6: datagram",
            &["udp_connected", "2001:db8::7", "443"],
        ),
        (
            "connect, then send",
            "connect4: datagram",
            &["udp_connected", "192.0.2.7", "9"],
        ),
        (
            "sendmmsg",
            "sendmsg4: datagram",
            &["udp_sendmmsg", "192.0.2.7", "9"],
        ),
        (
            "UDP_SEGMENT",
            "sendmsg4: datagram",
            &["udp_segment", "192.0.2.7", "9"],
        ),
        (
            "sendfile into a UDP socket",
            "connect4: datagram",
            &["udp_sendfile", "192.0.2.7", "9"],
        ),
        (
            "the interface in IP_PKTINFO",
            "sendmsg4: datagram",
            &["udp_pktinfo", "192.0.2.7", "9", DEVICE],
        ),
        (
            "the interface in IPV6_PKTINFO",
            "sendmsg6: datagram",
            &["udp_pktinfo", "2001:db8::7", "9", DEVICE],
        ),
        (
            "broadcast",
            "sendmsg4: datagram",
            &["udp_broadcast", "255.255.255.255", "9"],
        ),
        (
            "broadcast on the link",
            "sendmsg4: datagram",
            &["udp_broadcast", "10.77.0.255", "9"],
        ),
        (
            "multicast",
            "sendmsg4: datagram",
            &["udp_sendto", "224.0.0.251", "5353"],
        ),
        (
            "multicast, IPv6",
            "sendmsg6: datagram",
            &["udp_sendto", "ff02::fb%1", "5353"],
        ),
        (
            "the metadata service",
            "sendmsg4: datagram",
            &["udp_sendto", "169.254.169.254", "80"],
        ),
        (
            "the gateway's resolver, directly",
            "sendmsg4: datagram",
            &["udp_sendto", "127.0.0.1", "15001"],
        ),
        (
            "an address that claims to have no family",
            "sendmsg4: datagram",
            &["udp_other_family", "192.0.2.7", "9", "unspec"],
        ),
        (
            "an IPv4 address on an IPv6 socket, sendto",
            "sendmsg4: datagram",
            &["udp_other_family", "192.0.2.7", "9", "four"],
        ),
        (
            "an IPv4 address on an IPv6 socket, connect",
            "connect4: datagram",
            &["udp_other_family", "192.0.2.7", "9", "four", "connected"],
        ),
        (
            "source route over the peer (IP_OPTIONS)",
            "sendmsg4: datagram",
            &["udp_source_route", "192.0.2.7", "9", "10.77.0.2"],
        ),
    ];
    for (attack, hook, words) in rows {
        sheet.row(attack, hook, || host.refused(&bot, words, &["EPERM"]));
    }
    for (attack, words) in [
        (
            "io_uring: socket and sendmsg",
            &["uring_sendmsg", "192.0.2.7", "9"][..],
        ),
        (
            "io_uring, polled by a kernel thread: sendmsg",
            &["uring_sendmsg", "192.0.2.7", "9", "polled"],
        ),
    ] {
        sheet.row(attack, "sendmsg4: datagram", || {
            host.refused(&bot, words, &["EPERM"])
        });
    }
    sheet.row(
        "a socket connected to a resolver, then to others",
        "sendmsg4, connect4: datagram",
        || {
            let said = bot.attack(["udp_dns_then_elsewhere", "198.51.100.53", "192.0.2.7", "9"]);
            match said.lines.iter().all(|line| line["errno"] == "EPERM") {
                true => Ok("EPERM, three times".to_owned()),
                false => Err(said.story()),
            }
        },
    );
    sheet.row(
        "begun to a resolver with MSG_MORE, ended elsewhere",
        "the first destination is what counts",
        || {
            let said = bot.attack(["udp_corked", "198.51.100.53", "192.0.2.7", "9"]);
            match said.errno().as_str() {
                "ok" | "EPERM" => Ok(format!("{}: went to the gateway or nowhere", said.errno())),
                _ => Err(said.story()),
            }
        },
    );
    sheet.row(
        "bound to the uplink, to a resolver",
        "sendmsg4: bound-device",
        || host.refused(&bot, &["udp_ask", "198.51.100.53", "", DEVICE], &["EPERM"]),
    );
    sheet.row(
        "bound to the uplink, connected to a resolver",
        "connect4: bound-device",
        || {
            host.refused(
                &bot,
                &["udp_ask", "198.51.100.53", "connected", DEVICE],
                &["EPERM"],
            )
        },
    );
    for (attack, hook, words) in [
        (
            "bound to the uplink, once connected to a resolver",
            "egress: not loopback",
            ["udp_device_after", "198.51.100.53", DEVICE, HOST],
        ),
        (
            "bound to the uplink, once connected to a resolver, IPv6",
            "egress: not loopback",
            ["udp_device_after", "2001:db8::53", DEVICE, HOST6],
        ),
        (
            "source route over the peer, to a resolver",
            "needs CAP_NET_RAW",
            ["udp_source_route", "198.51.100.53", "53", "10.77.0.2"],
        ),
        (
            "an IPv4 resolver on an IPv6 socket",
            "sendmsg4",
            ["udp_other_family", "198.51.100.53", "53", "four"],
        ),
    ] {
        sheet.row(attack, hook, || {
            // It may reach the gateway, or nobody.
            Ok(bot.attack(words).story().trim().to_owned())
        });
    }
    for (attack, group) in [
        (
            "joining a multicast group: the kernel's own report",
            "239.83.66.1",
        ),
        ("joining a multicast group, IPv6", "ff15::5:1ce"),
    ] {
        sheet.row(attack, "setsockopt: multicast", || {
            host.refused(&bot, &["multicast_join", group, DEVICE], &["EPERM"])
        });
    }
    for address in ["0.0.0.0", "::", "127.0.0.1"] {
        sheet.row(
            &format!("a UDP server on {address}"),
            "bind: no UDP port of its choice",
            || host.refused(&bot, &["bind_port", "udp", address, "9999"], &["EPERM"]),
        );
    }
    sheet.finish();
}

/// Whatever resolver is asked, the gateway hears it, knows who asked whom, and its answer seems to come from there.
#[test]
fn questions_to_any_resolver_come_to_the_gateway() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("DNS, in the kernel", host.capture());
    outside_reaches_the_peer(&host.site, &mut sheet);
    for (attack, resolver, how) in [
        ("question to a public resolver, sendto", "198.51.100.53", ""),
        (
            "question to a public resolver, connect and send",
            "198.51.100.53",
            "connected",
        ),
        ("question to a public resolver, IPv6", "2001:db8::53", ""),
        (
            "question to a public resolver, IPv6, connected",
            "2001:db8::53",
            "connected",
        ),
        (
            "question to a public resolver, mapped",
            "::ffff:198.51.100.53",
            "",
        ),
        ("question to a stub resolver on loopback", "127.0.0.53", ""),
        (
            "question to the metadata service's resolver",
            "169.254.169.254",
            "",
        ),
    ] {
        sheet.row(attack, "sendmsg, connect, recvmsg", || {
            ask(&host, resolver, how)
        });
    }
    let bot = host.site.bot();
    for (attack, resolver, original) in [
        ("question over TCP", "198.51.100.53", "198.51.100.53:53"),
        (
            "question over TCP, IPv6",
            "2001:db8::53",
            "[2001:db8::53]:53",
        ),
    ] {
        sheet.row(attack, "connect", || {
            host.redirected(&bot, &["tcp_connect", resolver, "53"], &[original])
        });
    }
    sheet.finish();
}

/// The test answers as the gateway's resolver would.
fn ask(host: &Attended, resolver: &str, how: &str) -> Outcome {
    let bot = host.site.bot();
    let (said, heard) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| bot.attack(["udp_ask", resolver, how]));
        let heard = answer(host);
        (asking.join().expect("the attack can be run"), heard)
    });
    let Some((source, flow)) = heard else {
        return Err(format!("the gateway heard nothing: {}", said.story()));
    };
    let flow = flow.ok_or_else(|| format!("a question from {source} without a flow"))?;
    let plain = resolver.trim_start_matches("::ffff:");
    let (original, from) = (flow.original.ip().to_string(), said.last("from").clone());
    if (original.as_str(), flow.original.port()) != (plain, 53)
        || flow.cgroup_id != host.site.bot_id()
    {
        return Err(format!("{flow:?}"));
    }
    match from.as_str() {
        Some(from) if from == resolver => Ok(format!("answered by the gateway as {from}")),
        _ => Err(format!(
            "the answer seems to come from {from}: {}",
            said.story()
        )),
    }
}

fn answer(host: &Attended) -> Option<(std::net::SocketAddr, Option<gateway::intercept::Flow>)> {
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut question = [0; 512];
    while Instant::now() < deadline {
        for socket in &host.udp {
            if let Ok((length, source)) = socket.recv_from(&mut question) {
                let flow = host.maps.datagrams.flow_of(host.netns_cookie(), source);
                let _ = socket.send_to(&question[..length], source);
                return Some((source, flow.expect("flows can be read")));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}
