//! `sluice status`: whether agents are intercepted, whether they get through, and what each of them did, as
//! the kernel counted it. Read from the pinned maps, so it answers also when no gateway runs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use nix::unistd::{Uid, geteuid, seteuid};
use serde::Serialize;

use super::Globals;
use super::tail::quiet_when_reader_leaves;
use crate::broker::{BrokerError, Client};
use crate::config::Config;
use crate::identity::cgroup::{AgentTree, CgroupError, Located};
use crate::intercept::cgroup::{self, cgroup2_mount};
use crate::intercept::guard::{self, HEARTBEAT_MAX};
use crate::intercept::{Counters, Denial, InterceptError, Maps, registered_netns};
use crate::privileges;
use crate::recording::terminal::{Paint, Tone, duration, one_line, printable_json, size};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Show it anew every second, until interrupted
    #[arg(long)]
    watch: bool,
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    quiet_when_reader_leaves(show(&args, globals))
}

fn show(args: &Args, globals: &Globals) -> Result<ExitCode> {
    let config = globals.load_config()?;
    let mount = cgroup2_mount()?;
    let tree = AgentTree::new(
        &mount,
        &config.kernel.agents_cgroup,
        config.agents.values().cloned(),
    );
    let places = Places::new(&tree);
    loop {
        let status = read(&config, &mount, &places)?;
        print(&status, args.watch, globals.json)?;
        if !args.watch {
            return Ok(match status.reachable {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            });
        }
        sleep(Duration::from_secs(1));
    }
}

/// What is the case, in the shape of the JSON output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Status {
    /// Agents are intercepted and a gateway answers them.
    reachable: bool,
    guard: Guard,
    broker: Broker,
    gateway: Gateway,
    /// Whether the agents' processes stand still.
    frozen: bool,
    /// Cookies of the network namespaces in which the gateway listens.
    netns: Vec<u64>,
    agents: Vec<Agent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Guard {
    agents_cgroup: String,
    /// The gateway port that agents are redirected to.
    port: Option<u16>,
    /// Why agents are not intercepted as they should be; empty when they are.
    problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Gateway {
    /// The kernel lets agents connect only while this is true.
    alive: bool,
    /// Since the last sign of life; none when it said that it stops.
    heartbeat_age_ms: Option<u64>,
    /// None: there is none, or none that can be seen.
    process: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Broker {
    answers: bool,
    problem: Option<String>,
}

/// A process in the gateway's cgroup that holds what only a gateway does: all of its maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Process {
    pid: u32,
    /// Its maps are not the pinned ones: they are of a guard that was unloaded.
    other_maps: bool,
}

/// What one subtree of the agents' cgroup did, counted since the guard was first loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Agent {
    /// None: no agent is registered for the subtree, or it is gone.
    agent: Option<String>,
    /// Relative to the cgroup mount; none when it is gone.
    cgroup: Option<String>,
    /// 0: what found no room in the kernel's table.
    cgroup_id: u64,
    connects: u64,
    redirected: u64,
    local: u64,
    dns: u64,
    denied: u64,
    packets_out: u64,
    bytes_out: u64,
    packets_in: u64,
    bytes_in: u64,
    denials: Vec<Denied>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Denied {
    reason: &'static str,
    count: u64,
}

// ------------------------------------------------------------------------------------------------ reading it

/// Where the subtrees are. An id never comes back, so one that is gone is not looked for again: each search
/// walks all cgroups below the agents'.
struct Places<'a> {
    tree: &'a AgentTree,
    gone: RefCell<BTreeSet<u64>>,
}

impl<'a> Places<'a> {
    fn new(tree: &'a AgentTree) -> Self {
        Self {
            tree,
            gone: RefCell::default(),
        }
    }

    fn locate(&self, id: u64) -> Option<Located> {
        if self.gone.borrow().contains(&id) {
            return None;
        }
        let found = self.tree.locate(id);
        if let Err(CgroupError::Unknown(_)) = found {
            self.gone.borrow_mut().insert(id);
        }
        found.ok()
    }
}

fn read(config: &Config, mount: &Path, places: &Places<'_>) -> Result<Status, InterceptError> {
    let report = guard::inspect(&config.kernel)?;
    let guard = Guard {
        agents_cgroup: config.kernel.agents_cgroup.clone(),
        port: report.port,
        problems: report.all_problems(),
    };
    let broker = Broker::ask(config);
    let frozen = cgroup::is_frozen(&mount.join(&config.kernel.agents_cgroup));
    let home = mount.join(&config.kernel.gateway_cgroup);
    // Nothing is pinned: there is nothing more to say.
    if guard.port.is_none() {
        let gateway = Gateway::new(None, find_gateway(&home, &BTreeSet::new()));
        return Ok(Status::new(
            guard,
            broker,
            gateway,
            frozen,
            Vec::new(),
            Vec::new(),
        ));
    }
    let pinned = Maps::open_pins(&config.kernel.pins)?;
    let own = |fd: &OwnedFd| fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let ids = pinned.iter().filter_map(|fd| map_id(&own(fd).ok()?));
    let process = find_gateway(&home, &ids.collect());
    let maps = Maps::from_fds(pinned)?;
    let mut netns = registered_netns(&config.kernel.pins)?;
    netns.sort_unstable();
    let agents = agents(&maps.counters.read()?, |id| places.locate(id));
    let gateway = Gateway::new(maps.heartbeat.age()?, process);
    Ok(Status::new(guard, broker, gateway, frozen, netns, agents))
}

impl Status {
    fn new(
        guard: Guard,
        broker: Broker,
        gateway: Gateway,
        frozen: bool,
        netns: Vec<u64>,
        agents: Vec<Agent>,
    ) -> Self {
        let intercepted = guard.problems.is_empty();
        Self {
            reachable: intercepted && gateway.alive && !frozen && !netns.is_empty(),
            guard,
            broker,
            gateway,
            frozen,
            netns,
            agents,
        }
    }
}

impl Broker {
    /// It answers nobody but the gateway's user, so it is asked as that one.
    fn ask(config: &Config) -> Self {
        let problem = ask_broker(config).err();
        Self {
            answers: problem.is_none(),
            problem,
        }
    }
}

fn ask_broker(config: &Config) -> Result<(), String> {
    let user = privileges::lookup(&config.gateway.user).map_err(|error| error.to_string())?;
    let own = geteuid();
    let failed = |errno: Errno| format!("becoming the gateway's user to ask it: {errno}");
    seteuid(Uid::from_raw(user.uid)).map_err(failed)?;
    let answer = Client::new(&config.broker.socket).state();
    seteuid(own).map_err(failed)?;
    answer.map(drop).map_err(|error| match error {
        BrokerError::Unreachable { socket, cause } => {
            format!("nobody answers on {}: {cause}", socket.display())
        }
        error => error.to_string(),
    })
}

impl Gateway {
    fn new(heartbeat: Option<Duration>, process: Option<Process>) -> Self {
        let age_ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self {
            alive: heartbeat.is_some_and(|age| age <= HEARTBEAT_MAX),
            heartbeat_age_ms: heartbeat.map(age_ms),
            process,
        }
    }
}

/// The gateway below this cgroup; one that works on the pinned maps before one that does not.
fn find_gateway(cgroup: &Path, pinned: &BTreeSet<u64>) -> Option<Process> {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let here = processes.lines().filter_map(|pid| {
        let pid = pid.parse().ok()?;
        gateway_process(pid, &maps_of(pid), pinned)
    });
    let below = cgroup::children(cgroup).filter_map(|child| find_gateway(&child, pinned));
    here.chain(below).min_by_key(|found| found.other_maps)
}

fn gateway_process(pid: u32, held: &BTreeSet<u64>, pinned: &BTreeSet<u64>) -> Option<Process> {
    // The broker is there as well; it opens all of them only for the moment of handing them out.
    (held.len() >= Maps::NAMES.len()).then(|| Process {
        pid,
        other_maps: pinned.is_empty() || !pinned.is_subset(held),
    })
}

/// The ids of the BPF maps that a process has open.
fn maps_of(pid: u32) -> BTreeSet<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    let files = entries.into_iter().flatten().flatten();
    files
        .filter_map(|file| map_id(&fs::read_to_string(file.path()).ok()?))
        .collect()
}

fn map_id(fdinfo: &str) -> Option<u64> {
    let id = fdinfo.lines().find_map(|line| line.strip_prefix("map_id:"));
    id?.trim().parse().ok()
}

/// By name, then by path; those without either last.
fn agents(counters: &[(u64, Counters)], locate: impl Fn(u64) -> Option<Located>) -> Vec<Agent> {
    let mut agents: Vec<Agent> = counters
        .iter()
        .map(|(id, counted)| {
            // The entry of what found no room is no cgroup.
            let located = Some(*id).filter(|id| *id != 0).and_then(&locate);
            Agent::new(*id, located, counted)
        })
        .filter(|agent| agent.cgroup_id != 0 || agent.did_anything())
        .collect();
    let order = |agent: &Agent| {
        let name = (agent.agent.is_none(), agent.agent.clone());
        let place = (agent.cgroup.is_none(), agent.cgroup.clone());
        (agent.cgroup_id == 0, name, place, agent.cgroup_id)
    };
    agents.sort_by_cached_key(order);
    agents
}

impl Agent {
    fn new(cgroup_id: u64, located: Option<Located>, counted: &Counters) -> Self {
        let (cgroup, agent) = located
            .map(|located| (located.cgroup_path, located.agent))
            .unzip();
        let mut denials: Vec<Denied> = Denial::ALL
            .iter()
            .zip(counted.denied)
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| Denied {
                reason: reason.name(),
                count,
            })
            .collect();
        denials.sort_by_key(|denied| std::cmp::Reverse(denied.count));
        Self {
            agent: agent.flatten().map(|agent| agent.name.clone()),
            cgroup,
            cgroup_id,
            connects: counted.connects,
            redirected: counted.redirected,
            local: counted.local,
            dns: counted.dns,
            denied: counted
                .denied
                .iter()
                .fold(0, |sum, n| sum.saturating_add(*n)),
            packets_out: counted.packets_out,
            bytes_out: counted.bytes_out,
            packets_in: counted.packets_in,
            bytes_in: counted.bytes_in,
            denials,
        }
    }

    fn did_anything(&self) -> bool {
        let packets = self.packets_out > 0 || self.packets_in > 0;
        packets || self.connects > 0 || self.dns > 0 || self.denied > 0
    }

    fn name(&self) -> String {
        self.agent.as_deref().map_or("-".to_owned(), one_line)
    }

    fn place(&self) -> String {
        match (&self.cgroup, self.cgroup_id) {
            (Some(path), _) => one_line(path),
            (None, 0) => "(no room in the table)".to_owned(),
            (None, id) => format!("(gone: {id})"),
        }
    }
}

// ----------------------------------------------------------------------------------------------- showing it

fn print(status: &Status, again: bool, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let text = serde_json::to_string(status)?;
        writeln!(out, "{}", printable_json(&text))?;
    } else {
        if again && io::stdout().is_terminal() {
            // Home, and everything below it cleared.
            write!(out, "\u{1b}[H\u{1b}[2J")?;
        }
        out.write_all(text(status, Paint::for_stdout()).as_bytes())?;
        if again && !io::stdout().is_terminal() {
            writeln!(out)?;
        }
    }
    Ok(out.flush()?)
}

fn text(status: &Status, paint: Paint) -> String {
    let mut text = summary(status, paint);
    if status.agents.is_empty() {
        return text;
    }
    text.push('\n');
    text += &counts(&status.agents, paint);
    if status.agents.iter().any(|agent| agent.denied > 0) {
        text.push('\n');
        text += &denials(&status.agents, paint);
    }
    text
}

fn summary(status: &Status, paint: Paint) -> String {
    let guard = &status.guard;
    let mut text = match (guard.problems.as_slice(), guard.port) {
        ([], Some(port)) => line(
            "guard",
            &paint.tone(Tone::Good, "ok"),
            &format!(
                ", {} is redirected to port {port}",
                one_line(&guard.agents_cgroup)
            ),
        ),
        _ => line("guard", &paint.tone(Tone::Bad, "NOT INTERCEPTING"), ""),
    };
    for problem in &guard.problems {
        text += &format!("          {}\n", one_line(problem));
    }
    text += &match &status.broker.problem {
        None => line("broker", &paint.tone(Tone::Good, "answers"), ""),
        Some(problem) => line(
            "broker",
            &paint.tone(Tone::Bad, "MISSING"),
            &format!(", {}; start `sluice broker`", one_line(problem)),
        ),
    };
    let gateway = &status.gateway;
    let (tone, word) = match gateway.alive {
        true => (Tone::Good, "alive"),
        false => (Tone::Bad, "silent"),
    };
    let age = gateway.heartbeat_age_ms.map_or(String::new(), |ms| {
        let age = duration(ms.saturating_mul(1000));
        format!(", last sign of life {age} ago")
    });
    text += &line("gateway", &paint.tone(tone, word), &age);
    if !gateway.alive {
        text += &format!("          {}\n", why_silent(status));
    }
    let (tone, word, more) = match (status.reachable, guard.problems.is_empty()) {
        _ if status.frozen => (
            Tone::Bad,
            "FROZEN",
            ", their processes stand still until `sluice guard load` lets them go on",
        ),
        (true, _) => (Tone::Good, "get through to the gateway", ""),
        (false, true) => (Tone::Bad, "are refused every connection", ""),
        (false, false) => (Tone::Bad, "may reach the network past the gateway", ""),
    };
    text += &line("agents", &paint.tone(tone, word), more);
    let cookies: Vec<String> = status.netns.iter().map(u64::to_string).collect();
    let list = match cookies.is_empty() {
        true => String::new(),
        false => format!(" (cookies {})", cookies.join(", ")),
    };
    text += &line("netns", &cookies.len().to_string(), &list);
    text
}

fn why_silent(status: &Status) -> String {
    let Some(Process { pid, other_maps }) = status.gateway.process else {
        return "it has stopped or was never started: start `sluice run`".to_owned();
    };
    let why = match (other_maps, status.broker.answers) {
        (true, _) => {
            "works on other maps, those of a guard that was unloaded: load the guard if it is not, then restart `sluice run`"
        }
        (false, false) => "refuses agents as long as no broker answers",
        (false, true) => "gives no sign of life: it hangs or was stopped",
    };
    format!("process {pid} is there, but {why}")
}

fn line(what: &str, state: &str, more: &str) -> String {
    format!("{what:<8}  {state}{more}\n")
}

fn counts(agents: &[Agent], paint: Paint) -> String {
    const HEADING: [&str; 11] = [
        "AGENT",
        "CGROUP",
        "CONNECTS",
        "REDIRECTED",
        "LOCAL",
        "DNS",
        "DENIED",
        "PACKETS OUT",
        "BYTES OUT",
        "PACKETS IN",
        "BYTES IN",
    ];
    let rows: Vec<[String; 11]> = agents
        .iter()
        .map(|agent| {
            [
                agent.name(),
                agent.place(),
                agent.connects.to_string(),
                agent.redirected.to_string(),
                agent.local.to_string(),
                agent.dns.to_string(),
                agent.denied.to_string(),
                agent.packets_out.to_string(),
                size(agent.bytes_out),
                agent.packets_in.to_string(),
                size(agent.bytes_in),
            ]
        })
        .collect();
    table(&HEADING, &rows, 2, |column, cell| match column {
        0 => paint.tone(Tone::Bold, cell),
        6 if cell.trim() != "0" => paint.tone(Tone::Bad, cell),
        _ => cell,
    })
}

fn denials(agents: &[Agent], paint: Paint) -> String {
    let rows: Vec<[String; 4]> = agents
        .iter()
        .flat_map(|agent| {
            agent.denials.iter().map(|denied| {
                let count = denied.count.to_string();
                [agent.name(), agent.place(), denied.reason.to_owned(), count]
            })
        })
        .collect();
    let heading = ["AGENT", "CGROUP", "DENIED BECAUSE", "TIMES"];
    table(&heading, &rows, 3, |column, cell| match column {
        0 => paint.tone(Tone::Bold, cell),
        3 => paint.tone(Tone::Bad, cell),
        _ => cell,
    })
}

/// From column `numbers` on, cells are set to the right.
fn table<const N: usize>(
    heading: &[&str; N],
    rows: &[[String; N]],
    numbers: usize,
    paint: impl Fn(usize, String) -> String,
) -> String {
    let mut widths = heading.map(|name| name.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let set = |row: &[String; N], paint: &dyn Fn(usize, String) -> String| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match column < numbers {
                true => paint(column, format!("{cell:<width$}")),
                false => paint(column, format!("{cell:>width$}")),
            })
            .collect();
        cells.join("  ") + "\n"
    };
    let mut text = set(&heading.map(str::to_owned), &|_, cell| cell);
    for row in rows {
        text += &set(row, &paint);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters() -> Counters {
        Counters {
            connects: 12,
            redirected: 8,
            local: 1,
            dns: 4,
            packets_out: 120,
            bytes_out: 14_540,
            packets_in: 98,
            bytes_in: 2_000_000,
            denied: [0; Denial::COUNT],
        }
    }

    fn denying(denied: &[(Denial, u64)]) -> Counters {
        let mut counters = counters();
        for (reason, count) in denied {
            counters.denied[*reason as usize] = *count;
        }
        counters
    }

    fn nothing() -> Counters {
        Counters {
            connects: 0,
            redirected: 0,
            local: 0,
            dns: 0,
            packets_out: 0,
            bytes_out: 0,
            packets_in: 0,
            bytes_in: 0,
            denied: [0; Denial::COUNT],
        }
    }

    fn agent(name: &str) -> std::sync::Arc<crate::config::Agent> {
        crate::identity::cgroup::tests::agent(name, &format!("agents.slice/{name}"))
    }

    /// 1 is report-bot, 2 a group without an agent, 3 is gone.
    fn located(id: u64) -> Option<Located> {
        let path = match id {
            1 => "report-bot",
            2 => "stranger",
            4 => "a-bot",
            _ => return None,
        };
        Some(Located {
            cgroup_path: format!("agents.slice/{path}"),
            agent: (id != 2).then(|| agent(path)),
        })
    }

    fn guard(problems: &[&str]) -> Guard {
        Guard {
            agents_cgroup: "agents.slice".to_owned(),
            port: Some(15001),
            problems: problems.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn who_did_what() {
        let counted = [
            (0, denying(&[(Denial::Bind, 2)])),
            (1, denying(&[(Denial::Bind, 1), (Denial::NoTarget, 2)])),
            (2, counters()),
            (3, counters()),
            (4, nothing()),
        ];
        let agents = agents(&counted, located);
        let shown: Vec<(String, String)> = agents
            .iter()
            .map(|agent| (agent.name(), agent.place()))
            .collect();
        let expected = [
            ("a-bot", "agents.slice/a-bot"),
            ("report-bot", "agents.slice/report-bot"),
            ("-", "agents.slice/stranger"),
            ("-", "(gone: 3)"),
            ("-", "(no room in the table)"),
        ];
        let expected = expected.map(|(name, place)| (name.to_owned(), place.to_owned()));
        assert_eq!(shown, expected);
        assert_eq!(agents[1].denied, 3);
        assert_eq!(
            agents[1].denials,
            [
                Denied {
                    reason: "no-target",
                    count: 2
                },
                Denied {
                    reason: "bind",
                    count: 1
                }
            ]
        );
        assert_eq!(super::agents(&[(0, nothing())], located), []);
    }

    fn broker(answers: bool) -> Broker {
        let nobody = || "nobody answers on /run/b: Connection refused".to_owned();
        Broker {
            answers,
            problem: (!answers).then(nobody),
        }
    }

    #[test]
    fn why_nobody_gets_through() {
        let process = |other_maps| {
            Some(Process {
                pid: 42,
                other_maps,
            })
        };
        for (name, answers, process, frozen, says) in [
            (
                "no broker",
                false,
                process(false),
                false,
                "\nbroker    MISSING, nobody answers on /run/b: Connection refused; start `sluice broker`\n",
            ),
            (
                "silent for it",
                false,
                process(false),
                false,
                "\ngateway   silent\n          process 42 is there, but refuses agents as long as no broker answers\nagents    are refused every connection\n",
            ),
            (
                "other maps",
                true,
                process(true),
                false,
                "process 42 is there, but works on other maps, ",
            ),
            (
                "hangs",
                true,
                process(false),
                false,
                "process 42 is there, but gives no sign of life",
            ),
            ("frozen", true, None, true, "\nagents    FROZEN, "),
        ] {
            let gateway = Gateway::new(None, process);
            let agents = Vec::new();
            let status = Status::new(
                guard(&[]),
                broker(answers),
                gateway,
                frozen,
                vec![1],
                agents,
            );
            assert!(!status.reachable, "{name}");
            let text = text(&status, Paint::PLAIN);
            assert!(text.contains(says), "{name}: {text}");
        }
        let well = Gateway::new(Some(Duration::ZERO), process(false));
        let frozen = Status::new(guard(&[]), broker(true), well, true, vec![1], Vec::new());
        assert!(!frozen.reachable);
    }

    #[test]
    fn a_gateway_is_known_by_its_maps() {
        let ids = |from: u64| (from..from + Maps::NAMES.len() as u64).collect::<BTreeSet<u64>>();
        let other_maps = |held: &BTreeSet<u64>, pinned: &BTreeSet<u64>| {
            gateway_process(7, held, pinned).map(|process| process.other_maps)
        };
        assert_eq!(other_maps(&ids(1), &ids(1)), Some(false));
        assert_eq!(other_maps(&ids(1), &ids(2)), Some(true));
        assert_eq!(other_maps(&ids(1), &BTreeSet::new()), Some(true));
        assert_eq!(other_maps(&BTreeSet::from([1]), &ids(1)), None);
        assert_eq!(map_id("pos:\t0\nmap_type:\t2\nmap_id:\t381\n"), Some(381));
        assert_eq!(map_id("pos:\t0\n"), None);
    }

    #[test]
    fn who_gets_through() {
        let ms = Duration::from_millis;
        let stale = HEARTBEAT_MAX + ms(1);
        type Row<'a> = (&'a str, Guard, Option<Duration>, Vec<u64>, bool, &'a str);
        let rows: [Row; 6] = [
            (
                "all well",
                guard(&[]),
                Some(ms(200)),
                vec![1],
                true,
                "agents    get through to the gateway\n",
            ),
            (
                "just in time",
                guard(&[]),
                Some(HEARTBEAT_MAX),
                vec![1],
                true,
                "gateway   alive, last sign of life 3.0 s ago\n",
            ),
            (
                "stale",
                guard(&[]),
                Some(stale),
                vec![1],
                false,
                "gateway   silent, last sign of life 3.0 s ago\n",
            ),
            (
                "stopped",
                guard(&[]),
                None,
                vec![1],
                false,
                "gateway   silent\n          it has stopped or was never started: start `sluice run`\n",
            ),
            (
                "listens nowhere",
                guard(&[]),
                Some(ms(1)),
                vec![],
                false,
                "agents    are refused every connection\nnetns     0\n",
            ),
            (
                "not intercepted",
                guard(&["connect4: not pinned"]),
                Some(ms(1)),
                vec![1],
                false,
                "guard     NOT INTERCEPTING\n          connect4: not pinned\nbroker    answers\ngateway   alive, last sign of life 1.0 ms ago\nagents    may reach the network past the gateway\n",
            ),
        ];
        for (name, guard, heartbeat, netns, reachable, says) in rows {
            let gateway = Gateway::new(heartbeat, None);
            let status = Status::new(guard, broker(true), gateway, false, netns, Vec::new());
            assert_eq!(status.reachable, reachable, "{name}");
            let text = text(&status, Paint::PLAIN);
            assert!(text.contains(says), "{name}: {text}");
        }
    }

    #[test]
    fn the_whole_picture() {
        let counted = [
            (1, denying(&[(Denial::Bind, 1), (Denial::NoTarget, 2)])),
            (3, nothing()),
        ];
        let status = Status::new(
            guard(&[]),
            broker(true),
            Gateway::new(Some(Duration::from_millis(240)), None),
            false,
            vec![1, 4097],
            agents(&counted, located),
        );
        let expected = "\
guard     ok, agents.slice is redirected to port 15001
broker    answers
gateway   alive, last sign of life 240.0 ms ago
agents    get through to the gateway
netns     2 (cookies 1, 4097)

AGENT       CGROUP                   CONNECTS  REDIRECTED  LOCAL  DNS  DENIED  PACKETS OUT  BYTES OUT  PACKETS IN  BYTES IN
report-bot  agents.slice/report-bot        12           8      1    4       3          120   14.2 KiB          98   1.9 MiB
-           (gone: 3)                       0           0      0    0       0            0        0 B           0       0 B

AGENT       CGROUP                   DENIED BECAUSE  TIMES
report-bot  agents.slice/report-bot  no-target           2
report-bot  agents.slice/report-bot  bind                1
";
        let plain = text(&status, Paint::PLAIN);
        assert_eq!(plain, expected, "\n{plain}");
        let coloured = text(&status, Paint::COLOURS);
        assert!(coloured.contains("\u{1b}[31m     3\u{1b}[0m"), "{coloured}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["reachable"], true);
        assert_eq!(json["agents"][0]["denials"][0]["count"], 2);
    }
}
