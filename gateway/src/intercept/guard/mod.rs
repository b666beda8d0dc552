//! The guard: puts the kernel programs in place, checks that they are, takes them away.
//!
//! Nothing of it keeps running. The links are pinned, so the agents stay intercepted whatever happens to the
//! gateway; loading again (after an update, or because a cgroup was made anew) is always safe.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::hooks::{self, Hook, Place};
use super::initial::require_host_namespaces;
use super::lsm::{self, LsmState};
use super::object::{Object, Shared};
use super::version::required_kernel;
use super::{InterceptError, cgroup, pins};
use crate::config;

mod inspect;
mod settings;

pub use settings::HEARTBEAT_MAX;

pub use inspect::{Denials, LinkState, Report, inspect, verify};

const AGAIN: &str = "run `sluice guard load`";

/// What was loaded.
#[derive(Debug, Clone, Serialize)]
pub struct Loaded {
    pub port: u16,
    pub agents_cgroup: PathBuf,
    pub gateway_cgroup: PathBuf,
    /// Where sockets from outside are watched for.
    pub guard_cgroup: PathBuf,
    pub pins: PathBuf,
    pub programs: Vec<&'static str>,
    /// The optional tier.
    pub lsm: LsmState,
}

/// What [`unload`] does while the agents' cgroup has processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunningAgents {
    Refuse,
    LeaveUnwatched,
}

/// Loads the programs, attaches them to their cgroups (made if absent) and to this network namespace, and
/// pins them. Done again, it replaces the programs in place, keeps the maps, and repairs what [`verify`]
/// complains about.
pub fn load(kernel: &config::Kernel, port: u16) -> Result<Loaded, InterceptError> {
    if port == 0 {
        return Err(InterceptError::NoPort);
    }
    let version = required_kernel()?;
    let places = Places::find(kernel)?;
    cgroup::create(&places.agents)?;
    cgroup::create(&places.gateway)?;
    pins::prepare(&kernel.pins)?;
    let mut object = Object::open(&kernel.pins, Shared::All)?;
    // All of them before any is attached: a kernel that refuses one keeps the set it has.
    let loaded: Vec<(&Hook, OwnedFd)> = hooks::available(version)
        .map(|hook| Ok((hook, hooks::load(&mut object, hook)?)))
        .collect::<Result<_, InterceptError>>()?;
    settings::configure(kernel, &places, port)?;
    for (hook, program) in &loaded {
        let path = places.of(hook);
        let target = File::open(path).map_err(|error| InterceptError::file(path, error))?;
        let id = cgroup::id(path).map_err(|error| InterceptError::file(path, error))?;
        hooks::attach(hook, program.as_fd(), &target, id, &kernel.pins)?;
    }
    let lsm = load_lsm(&mut object, &places.agents, &kernel.pins)?;
    Ok(Loaded {
        port,
        lsm,
        agents_cgroup: places.agents,
        gateway_cgroup: places.gateway,
        guard_cgroup: places.above,
        pins: kernel.pins.clone(),
        programs: loaded.iter().map(|(hook, _)| hook.program).collect(),
    })
}

fn load_lsm(object: &mut Object, agents: &Path, pins: &Path) -> Result<LsmState, InterceptError> {
    let target = File::open(agents).map_err(|error| InterceptError::file(agents, error))?;
    let id = cgroup::id(agents).map_err(|error| InterceptError::file(agents, error))?;
    Ok(lsm::load(object, &target, id, pins))
}

/// Takes the programs away, then the cgroups as far as they are empty. From here on agents are not watched.
pub fn unload(kernel: &config::Kernel, running: RunningAgents) -> Result<(), InterceptError> {
    let places = Places::find(kernel)?;
    if running == RunningAgents::Refuse && cgroup::is_populated(&places.agents) {
        return Err(InterceptError::AgentsRunning(places.agents));
    }
    pins::remove(&kernel.pins)?;
    // systemd keeps its own account of slices.
    if !Path::new("/run/systemd/system").exists() {
        cgroup::remove_if_empty(&places.agents);
        cgroup::remove_if_empty(&places.gateway);
    }
    Ok(())
}

/// Whether this kernel's verifier takes every program it has a hook for; nothing is attached or pinned.
pub fn probe() -> Result<(), InterceptError> {
    let version = required_kernel()?;
    let mut object = Object::open(Path::new("/"), Shared::None)?;
    hooks::available(version).try_for_each(|hook| hooks::load(&mut object, hook).map(drop))
}

/// Makes the kernel count how often every program runs ([`LinkState::runs`]), which costs each run a little.
/// Ends when the descriptor is closed.
pub fn count_runs() -> Result<OwnedFd, InterceptError> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime)
        .map_err(|error| InterceptError::bpf("counting program runs", error))
}

/// What the programs are attached to.
struct Places {
    agents: PathBuf,
    gateway: PathBuf,
    /// The guard's cgroup: above the agents', or the root of all.
    above: PathBuf,
    netns: PathBuf,
}

impl Places {
    fn find(kernel: &config::Kernel) -> Result<Self, InterceptError> {
        require_host_namespaces()?;
        let mount = cgroup::cgroup2_mount()?;
        Ok(Self {
            agents: mount.join(&kernel.agents_cgroup),
            gateway: mount.join(&kernel.gateway_cgroup),
            above: mount.join(&kernel.guard_cgroup),
            netns: PathBuf::from("/proc/self/ns/net"),
        })
    }

    fn of(&self, hook: &Hook) -> &Path {
        match hook.place {
            Place::Agents => &self.agents,
            Place::Gateway => &self.gateway,
            Place::Above => &self.above,
            Place::Netns => &self.netns,
        }
    }
}
