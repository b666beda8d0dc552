//! Ways out of the cgroup, into other processes, and to what listens on the host itself.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gateway::intercept::Denial;

use super::attack::{SOMEBODY, program, said};
use super::outside_reaches_the_peer;
use super::sheet::Sheet;
use super::site::{Attended, PORT};
use crate::harness::cgroup;
use crate::harness::uplink::{HOST, HOST6, Netns};

#[test]
fn the_cgroup_cannot_be_left() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Leaving the cgroup", host.capture());
    outside_reaches_the_peer(&host.site, &mut sheet);
    let bot = host.site.bot();
    let mount = cgroup::mount().display().to_string();
    for (attack, folder) in [
        (
            "writing to every cgroup.procs and cgroup.threads",
            mount.as_str(),
        ),
        ("the same, and tasks, of every hierarchy", "/sys/fs/cgroup"),
    ] {
        sheet.row(attack, "owned by root", || {
            let said = bot.attack(["cgroup_procs", folder]);
            match (said.last("moved").as_u64(), said.last("tried").as_u64()) {
                (Some(0), Some(tried @ 1..)) => Ok(format!("EACCES, {tried} files")),
                _ => Err(said.story()),
            }
        });
    }
    for (attack, folder) in [
        ("clone3 with CLONE_INTO_CGROUP, the root", mount.clone()),
        (
            "clone3 with CLONE_INTO_CGROUP, outside",
            host.site.outsider().group.display().to_string(),
        ),
        (
            "clone3 with CLONE_INTO_CGROUP, the gateway's",
            host.site.group_of_the_gateway(),
        ),
    ] {
        sheet.row(attack, "owned by root", || {
            host.refused(&bot, &["cgroup_clone", &folder], &["EACCES"])
        });
    }
    sheet.row(
        "a user, cgroup and mount namespace of its own",
        "the same cgroup, whatever it is called",
        || {
            host.redirected(
                &bot,
                &["cgroup_namespace", "192.0.2.7", "5432"],
                &["192.0.2.7:5432"],
            )
        },
    );
    for (attack, words) in [
        (
            "systemd-run --user",
            ["/usr/bin/systemd-run", "--user", "true"],
        ),
        (
            "systemd-run",
            ["/usr/bin/systemd-run", "--no-ask-password", "true"],
        ),
        ("at", ["/usr/bin/at", "now", "-V"]),
    ] {
        let program = std::path::Path::new(words[0]);
        sheet.row(attack, "connect_unix, and a user without a manager", || {
            if !program.exists() {
                return Ok("not installed here".to_owned());
            }
            let output = bot.command(program, words[1..].iter().copied()).output();
            let output = output.map_err(|error| error.to_string())?;
            match output.status.success() && words[0] != "/usr/bin/at" {
                true => Err("it ran something".to_owned()),
                false => Ok("refused".to_owned()),
            }
        });
    }
    sheet.finish();
}

#[test]
fn other_processes_are_no_way_out() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Other processes", host.capture());
    let bot = host.site.bot();
    let outsider = host.site.outsider();
    for (attack, words) in [
        ("ptrace of another user's process", "trace_process"),
        (
            "process_vm_writev into another user's process",
            "write_memory",
        ),
    ] {
        sheet.row(attack, "the agent's own user", || {
            let victim = outsider.as_user(SOMEBODY).start(["keep_socket", "tcp"]);
            let pid = victim.child.id().to_string();
            host.refused(&bot, &[words, &pid], &["EPERM"])
        });
    }
    sheet.out_of_reach(
        "ptrace of a process of the same user",
        "a user of its own; exec --isolate: pid namespace",
        || {
            let mut victim = outsider.start(["keep_socket", "tcp"]);
            victim.says();
            let pid = victim.child.id().to_string();
            let said = bot.attack(["trace_process", &pid]);
            // Where Yama is active it is refused.
            Ok(said.errno())
        },
    );
    sheet.finish();
}

#[test]
fn what_listens_on_the_host() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("The host's own services", host.capture());
    outside_reaches_the_peer(&host.site, &mut sheet);
    let bot = host.site.bot();
    let service = host.site.uplink.host.within(|| {
        let v4 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).expect("a new namespace");
        let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 8080)).expect("a new namespace");
        [v4, v6].map(|listener| {
            listener.set_nonblocking(true).expect("it is ours");
            listener
        })
    });
    let reached = || service.iter().any(|listener| listener.accept().is_ok());
    for (attack, address) in [
        ("a service on 127.0.0.1", "127.0.0.1"),
        ("a service on another loopback address", "127.9.9.9"),
        ("a service by 0.0.0.0", "0.0.0.0"),
        ("a service on ::1", "::1"),
        ("a service by ::", "::"),
        ("a service, mapped", "::ffff:127.0.0.1"),
        ("a service on the host's address", HOST),
        ("a service on the host's address, IPv6", HOST6),
    ] {
        sheet.row(attack, "connect: no-target", || {
            let outcome = host.refused(&bot, &["tcp_connect", address, "8080"], &["ECONNREFUSED"]);
            match reached() {
                true => Err("the service was reached".to_owned()),
                false => outcome,
            }
        });
    }
    sheet.row("a service of another agent", "connect: no-target", || {
        let other = bot.in_group(host.site.agents_group().join("other"));
        let mut listener = other.start(["tcp_listen", "127.0.0.1", "8081"]);
        listener.says();
        host.refused(
            &bot,
            &["tcp_connect", "127.0.0.1", "8081"],
            &["ECONNREFUSED"],
        )
    });
    sheet.row(
        "a service of its own",
        "the same subtree: left alone",
        || {
            let nested = bot.in_group(bot.group.join("server"));
            let mut listener = nested.start(["tcp_listen", "127.0.0.1", "8082"]);
            listener.says();
            let said = bot.attack(["tcp_connect", "127.0.0.1", "8082"]);
            match (said.errno().as_str(), host.accept_within(Duration::ZERO)) {
                ("ok", None) => Ok("connected directly".to_owned()),
                (errno, redirected) => {
                    Err(format!("{errno}, redirected: {}", redirected.is_some()))
                }
            }
        },
    );
    sheet.row(
        "others on the host dial an agent's server",
        "ingress, egress",
        || {
            let mut listener = bot.start(["tcp_listen", "127.0.0.1", "8084"]);
            listener.says();
            let said = host
                .site
                .outsider()
                .attack(["tcp_connect", "127.0.0.1", "8084"]);
            match said.errno().as_str() {
                "ok" => Err("connected".to_owned()),
                errno => Ok(format!("the caller gets {errno}")),
            }
        },
    );
    for (attack, listen, peer) in [
        ("waiting for somebody to dial in", "0.0.0.0", HOST),
        ("waiting for somebody to dial in, IPv6", "::", HOST6),
    ] {
        sheet.row(attack, "ingress, egress", || {
            let mut listener = bot.start(["tcp_listen", listen, "8083"]);
            if listener.says()["errno"] != "ok" {
                return Ok("EPERM".to_owned());
            }
            let caller = host.site.outsider().in_netns(&host.site.uplink.peer);
            let said = caller.attack(["tcp_connect", peer, "8083"]);
            match said.errno().as_str() {
                "ok" => Err("the peer connected".to_owned()),
                errno => Ok(format!("the caller gets {errno}")),
            }
        });
    }
    sheet.finish();
}

#[test]
fn the_gateways_port_is_nobody_elses() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("The gateway's port", host.capture());
    let port = PORT.to_string();
    let bot = host.site.bot();
    let outsider = host.site.outsider();
    // Dead, but its heart beats once more: its age alone must not be what refuses.
    host.tcp.clear();
    host.udp.clear();
    for address in ["127.0.0.1", "0.0.0.0", "::1", "::"] {
        sheet.row(
            &format!("an agent binds {address}, the gateway dead"),
            "bind",
            || host.refused(&bot, &["bind_port", "tcp", address, &port], &["EPERM"]),
        );
    }
    sheet.row("a privileged port", "bind", || {
        let root = bot.as_user(0);
        host.refused(&root, &["bind_port", "tcp", "127.0.0.1", "53"], &["EPERM"])
    });
    for address in ["127.0.0.1", "0.0.0.0"] {
        sheet.row(
            &format!("somebody else listens on {address}, the gateway dead"),
            "port_lookup",
            || {
                let mut squatter = outsider.start(["tcp_listen", address, &port]);
                squatter.says();
                let outcome = host.refused(
                    &bot,
                    &["tcp_connect", "192.0.2.7", "5432"],
                    &["ECONNREFUSED"],
                );
                match squatter.end().is_empty() {
                    true => outcome,
                    false => Err("the squatter got the connection".to_owned()),
                }
            },
        );
    }
    sheet.row(
        "the gateway dead: an agent's connect",
        "nobody listens",
        || {
            host.refused(
                &bot,
                &["tcp_connect", "192.0.2.7", "5432"],
                &["ECONNREFUSED"],
            )
        },
    );
    host.stop_heart();
    std::thread::sleep(Duration::from_millis(3500));
    sheet.row(
        "the heart stopped: an agent's connect",
        "connect: gateway-silent",
        || {
            let before = host.site.denied(Denial::Heartbeat);
            let outcome = host.refused(
                &bot,
                &["tcp_connect", "192.0.2.7", "5432"],
                &["ECONNREFUSED"],
            );
            match host.site.denied(Denial::Heartbeat) - before {
                1 => outcome,
                other => Err(format!("counted {other} times")),
            }
        },
    );
    sheet.finish();
}

#[test]
fn other_namespaces() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Network namespaces", host.capture());
    let bot = host.site.bot();
    for (attack, address) in [
        ("a network namespace of its own", "192.0.2.7"),
        ("a network namespace of its own, IPv6", "2001:db8::7"),
    ] {
        sheet.row(attack, "connect: netns-unregistered", || {
            let before = host.site.denied(Denial::Netns);
            let outcome = host.refused(
                &bot,
                &["namespace_connect", address, "5432", "1"],
                &["ECONNREFUSED"],
            );
            match host.site.denied(Denial::Netns) - before {
                1 => outcome,
                other => Err(format!("counted {other} times")),
            }
        });
    }
    sheet.row(
        "the same 4-tuple in two namespaces",
        "the key has the namespace's cookie",
        || {
            let other = Netns::new();
            let there = bot.in_netns(&other);
            let words = ["tcp_from_port", "192.0.2.7", "5432", "127.0.0.1", "45678"];
            let outcome = host.redirected(&bot, &words, &["192.0.2.7:5432"])?;
            host.refused(&there, &words, &["ECONNREFUSED"])?;
            Ok(format!("{outcome}; the other refused"))
        },
    );
    sheet.finish();
}

#[test]
fn unix_sockets() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Unix sockets", host.capture());
    let bot = host.site.bot();
    let outsider = host.site.outsider().as_user(SOMEBODY);
    let folder = crate::harness::scratch::folder("unix");
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("it is ours");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let abstract_name = format!("@{}", crate::harness::scratch::name());
    for (attack, name, kind) in [
        (
            "a container engine's socket (docker.sock)",
            at("docker.sock"),
            "stream",
        ),
        ("a message bus (D-Bus)", at("bus"), "stream"),
        ("a resolver's socket (varlink)", at("resolve"), "stream"),
        ("an abstract socket", abstract_name, "stream"),
        ("a datagram socket (a logger's)", at("dev-log"), "dgram"),
        ("a packet socket (udev's)", at("udev"), "seqpacket"),
    ] {
        sheet.row(attack, "connect_unix, sendmsg_unix", || {
            let mut server = outsider.start(["unix_serve", &name, kind]);
            server.says();
            let words = match kind {
                "dgram" => vec!["unix_sendto", &name],
                "seqpacket" => vec!["unix_connect", &name, "seqpacket"],
                _ => vec!["unix_connect", &name],
            };
            let outcome = host.refused(&bot, &words, &["EPERM"]);
            match server.end().is_empty() {
                true => outcome,
                false => Err("the server was reached".to_owned()),
            }
        });
    }
    sheet.finish();
}

/// Programs that others attach, above and below.
#[test]
fn with_programs_of_others() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("Programs of others", host.capture());
    let bot = host.site.bot();
    let root = host.site.outsider().as_user(0);
    let above = bot
        .group
        .ancestors()
        .nth(2)
        .expect("it is two levels down")
        .display()
        .to_string();
    let below = bot.group.display().to_string();
    sheet.row(
        "a load balancer's program above, which runs after ours",
        "egress: not loopback",
        || {
            let mut other = root.start(["rewrite_program", &above, "192.0.2.7"]);
            other.says();
            let said = bot.attack(["tcp_connect", "10.77.0.2", "5432"]);
            drop(other);
            match host.accept_within(Duration::from_secs(1)) {
                Some(stream) => match host.flow_of(&stream) {
                    Some(flow) => Ok(format!("redirected, flow {}", flow.original)),
                    None => Err("no flow".to_owned()),
                },
                // It sent the redirected connect away, as nothing but root can; it must not leave.
                None if said.errno() != "ok" => Ok(said.errno()),
                None => Err(said.story()),
            }
        },
    );
    sheet.row(
        "a program below, which runs before ours",
        "connect4 sees what it made of it",
        || {
            let mut other = root.start(["rewrite_program", &below, "10.77.0.2"]);
            other.says();
            let outcome =
                host.redirected(&bot, &["tcp_connect", "192.0.2.7", "80"], &["10.77.0.2:80"]);
            drop(other);
            outcome
        },
    );
    sheet.finish();
}

/// Before Linux 5.15 a process with a class of version 1 lost its cgroup of version 2 in the eyes of sockets, and
/// with it every program.
#[test]
fn with_a_class_of_cgroup_version_1() {
    let mut host = Attended::start();
    let mut sheet = Sheet::new("A hybrid host with net_cls", host.capture());
    let folder = crate::harness::scratch::folder("net-cls");
    let bot = host.site.bot();
    sheet.row("a process with a net_cls class", "Linux 5.15", || {
        let mounted = Command::new("mount")
            .args(["-t", "cgroup", "-o", "net_cls", "net_cls"])
            .arg(folder.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            return Ok("this kernel has no net_cls, or version 2 has it".to_owned());
        }
        let group = folder.path().join("class");
        let script = "mkdir -p $0 && echo 0x100001 > $0/net_cls.classid && echo 0 > $0/cgroup.procs && exec setpriv \
                      --reuid=65534 --regid=65534 --clear-groups $1 tcp_connect 192.0.2.7 5432";
        let (group, program) = (group.display().to_string(), program().display().to_string());
        let shell = Path::new("/bin/sh");
        let classified = bot
            .as_user(0)
            .command(shell, ["-c", script, &group, &program]);
        let said = said(classified);
        let outcome = host.came(&bot, &said, &["192.0.2.7:5432"]);
        let _ = std::fs::remove_dir(&group);
        let _ = Command::new("umount").arg(folder.path()).status();
        outcome
    });
    sheet.finish();
}
