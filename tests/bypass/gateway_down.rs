//! Fifty processes of an agent connect in a loop while something befalls the gateway: none of them gets past it, nobody else
//! notices, and when it is back they are served without having been touched.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::attack::{Running, program};
use super::installed::Installed;
use super::sheet::{Outcome, Sheet};
use super::site::Site;
use crate::harness::program::eventually;
use crate::harness::{cgroup, scratch};

const AGENTS: usize = 50;
/// What each waits between two connects: together about as many as two cores manage beside the gateway.
const PAUSE_MS: &str = "150";
/// How long a stopped heart may go unnoticed (`Settings::heartbeat_max_ns`).
const HEARTBEAT_MS: u64 = 3000;
/// The agents' own programs may be late by this on a busy machine; what they report is when they noticed.
const LATE_MS: u64 = 400;
/// A place outside that connects all the time, and never leaves the host.
const ELSEWHERE: u16 = 7777;

/// Fifty agents and one process outside, all connecting.
struct Load {
    agents: Vec<Running>,
    outsider: Running,
    _elsewhere: TcpListener,
}

/// What a loop reports: the same answer, so many times, until then.
#[derive(Debug)]
struct Stretch {
    answer: String,
    times: u64,
    until_ms: u64,
}

impl Load {
    fn start(site: &Site) -> Load {
        let elsewhere = site
            .uplink
            .host
            .within(|| TcpListener::bind(("127.0.0.1", ELSEWHERE)))
            .expect("a new namespace");
        let places = ["192.0.2.7", "2001:db8::7", "10.77.0.2", "fd00:77::2"];
        let agents = (0..AGENTS)
            .map(|n| {
                site.bot()
                    .start(["tcp_loop", places[n % places.len()], "5432", PAUSE_MS])
            })
            .collect();
        // Its backlog fills: nobody accepts. A reset connection leaves the queue when it is accepted only,
        // so somebody has to.
        let accepting = elsewhere.try_clone().expect("it is ours");
        std::thread::spawn(move || while accepting.accept().is_ok() {});
        Load {
            agents,
            outsider: site
                .outsider()
                .start(["tcp_loop", "127.0.0.1", "7777", "20"]),
            _elsewhere: elsewhere,
        }
    }

    fn end(self) -> (Vec<Vec<Stretch>>, Vec<Stretch>) {
        let agents = self.agents.into_iter().map(|agent| stretches(agent.end()));
        (agents.collect(), stretches(self.outsider.end()))
    }
}

fn stretches(lines: Vec<Value>) -> Vec<Stretch> {
    lines
        .iter()
        .map(|line| Stretch {
            answer: line["answer"].as_str().unwrap_or_default().to_owned(),
            times: line["times"].as_u64().unwrap_or_default(),
            until_ms: line["until_ms"].as_u64().unwrap_or_default(),
        })
        .collect()
}

fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock is there");
    now.tv_sec().unsigned_abs() * 1000 + now.tv_nsec().unsigned_abs() / 1_000_000
}

/// What befell the gateway, and when.
struct Outage {
    began_ms: u64,
    /// When a connect may have succeeded for the last time.
    grace_ms: u64,
    mended_ms: u64,
}

/// Every agent: served, then refused with nothing but ECONNREFUSED, then served again.
fn judge(load: Load, outage: &Outage) -> Outcome {
    let (agents, outsider) = load.end();
    if outsider.iter().any(|stretch| stretch.answer != "ok") {
        return Err(format!("the process outside noticed: {outsider:?}"));
    }
    let (mut served, mut refused, mut again) = (0, 0, 0);
    for agent in &agents {
        for stretch in agent {
            let known = ["ok", "ECONNREFUSED"].contains(&stretch.answer.as_str());
            if !known {
                return Err(format!("an agent got {stretch:?}"));
            }
        }
        // A stretch of successes that ends between the outage and its end reaches into it.
        let into = agent.iter().find(|stretch| {
            stretch.answer == "ok"
                && stretch.until_ms > outage.began_ms + outage.grace_ms + LATE_MS
                && stretch.until_ms < outage.mended_ms
        });
        if let Some(stretch) = into {
            return Err(format!(
                "an agent connected up to {} ms into the outage",
                stretch.until_ms - outage.began_ms
            ));
        }
        match &agent[..] {
            [first, middle @ .., last] if first.answer == "ok" && last.answer == "ok" => {
                served += first.times;
                again += last.times;
                refused += middle
                    .iter()
                    .filter(|one| one.answer != "ok")
                    .map(|one| one.times)
                    .sum::<u64>();
            }
            other => {
                return Err(format!(
                    "an agent was not served before and after: {other:?}"
                ));
            }
        }
    }
    let others: u64 = outsider.iter().map(|stretch| stretch.times).sum();
    if refused < AGENTS as u64 {
        return Err(format!(
            "only {refused} connects were made during the outage"
        ));
    }
    Ok(format!(
        "{AGENTS} loops: {served} served, {refused} refused, {again} served again; {others} of others, all served"
    ))
}

/// Long enough for every agent to connect several times.
fn a_while() {
    sleep(Duration::from_millis(1500));
}

#[test]
fn killed() {
    let mut host = Installed::start();
    let mut sheet = Sheet::new("The gateway is down", host.site.uplink.capture());
    sheet.row("kill -9", "nobody listens; the links are pinned", || {
        let load = Load::start(&host.site);
        a_while();
        let began_ms = now_ms();
        host.kill_gateway();
        a_while();
        let mended_ms = now_ms();
        host.start_gateway();
        a_while();
        judge(
            load,
            &Outage {
                began_ms,
                grace_ms: 0,
                mended_ms,
            },
        )
    });
    sheet.finish();
}

#[test]
fn stopped() {
    let host = Installed::start();
    let mut sheet = Sheet::new("The gateway hangs", host.site.uplink.capture());
    sheet.row("SIGSTOP", "connect: gateway-silent", || {
        let load = Load::start(&host.site);
        a_while();
        let began_ms = now_ms();
        host.signal_gateway(Signal::SIGSTOP);
        sleep(Duration::from_millis(HEARTBEAT_MS));
        a_while();
        let mended_ms = now_ms();
        host.signal_gateway(Signal::SIGCONT);
        sleep(Duration::from_secs(1));
        a_while();
        judge(
            load,
            &Outage {
                began_ms,
                grace_ms: HEARTBEAT_MS,
                mended_ms,
            },
        )
    });
    sheet.finish();
}

#[test]
fn out_of_memory() {
    let mut host = Installed::without_gateway(Site::prepare());
    let memory = MemoryGroup::of(&host.site);
    host.start_gateway_by(memory.starting(&host.site));
    let mut sheet = Sheet::new("The gateway is out of memory", host.site.uplink.capture());
    sheet.row(
        "the kernel's OOM killer",
        "nobody listens; the links are pinned",
        || {
            let load = Load::start(&host.site);
            a_while();
            let began_ms = now_ms();
            memory.exhaust();
            host.gateway_ended();
            let killed = memory.kills();
            if killed == 0 {
                return Err("the gateway ended, but not by the OOM killer".to_owned());
            }
            // The time at which it was noticed; the kill itself was before.
            let noticed_ms = now_ms();
            memory.lift();
            a_while();
            let mended_ms = now_ms();
            host.start_gateway();
            a_while();
            let grace_ms = noticed_ms - began_ms;
            judge(
                load,
                &Outage {
                    began_ms,
                    grace_ms,
                    mended_ms,
                },
            )
        },
    );
    sheet.finish();
}

#[test]
fn disk_full() {
    let site = Site::prepare();
    let mut host = Installed::without_gateway(site);
    host.mount_storage("8m");
    host.start_gateway();
    let mut sheet = Sheet::new("The gateway's disk is full", host.site.uplink.capture());
    sheet.row(
        "no space for the log",
        "the gateway stops its own heart",
        || {
            let load = Load::start(&host.site);
            a_while();
            let began_ms = now_ms();
            host.fill_storage();
            sleep(Duration::from_millis(HEARTBEAT_MS));
            a_while();
            let mended_ms = now_ms();
            host.empty_storage();
            // It finds out by trying.
            sleep(Duration::from_secs(3));
            a_while();
            judge(
                load,
                &Outage {
                    began_ms,
                    grace_ms: HEARTBEAT_MS,
                    mended_ms,
                },
            )
        },
    );
    sheet.finish();
}

/// Without a broker nobody checks that the programs are in place, so the gateway stops its own heart.
#[test]
fn the_broker_is_gone() {
    let mut host = Installed::start();
    let mut sheet = Sheet::new("The broker is down", host.site.uplink.capture());
    let connect = |host: &Installed| {
        let said = host.site.bot().attack(["tcp_connect", "192.0.2.7", "5432"]);
        said.errno()
    };
    sheet.row(
        "kill -9 of the broker",
        "the gateway stops its own heart",
        || {
            let started = std::time::Instant::now();
            host.kill_broker();
            eventually("agents are refused", Duration::from_secs(30), || {
                (connect(&host) == "ECONNREFUSED").then_some(())
            });
            let refused = started.elapsed().as_secs();
            host.start_broker();
            eventually("agents are served again", Duration::from_secs(30), || {
                (connect(&host) == "ok").then_some(())
            });
            Ok(format!(
                "refused after {refused} s, served again with a new broker"
            ))
        },
    );
    sheet.finish();
}

/// A memory control group in which the gateway is the first to be killed: the gateway's own where version 2 has
/// the memory controller, one of version 1 on hybrid hosts.
struct MemoryGroup {
    /// Where the limit is.
    folder: PathBuf,
    /// Where the gateway and its neighbour are put.
    members: Option<PathBuf>,
    neighbour: PathBuf,
    limit: &'static str,
    kills: &'static str,
}

impl MemoryGroup {
    fn of(site: &Site) -> MemoryGroup {
        let unified = cgroup::mount();
        let has_it = fs::read_to_string(unified.join("cgroup.controllers"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|one| one == "memory"));
        match has_it {
            true => Self::of_version_2(site, &unified),
            false => Self::of_version_1(),
        }
    }

    fn of_version_1() -> MemoryGroup {
        let folder = Path::new("/sys/fs/cgroup/memory").join(scratch::name());
        fs::create_dir(&folder).expect("there is a memory controller of either version");
        MemoryGroup {
            members: Some(folder.clone()),
            neighbour: folder.clone(),
            folder,
            limit: "memory.limit_in_bytes",
            kills: "memory.oom_control",
        }
    }

    /// `sluice run` goes to the gateway's cgroup by itself.
    fn of_version_2(site: &Site, mount: &Path) -> MemoryGroup {
        let folder = mount.join(&site.kernel.gateway_cgroup);
        for parent in [mount, &mount.join(&site.kernel.guard_cgroup), &folder] {
            fs::write(parent.join("cgroup.subtree_control"), "+memory").expect("root may");
        }
        let neighbour = folder.join("neighbour");
        fs::create_dir(&neighbour).expect("root may make control groups");
        MemoryGroup {
            members: None,
            neighbour,
            folder,
            limit: "memory.max",
            kills: "memory.events",
        }
    }

    /// `sluice run`, charged to this group.
    fn starting(&self, site: &Site) -> Command {
        let sluice = site.sluice(["run"]);
        let enter = match &self.members {
            Some(group) => format!("echo 0 > {}/cgroup.procs && ", group.display()),
            None => String::new(),
        };
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(
                r#"{enter}echo 1000 > /proc/self/oom_score_adj && exec "$@""#
            ))
            .arg("sh")
            .arg(sluice.get_program())
            .args(sluice.get_args())
            .current_dir("/");
        command
    }

    /// A neighbour takes all the memory there is: the kernel kills the gateway for it, then the neighbour.
    fn exhaust(&self) {
        fs::write(self.folder.join(self.limit), (96u64 << 20).to_string()).expect("it is ours");
        let mut neighbour = Command::new("sh");
        neighbour
            .args([
                "-c",
                r#"echo 0 > "$0/cgroup.procs" && exec "$1" eat_memory 400"#,
            ])
            .arg(&self.neighbour)
            .arg(program())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let status = neighbour.status().expect("sh starts");
        assert!(!status.success(), "the neighbour was to be killed as well");
    }

    fn lift(&self) {
        fs::write(self.folder.join(self.limit), (4u64 << 30).to_string()).expect("it is ours");
    }

    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join(self.kills)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // That of version 2 is the site's.
        let Some(group) = &self.members else { return };
        for _ in 0..100 {
            if fs::remove_dir(group).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}
