//! The LSM tier: programs on security hooks, for what no cgroup hook sees. Optional, because few kernels allow
//! it; what is open without it is said, each time the guard is loaded.
//!
//! Needed are Linux 6.0 and `bpf` in the kernel's list of security modules (`lsm=` on its command line). Like
//! the others, the programs are attached to the agents' cgroup and their links are pinned.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::Btf;
use aya::programs::{LsmCgroup, ProgramError};
use aya_obj::generated::bpf_attach_type::BPF_LSM_CGROUP;
use serde::Serialize;

use super::features::{Support, lsm_list};
use super::hooks::{self, Hook, Place};
use super::object::Object;
use super::version::UNIX_SOCKET_HOOKS;
use super::{KernelVersion, chain, pins};

/// One program of the tier.
#[derive(Debug)]
struct Program {
    hook: Hook,
    /// The kernel's security hook (linux/lsm_hook_defs.h).
    security: &'static str,
    /// The hook without whose program this one would deny too much.
    needs: Option<&'static str>,
    /// What agents can do where it is not loaded; empty where another program says it.
    open: &'static str,
    /// From this kernel on a program of the core closes it as well.
    closed_since: Option<KernelVersion>,
}

impl Program {
    const fn new(name: &'static str, security: &'static str, open: &'static str) -> Self {
        Self {
            hook: Hook::new(name, Place::Agents, BPF_LSM_CGROUP).since(6, 0),
            security,
            needs: None,
            open,
            closed_since: None,
        }
    }

    const fn needs(mut self, security: &'static str) -> Self {
        self.needs = Some(security);
        self
    }

    const fn closed_since(mut self, kernel: KernelVersion) -> Self {
        self.closed_since = Some(kernel);
        self
    }

    /// What is open without it on this kernel; where the kernel is not known, all that may be.
    fn open_on(&self, running: Option<KernelVersion>) -> &'static str {
        match (self.closed_since, running) {
            (Some(since), Some(running)) if running >= since => "",
            _ => self.open,
        }
    }
}

/// At most ten hooks of a host can have such programs (`CGROUP_LSM_NUM`).
const PROGRAMS: &[Program] = &[
    Program::new(
        "lsm_socket",
        "socket_create",
        "agents can make sockets that no other hook sees: vsock, netlink, AF_ALG, as root packet",
    ),
    Program::new(
        "lsm_userns",
        "userns_create",
        "agents can make user namespaces, and packet sockets in them",
    ),
    Program::new(
        "lsm_ptrace",
        "ptrace_access_check",
        "agents can trace other processes of their user and take over their sockets",
    ),
    Program::new(
        "lsm_bpf",
        "bpf",
        "agents that are root can detach the kernel programs",
    ),
    Program::new("lsm_owner", "socket_post_create", ""),
    Program::new(
        "lsm_unix_stream",
        "unix_stream_connect",
        "agents can connect to the Unix sockets of others",
    )
    .needs("socket_post_create")
    .closed_since(UNIX_SOCKET_HOOKS),
    Program::new(
        "lsm_unix_dgram",
        "unix_may_send",
        "agents can send to the Unix sockets of others",
    )
    .needs("socket_post_create")
    .closed_since(UNIX_SOCKET_HOOKS),
];

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
pub fn load(object: &mut Object, agents: &File, agents_id: u64, pins: &Path) -> LsmState {
    let mut state = LsmState::default();
    let running = KernelVersion::running().ok();
    let types = kernel_types();
    for program in PROGRAMS {
        let put = match (&types, program.needs) {
            (Err(why), _) => Err(why.clone()),
            (_, Some(needs)) if !state.loaded.contains(&needs) => Err(format!("it needs {needs}")),
            (Ok(types), _) => load_program(object, program, types).and_then(|loaded| {
                hooks::attach(&program.hook, loaded.as_fd(), agents, agents_id, pins)
                    .map_err(|error| error.to_string())
            }),
        };
        match put {
            Ok(()) => state.loaded.push(program.security),
            Err(why) => state.missing.push(Missing {
                hook: program.security,
                why,
                open: program.open_on(running),
            }),
        }
    }
    state
}

/// The hooks of the tier that were loaded: they have to stay what they are, like all others.
pub fn pinned(pins: &Path) -> impl Iterator<Item = &'static Hook> {
    let hooks = PROGRAMS.iter().map(|program| &program.hook);
    hooks.filter(|hook| pins::link(pins, hook.program).exists())
}

/// What a program's hook is found by, if this kernel runs such programs at all.
fn kernel_types() -> Result<Btf, String> {
    let running = KernelVersion::running().map_err(|error| error.to_string())?;
    if let Some(since) = PROGRAMS.iter().find_map(|program| program.hook.since)
        && running < since
    {
        return Err(format!("it needs Linux {since}"));
    }
    // Without the module the programs could be attached all the same, and never run.
    match lsm_list() {
        Support::Present(_) => {}
        Support::Absent(list) => {
            return Err(format!(
                "the kernel runs without the bpf security module ({list}): add bpf to lsm= on its command line"
            ));
        }
        Support::Unknown(why) => return Err(why),
    }
    Btf::from_sys_fs().map_err(|error| chain(&error))
}

fn load_program(object: &mut Object, program: &Program, types: &Btf) -> Result<OwnedFd, String> {
    let found = object.programs.program_mut(program.hook.program);
    let found: &mut LsmCgroup = found
        .ok_or("this build lacks it")?
        .try_into()
        .map_err(|error: ProgramError| chain(&error))?;
    found
        .load(program.security, types)
        .map_err(|error| brief(&chain(&error)))?;
    let loaded = found.fd().map_err(|error| chain(&error))?;
    let loaded = loaded.as_fd().try_clone_to_owned();
    loaded.map_err(|error| error.to_string())
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
    fn unix_sockets_are_open_only_before_the_core_closes_them() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        for (running, expected) in [
            (version(6, 6), 2),
            (version(6, 7), 0),
            (version(7, 0), 0),
            (None, 2),
        ] {
            let open = PROGRAMS.iter().map(|program| program.open_on(running));
            let about = open.filter(|open| open.contains("Unix sockets")).count();
            assert_eq!(about, expected, "{running:?}");
        }
        assert!(PROGRAMS[0].open_on(version(7, 0)).contains("vsock"));
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
