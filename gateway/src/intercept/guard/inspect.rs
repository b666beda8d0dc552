//! Whether the agents are really intercepted: not what is pinned counts, but what runs.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use gateway_ebpf::decide::Denial;
use gateway_ebpf::{ConnKey, Flow};
use serde::Serialize;

use super::{AGAIN, Places, settings};
use crate::config;
use crate::intercept::hooks::{self, Hook, Place};
use crate::intercept::maps::{self, Table};
use crate::intercept::{InterceptError, KernelVersion, cgroup, lsm, pins, sys};

/// Far more than a host has; whoever can make more than these has taken the agents' cgroup over.
const MAX_CGROUPS: usize = 65_536;

/// What is there, link by link.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The gateway port that agents are redirected to.
    pub port: Option<u16>,
    pub agents_cgroup: PathBuf,
    pub gateway_cgroup: PathBuf,
    pub guard_cgroup: PathBuf,
    pub links: Vec<LinkState>,
    /// Cgroups at and below the agents' of which every program was found to be in effect.
    pub cgroups: usize,
    /// Problems that no single link has.
    pub problems: Vec<String>,
    /// Connections whose flow is noted and that the other side has not yet claimed.
    pub handshakes: usize,
    /// Calls denied since the guard was first loaded, by reason.
    pub denials: Vec<Denials>,
}

/// One program's attachment.
#[derive(Debug, Clone, Serialize)]
pub struct LinkState {
    pub program: &'static str,
    /// The cgroup, or the network namespace, it is attached to.
    pub target: PathBuf,
    pub link_id: Option<u32>,
    pub program_id: Option<u32>,
    /// How often it ran, and for how long, while the kernel was counting ([`super::count_runs`]).
    pub runs: u64,
    pub run_ns: u64,
    /// Why agents are not safe with it; `None` when all is well.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Denials {
    pub reason: &'static str,
    pub count: u64,
}

impl Report {
    /// Everything that is wrong, in words, one line per cause; empty when agents are intercepted.
    pub fn all_problems(&self) -> Vec<String> {
        if self.port.is_none() {
            return self.problems.clone();
        }
        let mut causes: Vec<(&str, Vec<&str>)> = Vec::new();
        for link in &self.links {
            let Some(problem) = link.problem.as_deref() else {
                continue;
            };
            match causes.iter_mut().find(|(cause, _)| *cause == problem) {
                Some((_, programs)) => programs.push(link.program),
                None => causes.push((problem, vec![link.program])),
            }
        }
        let of_links = causes
            .into_iter()
            .map(|(cause, programs)| format!("{}: {cause}", programs.join(", ")));
        self.problems.iter().cloned().chain(of_links).collect()
    }
}

/// Succeeds only if every program is attached to the live cgroups, works on the pinned maps, and is in
/// effect in every cgroup of the agents.
pub fn verify(kernel: &config::Kernel) -> Result<Report, InterceptError> {
    let report = inspect(kernel)?;
    match report.all_problems() {
        problems if problems.is_empty() => Ok(report),
        problems => Err(InterceptError::NotEnforced(problems)),
    }
}

/// What is there, good or bad.
pub fn inspect(kernel: &config::Kernel) -> Result<Report, InterceptError> {
    let places = Places::find(kernel)?;
    let version = KernelVersion::running()?;
    let told = settings::read(&kernel.pins)?;
    let mut problems = Vec::new();
    if told.is_none() {
        problems.push(format!("the guard is not loaded: {AGAIN}"));
    }
    let maps = pinned_map_ids(&kernel.pins);
    let hooks: Vec<&Hook> = hooks::available(version)
        .chain(lsm::pinned(&kernel.pins))
        .collect();
    let links: Vec<LinkState> = hooks
        .iter()
        .map(|hook| link_state(hook, places.of(hook), &kernel.pins, &maps))
        .collect();
    let mut cgroups = 0;
    // A link that is wrong explains the rest.
    if let Some(told) = &told
        && links.iter().all(|link| link.problem.is_none())
    {
        let ineffective;
        (cgroups, ineffective) = check_effect(&places.agents, &hooks, &links);
        problems.extend(check_settings(kernel, &places, told).or(ineffective));
    }
    Ok(Report {
        port: told.map(|told| told.gateway_port as u16),
        links,
        cgroups,
        problems,
        handshakes: count_handshakes(&kernel.pins),
        denials: read_denials(&kernel.pins),
        agents_cgroup: places.agents,
        gateway_cgroup: places.gateway,
        guard_cgroup: places.above,
    })
}

/// The programs tell agents by the cgroup's id: a cgroup of the same name is another one.
fn check_settings(
    kernel: &config::Kernel,
    places: &Places,
    told: &gateway_ebpf::Settings,
) -> Option<String> {
    let live = cgroup::id(&places.agents).ok()?;
    let told_level = told.agents_level;
    let level = settings::depth(&kernel.agents_cgroup);
    (live != told.agents_id || level != told_level).then(|| {
        let agents = places.agents.display();
        let (told, path) = (told.agents_id, agents);
        format!("the programs take cgroup {told} for the agents', but {path} is {live}: {AGAIN}")
    })
}

fn link_state(hook: &Hook, target: &Path, pins: &Path, maps: &[u32]) -> LinkState {
    let mut state = LinkState {
        program: hook.program,
        target: target.to_path_buf(),
        link_id: None,
        program_id: None,
        runs: 0,
        run_ns: 0,
        problem: None,
    };
    state.problem = check_link(hook, target, pins, maps, &mut state).err();
    state
}

/// The pin proves nothing: a link whose cgroup was removed is detached and stays pinned.
fn check_link(
    hook: &Hook,
    target: &Path,
    pins: &Path,
    maps: &[u32],
    state: &mut LinkState,
) -> Result<(), String> {
    let link = sys::open_pin(&pins::link(pins, hook.program))
        .map_err(|error| format!("not pinned ({error}): {AGAIN}"))?;
    let attached =
        sys::attached(link.as_fd()).map_err(|error| format!("not attached ({error}): {AGAIN}"))?;
    state.link_id = Some(attached.link_id);
    state.program_id = Some(attached.program_id);
    let live = cgroup::id(target)
        .map_err(|error| format!("{} is missing ({error}): {AGAIN}", target.display()))?;
    if attached.target_id == 0 {
        return Err(format!("detached, because its cgroup was removed: {AGAIN}"));
    }
    if attached.target_id != live {
        return Err(format!(
            "attached to {}, but {} is {live}: {AGAIN}",
            attached.target_id,
            target.display()
        ));
    }
    if attached.attach_type != hook.attach_type as u32 {
        return Err(format!(
            "attached to hook {}, not {}: {AGAIN}",
            attached.attach_type, hook.attach_type as u32
        ));
    }
    check_program(hook, attached.program_id, maps, state).map_err(|why| format!("{why}: {AGAIN}"))
}

fn check_program(hook: &Hook, id: u32, maps: &[u32], state: &mut LinkState) -> Result<(), String> {
    let program = sys::program(id)
        .map_err(|error| format!("its program {id} cannot be looked at ({error})"))?;
    state.runs = program.runs;
    state.run_ns = program.run_ns;
    if program.name != hook.kernel_name() {
        return Err(format!(
            "runs program {id} named {:?}, not {:?}",
            program.name,
            hook.kernel_name()
        ));
    }
    let strange = |id: &&u32| {
        // The object's constants are a map too; it belongs to the program alone.
        !maps.contains(id) && sys::map_name(**id).is_ok_and(|name| pins::MAPS.contains(&&*name))
    };
    match program.maps.iter().find(strange) {
        Some(stranger) => Err(format!(
            "its program {id} works on map {stranger}, which is not pinned"
        )),
        None => Ok(()),
    }
}

/// Whether every program of the agents is in effect in their cgroup and in each below it; how many were
/// looked at, and what is wrong.
fn check_effect(agents: &Path, hooks: &[&Hook], links: &[LinkState]) -> (usize, Option<String>) {
    let ours: Vec<(&Hook, u32)> = hooks
        .iter()
        .zip(links)
        .filter(|(hook, _)| hook.place == Place::Agents)
        .filter_map(|(hook, link)| Some((*hook, link.program_id?)))
        .collect();
    let mut looked_at = 0;
    let mut waiting = vec![agents.to_path_buf()];
    while let Some(cgroup) = waiting.pop() {
        // Agents come and go: a cgroup that vanishes while it is looked at is no problem.
        let Ok(folder) = File::open(&cgroup) else {
            continue;
        };
        for (hook, program) in &ours {
            match sys::effective_programs(folder.as_fd(), hook.attach_type) {
                Ok(programs) if programs.contains(program) => {}
                _ if !cgroup.exists() => break,
                found => {
                    let (name, at) = (hook.program, cgroup.display());
                    let found = match found {
                        Ok(programs) => format!("there are {programs:?}"),
                        Err(error) => error.to_string(),
                    };
                    let problem = format!(
                        "{name}: program {program} is not in effect in {at} ({found}): {AGAIN}"
                    );
                    return (looked_at, Some(problem));
                }
            }
        }
        looked_at += 1;
        if looked_at == MAX_CGROUPS {
            return (
                looked_at,
                Some(format!(
                    "{} has more cgroups than can be checked",
                    agents.display()
                )),
            );
        }
        waiting.extend(cgroup::children(&cgroup));
    }
    (looked_at, None)
}

/// Best effort: here the counters are for people, nothing depends on them.
fn read_denials(pins: &Path) -> Vec<Denials> {
    let counters = Table::open(pins, pins::COUNTERS);
    let Ok(counters) = counters.and_then(|table| maps::read_counters(&table)) else {
        return Vec::new();
    };
    let of_all = |denial: Denial| {
        let counts = counters.iter().map(|(_, one)| one.denied[denial as usize]);
        counts.sum()
    };
    let denials = Denial::ALL.iter().map(|denial| Denials {
        reason: denial.name(),
        count: of_all(*denial),
    });
    denials.collect()
}

/// Best effort, as above.
fn count_handshakes(pins: &Path) -> usize {
    let table = Table::<ConnKey, Flow>::open(pins, pins::CONNS);
    table
        .and_then(|table| table.keys())
        .map_or(0, |keys| keys.len())
}

fn pinned_map_ids(pins: &Path) -> Vec<u32> {
    let id = |name: &&str| sys::map_id(sys::open_pin(&pins::map(pins, name)).ok()?.as_fd()).ok();
    pins::MAPS.iter().filter_map(id).collect()
}
