//! The kernel programs, where each is attached, and how it is put there.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, Program, ProgramError, ProgramFd};
use aya_obj::generated::bpf_attach_type;

use super::{InterceptError, pins, sys};

/// Which cgroup a program watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Agents,
    Gateway,
}

/// One program of the object.
#[derive(Debug)]
pub struct Hook {
    /// Its name in the object and, cut to 15 bytes, in the kernel.
    pub program: &'static str,
    pub side: Side,
    pub attach_type: bpf_attach_type,
}

impl Hook {
    const fn new(program: &'static str, side: Side, attach_type: bpf_attach_type) -> Self {
        Self {
            program,
            side,
            attach_type,
        }
    }

    /// What the kernel keeps of the name (`BPF_OBJ_NAME_LEN` less the zero).
    pub fn kernel_name(&self) -> &'static str {
        self.program.get(..15).unwrap_or(self.program)
    }
}

/// In the order of attaching: what carries a flow is there before what redirects.
pub const HOOKS: &[Hook] = &[
    Hook::new(
        "gateway_sock_ops",
        Side::Gateway,
        bpf_attach_type::BPF_CGROUP_SOCK_OPS,
    ),
    Hook::new(
        "agent_sock_ops",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_SOCK_OPS,
    ),
    Hook::new(
        "getpeername4",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
    ),
    Hook::new(
        "getpeername6",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
    ),
    Hook::new(
        "connect4",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
    ),
    Hook::new(
        "connect6",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
    ),
    Hook::new(
        "sendmsg4",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
    ),
    Hook::new(
        "sendmsg6",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
    ),
    Hook::new(
        "sock_create",
        Side::Agents,
        bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE,
    ),
];

/// Loads the program: the verifier judges it here.
pub fn load(object: &mut Ebpf, hook: &Hook) -> Result<ProgramFd, InterceptError> {
    load_program(program(object, hook)?)
        .map_err(|error| InterceptError::bpf(format!("loading {}", hook.program), error))
}

/// Loads the program and makes it the one its hook runs on `cgroup`.
///
/// A link that is attached to this very cgroup keeps its place and gets the new program, atomically: no
/// connect(2) runs in between without one. Any other pin is replaced by a new link.
pub fn attach(
    object: &mut Ebpf,
    hook: &Hook,
    cgroup: &File,
    cgroup_id: u64,
    pins: &Path,
) -> Result<(), InterceptError> {
    let loaded = load(object, hook)?;
    match live_link(hook, cgroup_id, pins) {
        Some(link) => sys::replace_program(link.as_fd(), loaded.as_fd())
            .map_err(|error| InterceptError::bpf(format!("replacing {}", hook.program), error)),
        None => {
            let link = link_to(program(object, hook)?, cgroup).map_err(|error| {
                InterceptError::bpf(format!("attaching {}", hook.program), error)
            })?;
            pin(link, hook, pins)
        }
    }
}

fn program<'o>(object: &'o mut Ebpf, hook: &Hook) -> Result<&'o mut Program, InterceptError> {
    object
        .program_mut(hook.program)
        .ok_or(InterceptError::ObjectLacks(hook.program))
}

/// The pinned link, when it is attached to this cgroup.
fn live_link(hook: &Hook, cgroup_id: u64, pins: &Path) -> Option<OwnedFd> {
    let link = sys::open_pin(&pins::link(pins, hook.program)).ok()?;
    let attached = sys::cgroup_link(link.as_fd()).ok()?;
    let same = attached.cgroup_id == cgroup_id && attached.attach_type == hook.attach_type as u32;
    same.then_some(link)
}

fn load_program(program: &mut Program) -> Result<ProgramFd, ProgramError> {
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
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    Ok(fd.try_clone()?)
}

/// `Single`, because a link always lets other programs run beside it, and aya's `AllowMultiple` is refused
/// by the kernel for links.
fn link_to(program: &mut Program, cgroup: &File) -> Result<FdLink, ProgramError> {
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    let link: Result<FdLink, LinkError> = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, MODE)?;
            program.take_link(id)?.try_into()
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, MODE)?;
            program.take_link(id)?.try_into()
        }
        Program::SockOps(program) => {
            let id = program.attach(cgroup, MODE)?;
            program.take_link(id)?.try_into()
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    };
    link.map_err(|error| ProgramError::IOError(io::Error::other(error)))
}

/// Pins beside and renames, so that a name is never without a link.
fn pin(link: FdLink, hook: &Hook, pins: &Path) -> Result<(), InterceptError> {
    let beside = pins::new_link(pins, hook.program);
    let _ = fs::remove_file(&beside);
    link.pin(&beside)
        .map_err(|error| InterceptError::bpf(format!("pinning {}", hook.program), error))?;
    let place = pins::link(pins, hook.program);
    fs::rename(&beside, &place).map_err(|error| InterceptError::file(&place, error))
}
