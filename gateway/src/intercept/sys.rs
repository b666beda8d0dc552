//! bpf(2), where aya 0.14 has no call for it: links (open a pin and keep the descriptor, ask what it is
//! attached to, give it another program), and maps by descriptor, which the gateway uses without privileges.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_link_type, bpf_map_info,
    bpf_map_type, bpf_prog_info, bpf_prog_type,
};

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

/// A loaded program, as the kernel describes it.
#[derive(Debug, Clone)]
pub struct LoadedProgram {
    pub name: String,
    pub maps: Vec<u32>,
    /// How often it ran, and for how long, while the kernel was counting.
    pub runs: u64,
    pub run_ns: u64,
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

/// Looks at a program by its id (`BPF_PROG_GET_FD_BY_ID`).
pub fn program(id: u32) -> io::Result<LoadedProgram> {
    let program = by_id(bpf_cmd::BPF_PROG_GET_FD_BY_ID, id)?;
    let mut maps = vec![0_u32; 64];
    let mut info: bpf_prog_info = {
        // SAFETY: all-zero is a valid bpf_prog_info.
        unsafe { zeroed() }
    };
    info.nr_map_ids = maps.len() as u32;
    info.map_ids = maps.as_mut_ptr() as u64;
    // SAFETY: bpf_prog_info is what the kernel writes for a program, and the buffer outlives the call.
    unsafe { fill_info(program.as_fd(), &mut info) }?;
    maps.truncate(info.nr_map_ids as usize);
    Ok(LoadedProgram {
        name: text(&info.name),
        maps,
        runs: info.run_cnt,
        run_ns: info.run_time_ns,
    })
}

/// The id of a map (`BPF_OBJ_GET_INFO_BY_FD`).
pub fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(map_info(map)?.id)
}

/// The name of a map (`BPF_MAP_GET_FD_BY_ID`).
pub fn map_name(id: u32) -> io::Result<String> {
    let map = by_id(bpf_cmd::BPF_MAP_GET_FD_BY_ID, id)?;
    Ok(text(&map_info(map.as_fd())?.name))
}

fn map_info(map: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    // SAFETY: bpf_map_info is what the kernel writes for a map.
    unsafe { info_of(map, "bpf-map") }
}

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

/// Loads a program of the socket address type (`BPF_PROG_LOAD`), for attach types that aya has no name for.
pub fn load_sock_addr(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    match try_load_sock_addr(name, instructions, license, attach_type, &mut []) {
        Ok(program) => Ok(program),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
        // Once more, for the verifier's reason.
        Err(error) => {
            let mut log = vec![0; 64 * 1024];
            try_load_sock_addr(name, instructions, license, attach_type, &mut log).map_err(|_| {
                let written = log.split(|byte| *byte == 0).next().unwrap_or_default();
                io::Error::other(format!("{error}: {}", String::from_utf8_lossy(written)))
            })
        }
    }
}

fn try_load_sock_addr(
    name: &str,
    instructions: &[bpf_insn],
    license: &CStr,
    attach_type: bpf_attach_type,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid bpf_attr; everything pointed to is as long as is said and outlives the call.
    let fd = unsafe {
        let mut attr: bpf_attr = zeroed();
        let load = &mut attr.__bindgen_anon_3;
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR as u32;
        load.expected_attach_type = attach_type as u32;
        load.insns = instructions.as_ptr() as u64;
        load.insn_cnt = instructions.len() as u32;
        load.license = license.as_ptr() as u64;
        // The last byte stays zero.
        for (to, byte) in load.prog_name.iter_mut().zip(name.bytes().take(15)) {
            *to = byte as libc::c_char;
        }
        if !log.is_empty() {
            load.log_level = 1;
            load.log_buf = log.as_mut_ptr() as u64;
            load.log_size = log.len() as u32;
        }
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?
    };
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// Makes a map that is gone with its descriptor (`BPF_MAP_CREATE`).
pub fn create_map(
    kind: bpf_map_type,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid bpf_attr, and no pointer is in it.
    let fd = unsafe {
        let mut attr: bpf_attr = zeroed();
        let create = &mut attr.__bindgen_anon_1;
        create.map_type = kind as u32;
        create.key_size = key_size;
        create.value_size = value_size;
        create.max_entries = max_entries;
        bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr)?
    };
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What a map is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapShape {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
}

/// Asks a map's descriptor what it is; an error when it is no map.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let info = map_info(map)?;
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

/// `BPF_F_QUERY_EFFECTIVE` of linux/bpf.h.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// `BPF_F_RDONLY` of linux/bpf.h.
const BPF_F_RDONLY: u32 = 1 << 3;

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
