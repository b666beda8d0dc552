//! The kernel programs: where each is attached, and how it is put there.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::programs::{Program, ProgramError};
use aya_obj::generated::bpf_attach_type::{self, *};

use super::object::Object;
use super::sys::Attached;
use super::{InterceptError, KernelVersion, pins, sys};

/// What a program watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The agents' cgroup and everything below it.
    Agents,
    /// The gateway's cgroup.
    Gateway,
    /// A cgroup above the agents'.
    Above,
    /// The host's network namespace.
    Netns,
}

/// One program of the object.
#[derive(Debug)]
pub struct Hook {
    /// Its name in the object and, cut to 15 bytes, in the kernel.
    pub program: &'static str,
    pub place: Place,
    pub attach_type: bpf_attach_type,
    /// The first kernel that has the hook, where that is younger than the oldest supported.
    pub since: Option<KernelVersion>,
}

impl Hook {
    pub const fn new(program: &'static str, place: Place, attach_type: bpf_attach_type) -> Self {
        Self {
            program,
            place,
            attach_type,
            since: None,
        }
    }

    pub const fn since(mut self, major: u32, minor: u32) -> Self {
        self.since = Some(KernelVersion { major, minor });
        self
    }

    /// What the kernel keeps of the name (`BPF_OBJ_NAME_LEN` less the zero).
    pub fn kernel_name(&self) -> &'static str {
        self.program.get(..15).unwrap_or(self.program)
    }

    fn is_on(&self, kernel: KernelVersion) -> bool {
        self.since.is_none_or(|since| since <= kernel)
    }
}

/// The hooks that this kernel has.
pub fn available(kernel: KernelVersion) -> impl Iterator<Item = &'static Hook> {
    HOOKS.iter().filter(move |hook| hook.is_on(kernel))
}

use Place::{Above, Agents, Gateway, Netns};

/// Attached to each network namespace that the gateway listens in.
pub const PORT_LOOKUP: &Hook = &PORT_LOOKUP_HERE;

const PORT_LOOKUP_HERE: Hook = Hook::new("port_lookup", Netns, BPF_SK_LOOKUP);

/// In the order of attaching: what carries a flow is there before what makes one, what gives a socket its
/// owner before what asks for it, and what drops packets comes when those that may pass are known.
pub const HOOKS: &[Hook] = &[
    Hook::new("gateway_sock_ops", Gateway, BPF_CGROUP_SOCK_OPS),
    Hook::new("agent_sock_ops", Agents, BPF_CGROUP_SOCK_OPS),
    PORT_LOOKUP_HERE,
    Hook::new("getpeername4", Agents, BPF_CGROUP_INET4_GETPEERNAME),
    Hook::new("getpeername6", Agents, BPF_CGROUP_INET6_GETPEERNAME),
    Hook::new("getsockname4", Agents, BPF_CGROUP_INET4_GETSOCKNAME),
    Hook::new("getsockname6", Agents, BPF_CGROUP_INET6_GETSOCKNAME),
    Hook::new("recvmsg4", Agents, BPF_CGROUP_UDP4_RECVMSG),
    Hook::new("recvmsg6", Agents, BPF_CGROUP_UDP6_RECVMSG),
    Hook::new("sock_create", Agents, BPF_CGROUP_INET_SOCK_CREATE),
    Hook::new("bind4", Agents, BPF_CGROUP_INET4_BIND),
    Hook::new("bind6", Agents, BPF_CGROUP_INET6_BIND),
    Hook::new("setsockopt", Agents, BPF_CGROUP_SETSOCKOPT),
    Hook::new("device", Agents, BPF_CGROUP_DEVICE),
    Hook::new("connect_unix", Agents, BPF_CGROUP_UNIX_CONNECT).since(6, 7),
    Hook::new("sendmsg_unix", Agents, BPF_CGROUP_UNIX_SENDMSG).since(6, 7),
    Hook::new("connect4", Agents, BPF_CGROUP_INET4_CONNECT),
    Hook::new("connect6", Agents, BPF_CGROUP_INET6_CONNECT),
    Hook::new("sendmsg4", Agents, BPF_CGROUP_UDP4_SENDMSG),
    Hook::new("sendmsg6", Agents, BPF_CGROUP_UDP6_SENDMSG),
    Hook::new("egress", Agents, BPF_CGROUP_INET_EGRESS),
    Hook::new("ingress", Agents, BPF_CGROUP_INET_INGRESS),
    Hook::new("guard_connect4", Above, BPF_CGROUP_INET4_CONNECT),
    Hook::new("guard_connect6", Above, BPF_CGROUP_INET6_CONNECT),
    Hook::new("guard_sendmsg4", Above, BPF_CGROUP_UDP4_SENDMSG),
    Hook::new("guard_sendmsg6", Above, BPF_CGROUP_UDP6_SENDMSG),
];

/// Loads the program: the verifier judges it here.
pub fn load(object: &mut Object, hook: &Hook) -> Result<OwnedFd, InterceptError> {
    let program = object
        .programs
        .program_mut(hook.program)
        .ok_or(InterceptError::ObjectLacks(hook.program))?;
    match hook.attach_type {
        BPF_CGROUP_UNIX_CONNECT | BPF_CGROUP_UNIX_SENDMSG => {
            object.load_by_hand(hook.program, hook.attach_type)
        }
        _ => load_program(program)
            .map_err(|error| InterceptError::bpf(format!("loading {}", hook.program), error)),
    }
}

/// Makes a loaded program the one its hook runs at `target`: a cgroup's folder or a network namespace,
/// `target_id` its inode.
///
/// A link that is attached to this very target keeps its place and gets the new program, atomically: no
/// connect(2) runs in between without one. Any other pin is replaced by a new link.
pub fn attach(
    hook: &Hook,
    program: BorrowedFd<'_>,
    target: &File,
    target_id: u64,
    pins: &Path,
) -> Result<(), InterceptError> {
    match live_link(hook, target_id, pins) {
        Some(link) => sys::replace_program(link.as_fd(), program)
            .map_err(|error| InterceptError::bpf(format!("replacing {}", hook.program), error)),
        None => {
            let link = sys::link(program, target.as_fd(), hook.attach_type);
            let link = link.map_err(|error| {
                InterceptError::bpf(format!("attaching {}", hook.program), error)
            })?;
            pin(link.as_fd(), hook, pins)
        }
    }
}

/// The pinned link, when it is attached to this target.
fn live_link(hook: &Hook, target_id: u64, pins: &Path) -> Option<OwnedFd> {
    let link = sys::open_pin(&pins::link(pins, hook.program)).ok()?;
    let attached: Attached = sys::attached(link.as_fd()).ok()?;
    let same = attached.target_id == target_id && attached.attach_type == hook.attach_type as u32;
    same.then_some(link)
}

fn load_program(program: &mut Program) -> Result<OwnedFd, ProgramError> {
    let fd = match program {
        Program::CgroupSockAddr(program) => {
            program.load()?;
            program.fd()?
        }
        Program::CgroupSock(program) => {
            program.load()?;
            program.fd()?
        }
        Program::SockOps(program) => {
            program.load()?;
            program.fd()?
        }
        Program::CgroupSkb(program) => {
            program.load()?;
            program.fd()?
        }
        Program::CgroupDevice(program) => {
            program.load()?;
            program.fd()?
        }
        Program::CgroupSockopt(program) => {
            program.load()?;
            program.fd()?
        }
        Program::SkLookup(program) => {
            program.load()?;
            program.fd()?
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    Ok(fd.as_fd().try_clone_to_owned()?)
}

/// Pins beside and renames, so that a name is never without a link.
fn pin(link: BorrowedFd<'_>, hook: &Hook, pins: &Path) -> Result<(), InterceptError> {
    let beside = pins::new_link(pins, hook.program);
    let _ = fs::remove_file(&beside);
    sys::pin(link, &beside)
        .map_err(|error| InterceptError::bpf(format!("pinning {}", hook.program), error))?;
    let place = pins::link(pins, hook.program);
    fs::rename(&beside, &place).map_err(|error| InterceptError::file(&place, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_a_name_of_its_own_in_the_kernel() {
        for hook in HOOKS {
            let same = |other: &&Hook| other.kernel_name() == hook.kernel_name();
            assert_eq!(HOOKS.iter().filter(same).count(), 1, "{}", hook.program);
        }
    }

    #[test]
    fn old_kernels_have_fewer_hooks() {
        let on = |major, minor| available(KernelVersion { major, minor }).count();
        assert_eq!(on(6, 7), HOOKS.len());
        assert_eq!(on(6, 6), HOOKS.len() - 2);
    }
}
