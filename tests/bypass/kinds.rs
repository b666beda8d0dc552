//! Everything that is neither TCP nor UDP.

use std::collections::BTreeSet;

use super::attack::{Place, Said};
use super::outside_reaches_the_peer;
use super::sheet::{Outcome, Sheet};
use super::site::Attended;
use crate::harness::uplink::DEVICE;

#[test]
fn no_other_protocol() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Other protocols", host.capture());
    outside_reaches_the_peer(&host.site, &mut sheet);
    let bot = host.site.bot();
    let root = bot.as_user(0);
    // As many distributions have it: otherwise it is this setting that refuses, and no hook is asked.
    host.site
        .uplink
        .host
        .sysctl("ipv4/ping_group_range", "0 2147483647");
    for (attack, place, family, kind, protocol) in [
        ("MPTCP", &bot, "2", "1", "262"),
        ("MPTCP, IPv6", &bot, "10", "1", "262"),
        ("SMC over TCP", &bot, "2", "1", "256"),
        ("UDP-Lite", &bot, "2", "2", "136"),
        ("UDP-Lite, IPv6", &bot, "10", "2", "136"),
        ("SCTP, one to one", &bot, "2", "1", "132"),
        ("SCTP, one to many", &bot, "2", "5", "132"),
        ("DCCP", &bot, "2", "6", "33"),
        ("L2TP", &bot, "2", "2", "115"),
        ("ICMP echo (ping)", &bot, "2", "2", "1"),
        ("ICMPv6 echo (ping)", &bot, "10", "2", "58"),
        ("raw TCP, as root in the cgroup", &root, "2", "3", "6"),
        ("raw ICMP, as root in the cgroup", &root, "2", "3", "1"),
        ("raw ICMPv6, as root in the cgroup", &root, "10", "3", "58"),
    ] {
        sheet.row(attack, "sock_create: socket-kind", || {
            let words = ["kind", family, kind, protocol];
            host.refused(place, &words, &["EPERM"]).or_else(|_| {
                // Before any hook is asked.
                let missing = ["EPROTONOSUPPORT", "ESOCKTNOSUPPORT"];
                let errno = host.refused(place, &words, &missing)?;
                Ok(format!("not in this kernel ({errno})"))
            })
        });
    }
    sheet.row(
        "IP_HDRINCL, as root in the cgroup",
        "sock_create: socket-kind",
        || host.refused(&root, &["header_included", "192.0.2.7", "9"], &["EPERM"]),
    );
    sheet.row("packet socket", "needs CAP_NET_RAW", || {
        host.refused(&bot, &["packet", DEVICE], &["EPERM"])
    });
    sheet.row(
        "packet socket in a user namespace of its own",
        "there is no uplink in there",
        || {
            let said = bot.attack(["packet_in_namespace", DEVICE]);
            match said.errno().as_str() {
                "ok" => Err(said.story()),
                errno => Ok(format!("no device ({errno})")),
            }
        },
    );
    sheet.row("TUN device", "device", || {
        host.refused(&bot, &["tunnel"], &["EPERM", "EACCES"])
    });
    sheet.row(
        "TUN device in a user namespace of its own",
        "device",
        || host.refused(&bot, &["tunnel", "namespace"], &["EPERM", "EACCES"]),
    );
    sheet.row("TUN device, as root in the cgroup", "device", || {
        host.refused(&root, &["tunnel"], &["EPERM"])
    });
    sheet.row(
        "block devices and memory, as root in the cgroup",
        "device",
        || {
            for path in [
                "/dev/mem",
                "/dev/kmsg",
                "/dev/fuse",
                "/dev/vhost-vsock",
                "/dev/net/tun",
            ] {
                if std::path::Path::new(path).exists() {
                    host.refused(&root, &["device", path], &["EPERM"])?;
                }
            }
            Ok("EPERM".to_owned())
        },
    );
    sheet.row("the harmless devices stay", "device", || {
        for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"] {
            let said = bot.attack(["device", path]);
            if said.errno() != "ok" {
                return Err(format!("{path}: {}", said.story()));
            }
        }
        Ok("open".to_owned())
    });
    sheet.row(
        "every family 0 to 46 with every type",
        "sock_create, for all families it is asked for",
        || families(&bot),
    );
    sheet.out_of_reach(
        "vsock: the host of a virtual machine",
        "exec --isolate: seccomp",
        || {
            let said = bot.attack(["vsock"]);
            match said.last("call").as_str() {
                // This kernel may have none, which is as good.
                Some("socket AF_VSOCK") => Ok(format!("socket: {}", said.errno())),
                _ => Ok(format!("connect: {}", said.errno())),
            }
        },
    );
    sheet.finish();
}

/// A socket family as the attack reports it.
pub type Kind = (u64, u64);

/// What `kinds` could make.
pub fn made(said: &Said) -> Result<BTreeSet<Kind>, String> {
    let last = said.lines.last().ok_or_else(|| said.story())?;
    if last["tried"] != 47 * 6 {
        return Err(format!("not every kind was tried: {last}"));
    }
    let number = |line: &serde_json::Value, name: &str| line[name].as_u64();
    Ok(said
        .lines
        .iter()
        .filter_map(|line| Some((number(line, "family")?, number(line, "type")?)))
        .collect())
}

const UNIX: u64 = 1;
const INET: u64 = 2;
const INET6: u64 = 10;
const NETLINK: u64 = 16;
/// Families for which the kernel asks no cgroup program; the launcher's filter does.
const UNASKED: [u64; 3] = [UNIX, NETLINK, 40];

fn families(place: &Place) -> Outcome {
    let made = made(&place.attack(["kinds"]))?;
    let inet: BTreeSet<Kind> = [(INET, 1), (INET, 2), (INET6, 1), (INET6, 2)].into();
    let expected = |kind: &&Kind| inet.contains(*kind) || UNASKED.contains(&kind.0);
    let surprising: Vec<&Kind> = made.iter().filter(|kind| !expected(kind)).collect();
    match surprising.is_empty() && inet.is_subset(&made) {
        true => Ok("282 tried; IP: TCP and UDP; beside it Unix, netlink, vsock".to_owned()),
        false => Err(format!("{surprising:?} can be made")),
    }
}
