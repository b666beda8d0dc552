//! bpf(2), where aya 0.14 has no call for it: links (open a pin and keep the descriptor, ask what it is
//! attached to, give it another program), and maps by descriptor, which the gateway uses without privileges.

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_map_info};

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

/// What a map is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
}

/// Asks a map's descriptor what it is (`BPF_OBJ_GET_INFO_BY_FD`); an error when it is no map.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    // Another kind of object would fill the same bytes with something else.
    let link = std::fs::read_link(format!("/proc/self/fd/{}", map.as_raw_fd()))?;
    if link.as_os_str().as_bytes() != b"anon_inode:bpf-map" {
        return Err(io::Error::other("not a map"));
    }
    // SAFETY: all-zero is valid for both; info is as long as is said and outlives the call.
    let info = unsafe {
        let mut info: bpf_map_info = zeroed();
        let mut attr: bpf_attr = zeroed();
        attr.info.bpf_fd = map.as_raw_fd() as u32;
        attr.info.info_len = size_of::<bpf_map_info>() as u32;
        attr.info.info = &raw mut info as u64;
        bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        info
    };
    Ok(MapShape {
        kind: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
    })
}

/// The value under a key (`BPF_MAP_LOOKUP_ELEM`).
///
/// # Safety
///
/// `K` and `V` must be as long as the map's keys and values.
pub unsafe fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    // SAFETY: every bit pattern is a value of a Pod; the kernel writes as many bytes as V has.
    let (result, value) = unsafe {
        let mut value: V = zeroed();
        let mut attr = element(map, key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw mut value as u64;
        (bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr), value)
    };
    Ok(unless_absent(result)?.map(|_| value))
}

/// Sets the value under a key (`BPF_MAP_UPDATE_ELEM`).
///
/// # Safety
///
/// As for [`lookup`].
pub unsafe fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    // SAFETY: the caller's; both outlive the call.
    unsafe {
        let mut attr = element(map, key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw const *value as u64;
        bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr)?;
    }
    Ok(())
}

/// Removes a key, if it is there (`BPF_MAP_DELETE_ELEM`).
///
/// # Safety
///
/// As for [`lookup`].
pub unsafe fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    // SAFETY: the caller's.
    let result = unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut element(map, key)) };
    unless_absent(result).map(drop)
}

/// The key after another, or the first (`BPF_MAP_GET_NEXT_KEY`).
///
/// # Safety
///
/// As for [`lookup`].
pub unsafe fn next_key<K: Pod>(map: BorrowedFd<'_>, after: Option<&K>) -> io::Result<Option<K>> {
    // SAFETY: the caller's; every bit pattern is a value of a Pod.
    let (result, next) = unsafe {
        let mut next: K = zeroed();
        let mut attr: bpf_attr = zeroed();
        attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = after.map_or(0, |key| &raw const *key as u64);
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = &raw mut next as u64;
        (bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr), next)
    };
    Ok(unless_absent(result)?.map(|_| next))
}

fn element<K: Pod>(map: BorrowedFd<'_>, key: &K) -> bpf_attr {
    // SAFETY: all-zero is a valid bpf_attr, and both members belong to the commands on elements.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = &raw const *key as u64;
    attr
}

fn unless_absent(result: io::Result<i32>) -> io::Result<Option<()>> {
    match result {
        Ok(_) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `BPF_F_RDONLY` of linux/bpf.h.
const BPF_F_RDONLY: u32 = 1 << 3;

/// SAFETY: `attr` must be filled as `command` demands, its pointers valid for the call.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
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
