//! The guard: puts the kernel programs in place, checks that they are, takes them away.
//!
//! Nothing of it keeps running. The links are pinned, so the agents stay intercepted whatever happens to the
//! gateway; loading again (after an update, or because a cgroup was made anew) is always safe.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use gateway_ebpf::decide::Denial;
use gateway_ebpf::{ConnKey, Counters, DeviceKey, Flow, Settings};
use serde::Serialize;

use super::hooks::{self, HOOKS, Hook, Side};
use super::lsm::{self, LsmState};
use super::maps::{self, Table};
use super::{InterceptError, cgroup, pins, sys};
use crate::config::{self, Device, DeviceKind, UnixSockets};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf.o"));

/// The gateway beats every half second; after this long without one it is taken for dead.
const HEARTBEAT_MAX: Duration = Duration::from_secs(3);

/// The key of the counters that find no room of their own.
const OVERFLOW: u64 = 0;

const NOTHING_COUNTED: Counters = Counters {
    connects: 0,
    redirected: 0,
    local: 0,
    dns: 0,
    packets_out: 0,
    bytes_out: 0,
    packets_in: 0,
    bytes_in: 0,
    denied: [0; Denial::COUNT],
};

const AGAIN: &str = "run `sluice guard load`";

/// What was loaded.
#[derive(Debug, Clone, Serialize)]
pub struct Loaded {
    pub port: u16,
    pub agents_cgroup: PathBuf,
    pub gateway_cgroup: PathBuf,
    pub pins: PathBuf,
    pub programs: Vec<&'static str>,
    pub lsm: LsmState,
}

/// What is there, link by link.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The gateway port that agents are redirected to.
    pub port: Option<u16>,
    pub agents_cgroup: PathBuf,
    pub gateway_cgroup: PathBuf,
    pub links: Vec<LinkState>,
    /// Problems that no single link has.
    pub problems: Vec<String>,
    /// Connections the kernel has redirected and the gateway's side has not yet claimed.
    pub handshakes: usize,
    /// Calls denied since the guard was first loaded, by reason.
    pub denials: Vec<Denials>,
}

/// One program's attachment.
#[derive(Debug, Clone, Serialize)]
pub struct LinkState {
    pub program: &'static str,
    pub cgroup: PathBuf,
    pub link_id: Option<u32>,
    pub program_id: Option<u32>,
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

/// What [`unload`] does while the agents' cgroup has processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunningAgents {
    Refuse,
    LeaveUnwatched,
}

/// Loads the programs, attaches them to both cgroups (made if absent) and pins them. Done again, it replaces
/// the programs in place, keeps the maps, and repairs what [`verify`] complains about.
pub fn load(kernel: &config::Kernel, port: u16) -> Result<Loaded, InterceptError> {
    if port == 0 {
        return Err(InterceptError::NoPort);
    }
    let places = Places::find(kernel)?;
    cgroup::create(&places.agents)?;
    cgroup::create(&places.gateway)?;
    pins::prepare(&kernel.pins)?;
    let mut object = open_object(&kernel.pins)?;
    configure(kernel, &places, port)?;
    for hook in HOOKS {
        let path = places.of(hook.side);
        let file = File::open(path).map_err(|error| InterceptError::file(path, error))?;
        let id = cgroup::id(path).map_err(|error| InterceptError::file(path, error))?;
        hooks::attach(&mut object, hook, &file, id, &kernel.pins)?;
    }
    let agents =
        File::open(&places.agents).map_err(|error| InterceptError::file(&places.agents, error))?;
    let agents_id =
        cgroup::id(&places.agents).map_err(|error| InterceptError::file(&places.agents, error))?;
    let lsm = lsm::load(&mut object, &agents, agents_id, &kernel.pins);
    Ok(Loaded {
        port,
        lsm,
        agents_cgroup: places.agents,
        gateway_cgroup: places.gateway,
        pins: kernel.pins.clone(),
        programs: HOOKS.iter().map(|hook| hook.program).collect(),
    })
}

/// Succeeds only if every program is attached to the live cgroups and works on the pinned maps.
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
    let (port, problems) = match read_port(&kernel.pins)? {
        Some(port) => (Some(port), Vec::new()),
        None => (None, vec![format!("the guard is not loaded: {AGAIN}")]),
    };
    let maps = pinned_map_ids(&kernel.pins);
    let links = HOOKS
        .iter()
        .map(|hook| link_state(hook, places.of(hook.side), &kernel.pins, &maps))
        .collect();
    Ok(Report {
        port,
        links,
        problems,
        handshakes: count_handshakes(&kernel.pins),
        denials: read_denials(&kernel.pins),
        agents_cgroup: places.agents,
        gateway_cgroup: places.gateway,
    })
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

/// Whether this kernel's verifier takes every program; nothing is attached or pinned.
pub fn probe() -> Result<(), InterceptError> {
    let mut object = Ebpf::load(OBJECT)
        .map_err(|error| InterceptError::bpf("creating the kernel maps", error))?;
    HOOKS
        .iter()
        .try_for_each(|hook| hooks::load(&mut object, hook).map(drop))
}

/// The two cgroups' directories.
struct Places {
    agents: PathBuf,
    gateway: PathBuf,
}

impl Places {
    fn find(kernel: &config::Kernel) -> Result<Self, InterceptError> {
        let mount = cgroup::cgroup2_mount()?;
        Ok(Self {
            agents: mount.join(&kernel.agents_cgroup),
            gateway: mount.join(&kernel.gateway_cgroup),
        })
    }

    fn of(&self, side: Side) -> &Path {
        match side {
            Side::Agents => &self.agents,
            Side::Gateway => &self.gateway,
        }
    }
}

/// The embedded object with its maps: those that are pinned already, or new ones, pinned.
fn open_object(pins: &Path) -> Result<Ebpf, InterceptError> {
    let mut loader = EbpfLoader::new();
    for name in pins::MAPS {
        loader.map_pin_path(name, pins::map(pins, name));
    }
    loader
        .load(OBJECT)
        .map_err(|error| InterceptError::bpf("creating the kernel maps", error))
}

/// The same without the host's sockets: another network namespace has its own.
pub(super) fn open_object_for_netns(pins: &Path) -> Result<Ebpf, InterceptError> {
    let mut loader = EbpfLoader::new();
    for name in pins::MAPS.iter().filter(|name| **name != pins::SOCKETS) {
        loader.map_pin_path(name, pins::map(pins, name));
    }
    loader
        .load(OBJECT)
        .map_err(|error| InterceptError::bpf("opening the kernel maps", error))
}

/// Writes what the kernel programs go by. Entries of a configuration that is gone are removed.
fn configure(kernel: &config::Kernel, places: &Places, port: u16) -> Result<(), InterceptError> {
    let agents_id =
        cgroup::id(&places.agents).map_err(|error| InterceptError::file(&places.agents, error))?;
    let settings = Settings {
        agents_id,
        heartbeat_max_ns: HEARTBEAT_MAX.as_nanos() as u64,
        gateway_port: u32::from(port),
        agents_level: depth(&kernel.agents_cgroup),
        local_v4: kernel
            .local_address
            .map_or(0, |v4| u32::from_ne_bytes(v4.octets())),
        local_v6: kernel
            .local_address6
            .map_or([0; 4], |v6| maps::kernel_address(v6.into()).0),
        allow_unix: u32::from(kernel.unix_sockets == UnixSockets::Allow),
    };
    allow_devices(kernel)?;
    let counters: Table<u64, Counters> = Table::open(&kernel.pins, pins::COUNTERS)?;
    if counters.get(&OVERFLOW)?.is_none() {
        counters.set(&OVERFLOW, &NOTHING_COUNTED)?;
    }
    Table::open(&kernel.pins, pins::SETTINGS)?.set(&0_u32, &settings)
}

fn allow_devices(kernel: &config::Kernel) -> Result<(), InterceptError> {
    let devices: Table<DeviceKey, u32> = Table::open(&kernel.pins, pins::DEVICES)?;
    let allowed: Vec<DeviceKey> = kernel.devices.iter().map(device_key).collect();
    for key in &allowed {
        devices.set(key, &1)?;
    }
    for key in devices.keys()? {
        if !allowed.contains(&key) {
            devices.remove(&key)?;
        }
    }
    Ok(())
}

fn device_key(device: &Device) -> DeviceKey {
    DeviceKey {
        kind: match device.kind {
            DeviceKind::Block => DeviceKey::BLOCK,
            DeviceKind::Character => DeviceKey::CHARACTER,
        },
        major: device.major,
        minor: device.minor.unwrap_or(DeviceKey::ANY_MINOR),
    }
}

/// How deep a cgroup is below the root of the hierarchy.
fn depth(cgroup: &str) -> u32 {
    let names = cgroup.split('/').filter(|name| !name.is_empty());
    names.count() as u32
}

/// `None` when nothing is loaded, or no port was set yet.
fn read_port(pins: &Path) -> Result<Option<u16>, InterceptError> {
    let path = pins::map(pins, pins::SETTINGS);
    if !path
        .try_exists()
        .map_err(|error| InterceptError::file(&path, error))?
    {
        return Ok(None);
    }
    let settings = pinned(pins, pins::SETTINGS)
        .and_then(Array::<_, Settings>::try_from)
        .and_then(|array| array.get(&0, 0))
        .map_err(|error| InterceptError::bpf("reading the guard's settings", error))?;
    Ok(Some(settings.gateway_port as u16).filter(|port| *port != 0))
}

/// Best effort: here the counters are for people, nothing depends on them.
fn read_denials(pins: &Path) -> Vec<Denials> {
    let Ok(counters) =
        Table::open(pins, pins::COUNTERS).and_then(|table| maps::read_counters(&table))
    else {
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
    let table = pinned(pins, pins::CONNS).and_then(HashMap::<_, ConnKey, Flow>::try_from);
    table.map_or(0, |table| table.keys().flatten().count())
}

fn pinned(pins: &Path, name: &str) -> Result<Map, MapError> {
    Map::from_map_data(MapData::from_pin(pins::map(pins, name))?)
}

fn pinned_map_ids(pins: &Path) -> Vec<u32> {
    pins::MAPS
        .iter()
        .filter_map(|name| Some(MapInfo::from_pin(pins::map(pins, name)).ok()?.id()))
        .collect()
}

fn link_state(hook: &Hook, cgroup: &Path, pins: &Path, maps: &[u32]) -> LinkState {
    let mut state = LinkState {
        program: hook.program,
        cgroup: cgroup.to_path_buf(),
        link_id: None,
        program_id: None,
        problem: None,
    };
    state.problem = check_link(hook, cgroup, pins, maps, &mut state).err();
    state
}

/// The pin proves nothing: a link whose cgroup was removed is detached and stays pinned.
fn check_link(
    hook: &Hook,
    cgroup: &Path,
    pins: &Path,
    maps: &[u32],
    state: &mut LinkState,
) -> Result<(), String> {
    let link = sys::open_pin(&pins::link(pins, hook.program))
        .map_err(|error| format!("not pinned ({error}): {AGAIN}"))?;
    let attached = sys::cgroup_link(link.as_fd())
        .map_err(|error| format!("not attached ({error}): {AGAIN}"))?;
    state.link_id = Some(attached.link_id);
    state.program_id = Some(attached.program_id);
    let live = cgroup::id(cgroup)
        .map_err(|error| format!("{} is missing ({error}): {AGAIN}", cgroup.display()))?;
    if attached.cgroup_id == 0 {
        return Err(format!("detached, because its cgroup was removed: {AGAIN}"));
    }
    if attached.cgroup_id != live {
        return Err(format!(
            "attached to cgroup {}, but {} is {live}: {AGAIN}",
            attached.cgroup_id,
            cgroup.display()
        ));
    }
    if attached.attach_type != hook.attach_type as u32 {
        return Err(format!(
            "attached to hook {}, not {}: {AGAIN}",
            attached.attach_type, hook.attach_type as u32
        ));
    }
    check_program(hook, attached.program_id, maps).map_err(|why| format!("{why}: {AGAIN}"))
}

fn check_program(hook: &Hook, id: u32, maps: &[u32]) -> Result<(), String> {
    let program = program(id).ok_or_else(|| format!("its program {id} cannot be looked at"))?;
    let name = program.name_as_str().unwrap_or_default();
    if name != hook.kernel_name() {
        return Err(format!(
            "runs program {id} named {name:?}, not {:?}",
            hook.kernel_name()
        ));
    }
    let used = program.map_ids().ok().flatten().unwrap_or_default();
    match used.iter().find(|id| !maps.contains(id)) {
        Some(stranger) => Err(format!(
            "its program {id} works on map {stranger}, which is not pinned"
        )),
        None => Ok(()),
    }
}

fn program(id: u32) -> Option<ProgramInfo> {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
}
