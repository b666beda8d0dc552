//! The LSM tier: programs on security hooks, for what no cgroup hook sees. Optional, because few kernels allow
//! it; what is open without it is said, each time the guard is loaded.
//!
//! Needed are Linux 6.0 and `bpf` in the kernel's list of security modules (`lsm=` on its command line). Like
//! the others, the programs are attached to the agents' cgroup and their links are pinned.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{LsmCgroup, ProgramError};
use aya::util::KernelVersion;
use aya::{Btf, Ebpf};
use serde::Serialize;

use super::{chain, pins, sys};

/// One program of the tier.
#[derive(Debug)]
struct Hook {
    program: &'static str,
    hook: &'static str,
    /// What agents can do where it is not loaded; empty where another hook says it.
    open: &'static str,
}

const HOOKS: &[Hook] = &[
    Hook {
        program: "lsm_socket",
        hook: "socket_create",
        open: "agents can create sockets that no other hook sees (packet with CAP_NET_RAW, vsock, netlink, AF_ALG)",
    },
    Hook {
        program: "lsm_userns",
        hook: "userns_create",
        open: "agents can make user namespaces, and packet sockets in them",
    },
    Hook {
        program: "lsm_ptrace",
        hook: "ptrace_access_check",
        open: "agents can trace other processes of their user and take over their sockets",
    },
    Hook {
        program: "lsm_bpf",
        hook: "bpf",
        open: "agents that are root can detach the kernel programs",
    },
    Hook {
        program: "lsm_owner",
        hook: "socket_post_create",
        open: "",
    },
    Hook {
        program: "lsm_unix_stream",
        hook: "unix_stream_connect",
        open: "agents can connect to Unix sockets of others, where the kernel is older than 6.7",
    },
    Hook {
        program: "lsm_unix_dgram",
        hook: "unix_may_send",
        open: "agents can send to Unix sockets of others, where the kernel is older than 6.7",
    },
];

const MODULES: &str = "/sys/kernel/security/lsm";

/// `BPF_LSM_CGROUP` is from there.
const SINCE: KernelVersion = KernelVersion::new(6, 0, 0);

/// Which programs of the tier protect, and what is open without the others.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LsmState {
    /// By hook.
    pub loaded: Vec<&'static str>,
    pub missing: Vec<Missing>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Missing {
    pub hook: &'static str,
    pub why: String,
    pub open: &'static str,
}

/// What is loaded; then each reason for what is not, and what stays open for it.
impl fmt::Display for LsmState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.loaded.as_slice() {
            [] => write!(out, "LSM tier: none")?,
            loaded => write!(out, "LSM tier: {}", loaded.join(", "))?,
        }
        for group in self.missing.chunk_by(|one, next| one.why == next.why) {
            let hooks: Vec<&str> = group.iter().map(|missing| missing.hook).collect();
            let why = group.first().map_or("", |missing| missing.why.as_str());
            write!(
                out,
                "\nOPEN without LSM tier at {}: {why}",
                hooks.join(", ")
            )?;
            for missing in group.iter().filter(|missing| !missing.open.is_empty()) {
                write!(out, "\n  {}", missing.open)?;
            }
        }
        Ok(())
    }
}

/// Loads what this kernel takes and attaches it to the agents' cgroup. Nothing here fails: the tier is not what
/// the interception rests on.
pub fn load(object: &mut Ebpf, agents: &File, agents_id: u64, pins: &Path) -> LsmState {
    let mut state = LsmState::default();
    let btf = available();
    for hook in HOOKS {
        let attached = match &btf {
            Ok(btf) => attach(object, hook, btf, agents, agents_id, pins),
            Err(why) => Err(why.clone()),
        };
        match attached {
            Ok(()) => state.loaded.push(hook.hook),
            Err(why) => state.missing.push(Missing {
                hook: hook.hook,
                why,
                open: hook.open,
            }),
        }
    }
    state
}

/// The pinned programs of the tier that no longer protect the agents' cgroup, with the reason.
pub fn problems(agents_id: Option<u64>, pins: &Path) -> Vec<String> {
    let detached = |hook: &&Hook| {
        let link = sys::open_pin(&pins::link(pins, hook.program)).ok()?;
        let attached = sys::cgroup_link(link.as_fd()).ok();
        let live = attached.is_some_and(|link| Some(link.cgroup_id) == agents_id);
        (!live).then(|| {
            format!(
                "{}: not attached to the agents' cgroup any more",
                hook.program
            )
        })
    };
    HOOKS.iter().filter_map(|hook| detached(&hook)).collect()
}

/// The kernel's types, if it runs LSM programs at all.
fn available() -> Result<Btf, String> {
    let running = KernelVersion::current().map_err(|error| chain(&error))?;
    if running < SINCE {
        return Err("it needs Linux 6.0".into());
    }
    let modules = fs::read_to_string(MODULES)
        .map_err(|error| format!("{MODULES}: {error}; mount securityfs"))?;
    if !modules.trim().split(',').any(|module| module == "bpf") {
        return Err(format!(
            "the kernel runs without the bpf security module: boot it with lsm={},bpf",
            modules.trim()
        ));
    }
    Btf::from_sys_fs().map_err(|error| chain(&error))
}

fn attach(
    object: &mut Ebpf,
    hook: &Hook,
    btf: &Btf,
    agents: &File,
    agents_id: u64,
    pins: &Path,
) -> Result<(), String> {
    let program = object.program_mut(hook.program);
    let program: &mut LsmCgroup = program
        .ok_or("this build lacks it")?
        .try_into()
        .map_err(|error: ProgramError| chain(&error))?;
    program
        .load(hook.hook, btf)
        .map_err(|error| chain(&error))?;
    let place = pins::link(pins, hook.program);
    if let Some(link) = live_link(&place, agents_id) {
        let loaded = program.fd().map_err(|error| chain(&error))?;
        return sys::replace_program(link.as_fd(), loaded.as_fd())
            .map_err(|error| error.to_string());
    }
    let link = program
        .attach(agents)
        .and_then(|id| program.take_link(id))
        .map_err(|error| chain(&error))?;
    let beside = pins::new_link(pins, hook.program);
    let _ = fs::remove_file(&beside);
    FdLink::from(link)
        .pin(&beside)
        .map_err(|error| chain(&error))?;
    fs::rename(&beside, &place).map_err(|error| error.to_string())
}

/// The pinned link, when it is attached to this very cgroup.
fn live_link(place: &Path, agents_id: u64) -> Option<OwnedFd> {
    let link = sys::open_pin(place).ok()?;
    let attached = sys::cgroup_link(link.as_fd()).ok()?;
    (attached.cgroup_id == agents_id).then_some(link)
}
