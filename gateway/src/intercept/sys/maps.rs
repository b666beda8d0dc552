//! Maps, by descriptor.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_info, bpf_map_type};

use super::{bpf, by_id, info_of, text};

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
