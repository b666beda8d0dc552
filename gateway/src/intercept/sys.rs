//! bpf(2), for the three things aya 0.14 cannot do with a cgroup link: open its pin and keep the descriptor,
//! ask which cgroup it is on, and give it another program.

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type};

/// A link to a cgroup, as the kernel describes it.
#[derive(Debug, Clone, Copy)]
pub struct CgroupLink {
    pub link_id: u32,
    pub program_id: u32,
    /// 0 when the cgroup is gone and the link with it, although its pin is there.
    pub cgroup_id: u64,
    pub attach_type: u32,
}

/// Opens a pinned object (`BPF_OBJ_GET`).
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid bpf_attr; the path outlives the call.
    let fd = unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?
    };
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the link is attached to; an error when it is no cgroup link (`BPF_OBJ_GET_INFO_BY_FD`).
pub fn cgroup_link(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    // SAFETY: all-zero is valid for both; info is as long as is said and outlives the call. The union's
    // cgroup member is read only after the link's type says it is the one.
    unsafe {
        let mut info: bpf_link_info = zeroed();
        let mut attr: bpf_attr = zeroed();
        attr.info.bpf_fd = link.as_raw_fd() as u32;
        attr.info.info_len = size_of::<bpf_link_info>() as u32;
        attr.info.info = &raw mut info as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        if info.type_ != bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
            return Err(io::Error::other("not a link to a cgroup"));
        }
        let cgroup = info.__bindgen_anon_1.cgroup;
        Ok(CgroupLink {
            link_id: info.id,
            program_id: info.prog_id,
            cgroup_id: cgroup.cgroup_id,
            attach_type: cgroup.attach_type,
        })
    }
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

/// SAFETY: `attr` must be filled as `command` demands, its pointers valid for the call.
pub(super) unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
