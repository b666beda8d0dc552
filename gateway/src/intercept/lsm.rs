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
    /// The hook without whose program this one would deny too much.
    needs: Option<&'static str>,
    /// What agents can do where it is not loaded; empty where another hook says it.
    open: &'static str,
}

const HOOKS: &[Hook] = &[
    Hook {
        program: "lsm_socket",
        hook: "socket_create",
        needs: None,
        open: "agents can create sockets that no other hook sees (packet with CAP_NET_RAW, vsock, netlink, AF_ALG)",
    },
    Hook {
        program: "lsm_userns",
        hook: "userns_create",
        needs: None,
        open: "agents can make user namespaces, and packet sockets in them",
    },
    Hook {
        program: "lsm_ptrace",
        hook: "ptrace_access_check",
        needs: None,
        open: "agents can trace other processes of their user and take over their sockets",
    },
    Hook {
        program: "lsm_bpf",
        hook: "bpf",
        needs: None,
        open: "agents that are root can detach the kernel programs",
    },
    Hook {
        program: "lsm_owner",
        hook: "socket_post_create",
        needs: None,
        open: "",
    },
    Hook {
        program: "lsm_unix_stream",
        hook: "unix_stream_connect",
        needs: Some("socket_post_create"),
        open: "agents can connect to Unix sockets of others, where the kernel is older than 6.7",
    },
    Hook {
        program: "lsm_unix_dgram",
        hook: "unix_may_send",
        needs: Some("socket_post_create"),
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
        let attached = match (&btf, hook.needs) {
            (Err(why), _) => Err(why.clone()),
            (_, Some(needs)) if !state.loaded.contains(&needs) => Err(format!("it needs {needs}")),
            (Ok(btf), _) => attach(object, hook, btf, agents, agents_id, pins),
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
        .map_err(|error| brief(&chain(&error)))?;
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

/// Of a verifier's log only what it stumbled over, which is its last line but for the statistics.
fn brief(text: &str) -> String {
    const STATISTICS: &[&str] = &["verification time", "stack depth", "processed"];
    let (what, log) = text.split_once(" Verifier output:").unwrap_or((text, ""));
    let mut lines = log.lines().rev().filter(|line| !line.trim().is_empty());
    match lines.find(|line| !STATISTICS.iter().any(|start| line.starts_with(start))) {
        Some(stumble) => format!("{what} {stumble}"),
        None => what.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_the_reason_stays() {
        let log = "BPF_PROG_LOAD: Permission denied. Verifier output: 0: R1=ctx()\n\
            32: (85) call bpf_sk_storage_get#107\nR2 type=scalar expected=sock\n\
            verification time 3274 usec\nstack depth 16\nprocessed 31 insns (limit 1000000)\n";
        let expected = "BPF_PROG_LOAD: Permission denied. R2 type=scalar expected=sock";
        assert_eq!(brief(log), expected);
        assert_eq!(brief("unknown BTF type"), "unknown BTF type");
        assert_eq!(
            brief("failed. Verifier output: \nprocessed 0 insns\n"),
            "failed."
        );
    }

    #[test]
    fn what_is_open_is_said_once_per_cause() {
        let missing = |hook, why: &str, open| Missing {
            hook,
            why: why.into(),
            open,
        };
        let state = LsmState {
            loaded: vec!["bpf"],
            missing: vec![
                missing("socket_create", "no", "sockets"),
                missing("userns_create", "no", "namespaces"),
                missing("socket_post_create", "never", ""),
            ],
        };
        let expected = "LSM tier: bpf\n\
            OPEN without LSM tier at socket_create, userns_create: no\n  sockets\n  namespaces\n\
            OPEN without LSM tier at socket_post_create: never";
        assert_eq!(state.to_string(), expected);
    }
}
