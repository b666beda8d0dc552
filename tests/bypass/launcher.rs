//! The same from inside `sluice exec`, with a real gateway and broker, and from inside `sluice exec --isolate`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::attack::{NOBODY, Said, program, said};
use super::installed::Installed;
use super::kinds;
use super::outside_reaches_the_peer;
use super::sheet::{Outcome, Sheet};
use crate::harness::program::{eventually, run};
use crate::harness::scratch;
use crate::harness::uplink::DEVICE;

/// A host, and the attacks in a place that isolated agents see too (their `/tmp` is empty).
struct Launcher {
    host: Installed,
    folder: tempfile::TempDir,
    isolated: bool,
}

impl Launcher {
    fn start(isolated: bool) -> Launcher {
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}-", scratch::name()))
            .tempdir_in("/var/lib")
            .expect("root may write there");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        fs::copy(program(), folder.path().join("attack")).expect("the folder is ours");
        Launcher {
            host: Installed::start(),
            folder,
            isolated,
        }
    }

    fn attack_program(&self) -> PathBuf {
        self.folder.path().join("attack")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.site.sluice(["exec", "--agent", "bot"]);
        if self.isolated {
            command.arg("--isolate");
        }
        command.arg("--").args(words);
        command
    }

    fn attack(&self, words: &[&str]) -> Said {
        self.attack_with(Stdio::null(), words)
    }

    fn attack_with(&self, stdin: Stdio, words: &[&str]) -> Said {
        let program = self.attack_program().display().to_string();
        let mut command = self.command(&[&program]);
        command.args(words).stdin(stdin);
        said(command)
    }

    fn refused(&self, words: &[&str], errors: &[&str]) -> Outcome {
        let said = self.attack(words);
        match errors.contains(&said.errno().as_str()) {
            true => Ok(said.errno()),
            false => Err(format!("{}, not {}", said.story(), errors.join(" or "))),
        }
    }

    /// It comes to the gateway, which knows who it is.
    fn served(&self, words: &[&str]) -> Outcome {
        let exe = self.attack_program().display().to_string();
        let known = self.connections_of(&exe);
        let said = self.attack(words);
        if said.errno() != "ok" {
            return Err(said.story());
        }
        eventually(
            "the connection is in the evidence",
            Duration::from_secs(10),
            || (self.connections_of(&exe) > known).then_some(()),
        );
        Ok("came to the gateway, executable known".to_owned())
    }

    fn connections_of(&self, exe: &str) -> usize {
        let events = self.host.site.events();
        events
            .iter()
            .filter(|event| {
                let group = event.text("process.cgroup");
                event.text("process.exe") == exe
                    && event.text("process.uid") == NOBODY.to_string()
                    && group.contains("/agents.slice/bot")
            })
            .count()
    }
}

#[test]
fn within_exec() {
    let launcher = Launcher::start(false);
    let mut sheet = Sheet::new("sluice exec", launcher.host.site.uplink.capture());
    outside_reaches_the_peer(&launcher.host.site, &mut sheet);
    in_both(&launcher, &mut sheet);
    sheet.finish();
}

#[test]
fn within_exec_isolate() {
    let launcher = Launcher::start(true);
    let mut sheet = Sheet::new("sluice exec --isolate", launcher.host.site.uplink.capture());
    outside_reaches_the_peer(&launcher.host.site, &mut sheet);
    in_both(&launcher, &mut sheet);
    sheet.row(
        "the interfaces it has",
        "a network namespace of its own",
        || {
            let devices = run(launcher.command(&["/usr/bin/cat", "/proc/net/dev"])).succeeds();
            let names: Vec<String> = devices
                .lines()
                .iter()
                .skip(2)
                .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
                .collect();
            match names.contains(&DEVICE.to_owned()) {
                true => Err(names.join(", ")),
                false => Ok(names.join(", ")),
            }
        },
    );
    sheet.row(
        "the processes it sees",
        "a pid namespace of its own",
        || {
            let listed = run(launcher.command(&["/usr/bin/ls", "/proc"])).succeeds();
            let pids = listed
                .lines()
                .iter()
                .filter(|name| name.parse::<u32>().is_ok())
                .count();
            match pids {
                1..=3 => Ok(format!("{pids}")),
                _ => Err(format!("{pids} processes")),
            }
        },
    );
    for (what, folder) in [
        ("the control groups it sees", "/sys/fs/cgroup"),
        ("the pinned programs it sees", "/sys/fs/bpf"),
        ("the sockets of services it sees", "/run"),
        ("the sockets in the temporary folder it sees", "/tmp"),
    ] {
        sheet.row(what, "mounts of its own", || {
            let listed = run(launcher.command(&["/usr/bin/find", folder, "-mindepth", "1"]));
            match besides_what_it_trusts(&listed.lines()).join(" ").as_str() {
                "" => Ok("none".to_owned()),
                found => Err(found.to_owned()),
            }
        });
    }
    sheet.finish();
}

fn in_both(launcher: &Launcher, sheet: &mut Sheet) {
    for (attack, host) in [
        ("connect, IPv4", "192.0.2.7"),
        ("connect, IPv6", "2001:db8::7"),
        ("connect, mapped", "::ffff:192.0.2.7"),
    ] {
        sheet.row(attack, "connect", || {
            launcher.served(&["tcp_connect", host, "5432", "stay"])
        });
    }
    sheet.row("sendto with MSG_FASTOPEN", "connect4", || {
        launcher.served(&["tcp_fastopen", "192.0.2.7", "5432", "cookieless", "stay"])
    });
    sheet.row(
        "connects and ends at once, 20 times",
        "an executable that is not certain is unknown",
        || {
            let exe = launcher.attack_program().display().to_string();
            for _ in 0..20 {
                let said = launcher.attack(&["tcp_connect", "192.0.2.7", "5432"]);
                if said.errno() != "ok" {
                    return Err(said.story());
                }
            }
            std::thread::sleep(Duration::from_secs(1));
            let events = launcher.host.site.events();
            let told = events
                .iter()
                .filter(|event| event.text("process.cgroup").contains("/agents.slice/bot"));
            let wrong: Vec<String> = told
                .map(|event| event.text("process.exe"))
                .filter(|told| {
                    ![
                        exe.as_str(),
                        "",
                        super::attack::program().to_str().unwrap_or_default(),
                    ]
                    .contains(&told.as_str())
                })
                .collect();
            match wrong.is_empty() {
                true => Ok("its own or unknown, never another's".to_owned()),
                false => Err(format!("{wrong:?}")),
            }
        },
    );
    let rows: [(&str, &str, &[&str], &[&str]); 17] = [
        (
            "connect to an address that is no target",
            "connect4: no-target",
            &["tcp_connect", "192.0.2.7", "4444"],
            &["ECONNREFUSED"],
        ),
        (
            "the metadata service",
            "connect4: link-local",
            &["tcp_connect", "169.254.169.254", "80"],
            &["EPERM"],
        ),
        (
            "UDP",
            "sendmsg4: datagram",
            &["udp_sendto", "192.0.2.7", "9"],
            &["EPERM"],
        ),
        (
            "QUIC",
            "connect4: datagram",
            &["udp_connected", "192.0.2.7", "443"],
            &["EPERM"],
        ),
        (
            "MPTCP",
            "sock_create",
            &["kind", "2", "1", "262"],
            &["EPERM"],
        ),
        (
            "packet socket",
            "seccomp",
            &["packet", DEVICE],
            &["EAFNOSUPPORT", "EPERM"],
        ),
        ("vsock", "seccomp", &["vsock"], &["EAFNOSUPPORT"]),
        (
            "generic netlink",
            "seccomp",
            &["kind", "16", "3", "16"],
            &["EAFNOSUPPORT"],
        ),
        (
            "socket diagnosis (netlink)",
            "seccomp",
            &["kind", "16", "3", "4"],
            &["EAFNOSUPPORT"],
        ),
        (
            "the kernel's cryptography (AF_ALG)",
            "seccomp",
            &["kind", "38", "5", "0"],
            &["EAFNOSUPPORT"],
        ),
        (
            "io_uring",
            "seccomp",
            &["uring_connect", "192.0.2.7", "5432"],
            &["ENOSYS"],
        ),
        (
            "a user namespace",
            "seccomp",
            &["packet_in_namespace", DEVICE],
            &["EPERM"],
        ),
        (
            "a network namespace",
            "seccomp",
            &["namespace_connect", "192.0.2.7", "5432", "1"],
            &["EPERM"],
        ),
        (
            "a key that the kernel has made outside",
            "seccomp",
            &["ask_for_key", "example.test"],
            &["EPERM"],
        ),
        (
            "TUN device",
            "device",
            &["tunnel"],
            &["EPERM", "EACCES", "ENOENT"],
        ),
        (
            "clone3 into another cgroup",
            "seccomp; owned by root",
            &["cgroup_clone", "/sys/fs/cgroup"],
            &["ENOSYS", "EACCES", "ENOENT"],
        ),
        (
            "bound to the uplink",
            "connect4: bound-device",
            &["tcp_device_before", "192.0.2.7", "5432", DEVICE],
            &["EPERM", "ENODEV"],
        ),
    ];
    for (attack, hook, words, errors) in rows {
        sheet.row(attack, hook, || launcher.refused(words, errors));
    }
    sheet.row("joining a multicast group", "setsockopt: multicast", || {
        let said = launcher.attack(&["multicast_join", "239.83.66.1", DEVICE]);
        match (launcher.isolated, said.errno().as_str()) {
            // It may join in a namespace without an uplink.
            (true, "ok" | "ENODEV") | (_, "EPERM") => Ok(said.errno()),
            _ => Err(said.story()),
        }
    });
    for (attack, mode) in [
        ("ptrace", "trace_process"),
        ("process_vm_writev", "write_memory"),
    ] {
        sheet.row(
            &format!("{attack} of a process of the same user outside"),
            "seccomp",
            || {
                let mut victim = launcher.host.site.outsider().start(["keep_socket", "tcp"]);
                victim.says();
                let pid = victim.child.id().to_string();
                launcher.refused(&[mode, &pid], &["EPERM"])
            },
        );
    }
    sheet.row(
        "pidfd_getfd from a process of the same user outside",
        "seccomp",
        || {
            let mut holder = launcher.host.site.outsider().start(["keep_socket", "tcp"]);
            let fd = holder.says()["result"].to_string();
            let pid = holder.child.id().to_string();
            launcher.refused(
                &["take_descriptor", &pid, &fd, "192.0.2.7", "5432"],
                &["EPERM", "ESRCH"],
            )
        },
    );
    sheet.row(
        "every family 0 to 46 with every type",
        "seccomp, sock_create",
        || families(launcher),
    );
    let path = launcher
        .folder
        .path()
        .join("service.sock")
        .display()
        .to_string();
    let abstract_name = format!("@{}", scratch::name());
    for (attack, name) in [
        ("a service's Unix socket", &path),
        ("an abstract Unix socket", &abstract_name),
    ] {
        sheet.row(attack, "connect_unix", || {
            let mut server = launcher
                .host
                .site
                .outsider()
                .start(["unix_serve", name, "stream"]);
            server.says();
            let outcome = launcher.refused(&["unix_connect", name], &["EPERM", "ECONNREFUSED"]);
            match server.end().is_empty() {
                true => outcome,
                false => Err("the service was reached".to_owned()),
            }
        });
    }
    sheet.row(
        "a network socket as standard input",
        "exec refuses to start",
        || {
            let outside =
                super::attack::socket_from(&launcher.host.site.outsider(), &["hand_out", "4"]);
            let program = launcher.attack_program().display().to_string();
            let mut command =
                launcher.command(&[&program, "received_connect", "192.0.2.7", "5432"]);
            command.stdin(Stdio::from(outside));
            let output = command.output().map_err(|error| error.to_string())?;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            match !output.status.success()
                && output.stdout.is_empty()
                && stderr.contains("network socket")
            {
                true => Ok("refused".to_owned()),
                false => Err(stderr),
            }
        },
    );
    sheet.row(
        "a descriptor that the caller forgot",
        "exec closes it",
        || {
            let inner = launcher.command(&["/usr/bin/ls", "/proc/self/fd"]);
            let mut command = Command::new("sh");
            command
                .args(["-c", r#"exec 9</etc/hostname; exec "$@""#, "sh"])
                .arg(inner.get_program())
                .args(inner.get_args())
                .current_dir("/");
            let open = run(command).succeeds().lines();
            match open.iter().any(|number| number == "9") {
                true => Err(open.join(" ")),
                false => Ok(format!("open: {}", open.join(" "))),
            }
        },
    );
    sheet.row(
        "a question to a public resolver",
        "sendmsg4, and the gateway's resolver",
        || {
            let said = launcher.attack(&["udp_ask", "198.51.100.53"]);
            match (said.errno().as_str(), said.last("from").as_str()) {
                ("ok", Some("198.51.100.53")) => Ok("answered by the gateway".to_owned()),
                _ => Err(said.story()),
            }
        },
    );
}

/// Unix, IPv4, IPv6 and routing netlink, nothing else, not even to be looked at.
fn families(launcher: &Launcher) -> Outcome {
    let made = kinds::made(&launcher.attack(&["kinds"]))?;
    let allowed = |&(family, kind): &kinds::Kind| match family {
        1 | 16 => true,
        2 | 10 => [1, 2].contains(&kind),
        _ => false,
    };
    let surprising: Vec<&kinds::Kind> = made.iter().filter(|kind| !allowed(kind)).collect();
    match surprising.is_empty() {
        true => Ok(format!(
            "282 tried, {} made: TCP, UDP, Unix, route netlink",
            made.len()
        )),
        false => Err(format!("{surprising:?} can be made")),
    }
}

/// A namespace that an agent made for itself is refused until the gateway listens in it.
#[test]
fn a_new_namespace_is_refused_until_the_gateway_listens_in_it() {
    let host = Installed::start();
    let mut sheet = Sheet::new(
        "Network namespaces, with a broker",
        host.site.uplink.capture(),
    );
    let bot = host.site.bot();
    for (attack, address) in [
        ("a network namespace of its own", "192.0.2.7"),
        ("a network namespace of its own, IPv6", "2001:db8::7"),
    ] {
        sheet.row(
            attack,
            "connect: netns-unregistered, then redirected",
            || {
                let said = bot.attack(["namespace_connect", address, "5432", "150"]);
                let first = said.lines.first().map(|line| line["errno"].clone());
                let first = first.unwrap_or_default();
                match (first == "ECONNREFUSED", said.errno().as_str()) {
                    (true, "ok") => Ok(format!(
                        "ECONNREFUSED {} times, then redirected",
                        said.lines.len() - 1
                    )),
                    _ => Err(format!(
                        "first {first}, {} lines, last {}",
                        said.lines.len(),
                        said.errno()
                    )),
                }
            },
        );
    }
    sheet.row("it is in the evidence", "", || {
        let registered = host.site.events().count("netns.registered");
        match registered {
            1.. => Ok(format!("{registered} namespaces registered")),
            0 => Err("no event netns.registered".to_owned()),
        }
    });
    sheet.finish();
}

/// Root took the agents' cgroup away and made it anew: what runs in there is frozen until the guard is back.
#[test]
fn a_cgroup_made_anew_is_frozen() {
    let host = Installed::start();
    let mut sheet = Sheet::new("The agents' cgroup made anew", host.site.uplink.capture());
    let agents = host.site.agents_group();
    let bot = host.site.bot();
    sheet.row("frozen", "the broker compares what is effective", || {
        fs::remove_dir(&bot.group).map_err(|error| error.to_string())?;
        fs::remove_dir(&agents).map_err(|error| error.to_string())?;
        fs::create_dir(&agents).map_err(|error| error.to_string())?;
        let started = std::time::Instant::now();
        eventually("the agents are frozen", Duration::from_secs(10), || {
            let frozen = fs::read_to_string(agents.join("cgroup.freeze")).ok()?;
            (frozen.trim() == "1").then_some(())
        });
        Ok(format!("after {} ms", started.elapsed().as_millis()))
    });
    sheet.row(
        "an agent that starts now does not run, until the guard is loaded",
        "cgroup.freeze",
        || {
            let bot = host.site.bot();
            // It stops before its first instruction, and with it whoever waits for it.
            let attack =
                std::thread::spawn(move || bot.attack(["tcp_connect", "192.0.2.7", "5432"]));
            std::thread::sleep(Duration::from_secs(1));
            if attack.is_finished() {
                return Err("it ran".to_owned());
            }
            host.site.load_guard();
            let said = attack.join().map_err(|_| "the attack could not be run")?;
            // The gateway may not have noticed yet that all is well again.
            if !["ok", "ECONNREFUSED"].contains(&said.errno().as_str()) {
                return Err(said.story());
            }
            eventually("agents are served again", Duration::from_secs(20), || {
                let said = host.site.bot().attack(["tcp_connect", "192.0.2.7", "5432"]);
                (said.errno() == "ok").then_some(())
            });
            Ok("then redirected".to_owned())
        },
    );
    sheet.finish();
}

/// The certificates of the authority, which are put where the installation has them, and the folders on the way.
fn besides_what_it_trusts(found: &[String]) -> Vec<String> {
    let trusted = |path: &&String| {
        ["/tls/ca.pem", "/tls/bundle.pem"]
            .iter()
            .any(|file| path.ends_with(file))
    };
    let trusted: Vec<&String> = found.iter().filter(trusted).collect();
    let on_the_way = |path: &&String| trusted.iter().any(|file| file.starts_with(path.as_str()));
    let others = found.iter().filter(|path| !on_the_way(path));
    others.cloned().collect()
}
