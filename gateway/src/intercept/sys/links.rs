//! Links: what holds a program in its place.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};

use super::{bpf, info_of};

/// `BPF_F_QUERY_EFFECTIVE` of linux/bpf.h.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// A link, as the kernel describes it.
#[derive(Debug, Clone, Copy)]
pub struct Attached {
    pub link_id: u32,
    pub program_id: u32,
    /// The inode of the cgroup's folder or of the network namespace; 0 when that is gone and the link with
    /// it, although its pin is there.
    pub target_id: u64,
    pub attach_type: u32,
}

/// Attaches a program to a cgroup or network namespace for as long as the link is open or pinned
/// (`BPF_LINK_CREATE`). On a cgroup, others' programs run beside it.
pub fn link(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid bpf_attr; both descriptors are borrowed for the call.
    let fd = unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        attr.link_create.__bindgen_anon_2.target_fd = target.as_raw_fd() as u32;
        attr.link_create.attach_type = attach_type as u32;
        bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?
    };
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the link is attached to; an error when it is neither a cgroup's nor a network namespace's
/// (`BPF_OBJ_GET_INFO_BY_FD`).
pub fn attached(link: BorrowedFd<'_>) -> io::Result<Attached> {
    // SAFETY: bpf_link_info is what the kernel writes for a link.
    let info: bpf_link_info = unsafe { info_of(link, "bpf-link") }?;
    // SAFETY: the union's member is read only after the link's type says that it is the one.
    let (target_id, attach_type) = unsafe {
        if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
            let cgroup = info.__bindgen_anon_1.cgroup;
            (cgroup.cgroup_id, cgroup.attach_type)
        } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_NETNS as u32 {
            let netns = info.__bindgen_anon_1.netns;
            (u64::from(netns.netns_ino), netns.attach_type)
        } else {
            return Err(io::Error::other("not a link to a cgroup or namespace"));
        }
    };
    Ok(Attached {
        link_id: info.id,
        program_id: info.prog_id,
        target_id,
        attach_type,
    })
}

/// The programs that run for a cgroup's processes at a hook, its ancestors' included
/// (`BPF_PROG_QUERY`, effective).
pub fn effective_programs(
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<Vec<u32>> {
    // More than the kernel lets anybody attach in one chain (64 a cgroup) on any tree that is not absurd.
    let mut ids = vec![0_u32; 1024];
    // SAFETY: all-zero is a valid bpf_attr; the buffer is as long as is said and outlives the call.
    let count = unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
        attr.query.attach_type = attach_type as u32;
        attr.query.query_flags = BPF_F_QUERY_EFFECTIVE;
        attr.query.prog_ids = ids.as_mut_ptr() as u64;
        attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
        bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
        attr.query.__bindgen_anon_2.prog_cnt
    };
    ids.truncate(count as usize);
    Ok(ids)
}

/// Gives an attached link another program, atomically for every process in the cgroup (`BPF_LINK_UPDATE`).
pub fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero is a valid bpf_attr; both descriptors are borrowed for the call.
    unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.link_update.link_fd = link.as_raw_fd() as u32;
        attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
        bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr)?;
    }
    Ok(())
}
