//! bpf(2), where aya 0.14 has no call for it: links (open a pin and keep the descriptor, ask what it is
//! attached to, give it another program), programs of young types, and maps by descriptor, which the gateway
//! uses without privileges.

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attr, bpf_cmd};

mod links;
mod maps;
mod programs;

pub use links::{Attached, attached, effective_programs, link, replace_program};
pub use maps::{create_map, delete, lookup, map_id, map_name, map_shape, next_key, update};
pub use programs::{load_sock_addr, program};

/// `BPF_F_RDONLY` of linux/bpf.h.
const BPF_F_RDONLY: u32 = 1 << 3;

/// Opens a pinned object (`BPF_OBJ_GET`).
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    open_pin_with(path, 0)
}

/// Opens a pinned map so that it can only be read through this descriptor.
pub fn open_pin_read_only(path: &Path) -> io::Result<OwnedFd> {
    open_pin_with(path, BPF_F_RDONLY)
}

fn open_pin_with(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid bpf_attr; the path outlives the call.
    let fd = unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        attr.__bindgen_anon_4.file_flags = flags;
        bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?
    };
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object (`BPF_OBJ_PIN`).
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid bpf_attr; the path outlives the call.
    unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
        bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr)?;
    }
    Ok(())
}

/// Opens an object by its id.
fn by_id(command: bpf_cmd, id: u32) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid bpf_attr, and the union's members are all the id.
    let fd = unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
        bpf(command, &mut attr)?
    };
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
///
/// `I` must be what the kernel writes for objects of this kind.
unsafe fn info_of<I>(object: BorrowedFd<'_>, kind: &str) -> io::Result<I> {
    // Another kind of object would fill the same bytes with something else.
    let name = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    if !name.as_os_str().as_bytes().ends_with(kind.as_bytes()) {
        return Err(io::Error::other(format!("not a {kind}")));
    }
    // SAFETY: the caller's; all-zero is valid for the kernel's structs of integers.
    unsafe {
        let mut info: I = zeroed();
        fill_info(object, &mut info)?;
        Ok(info)
    }
}

/// # Safety
///
/// As for [`info_of`]; pointers in `info` must be valid for the call.
unsafe fn fill_info<I>(object: BorrowedFd<'_>, info: &mut I) -> io::Result<()> {
    // SAFETY: the caller's; the kernel writes no more than is said.
    unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.info.bpf_fd = object.as_raw_fd() as u32;
        attr.info.info_len = size_of::<I>() as u32;
        attr.info.info = &raw mut *info as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    }
    Ok(())
}

fn text(name: &[libc::c_char]) -> String {
    let bytes = name.iter().map(|byte| *byte as u8);
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
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
