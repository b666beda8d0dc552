//! The embedded object of kernel programs, opened on the pinned maps.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::Map;
use aya::programs::ProgramType;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::{bpf_attach_type, bpf_func_id};

use super::{InterceptError, KernelVersion, pins, sys};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf.o"));

/// bpf_set_retval: denials with an errno of their own.
const SET_RETVAL: KernelVersion = KernelVersion {
    major: 5,
    minor: 18,
};

/// The programs and their maps.
#[derive(Debug)]
pub struct Object {
    pub programs: Ebpf,
}

/// Which maps are the pinned ones; the others are made new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// All: what the host's programs work on. Those that are not pinned yet are.
    All,
    /// All but the sockets: another network namespace has its own.
    AllButSockets,
    /// None, to try whether the kernel takes the programs.
    None,
}

impl Object {
    pub fn open(pins: &Path, shared: Shared) -> Result<Self, InterceptError> {
        let mut loader = EbpfLoader::new();
        for name in pins::MAPS {
            let is_shared = match shared {
                Shared::All => true,
                Shared::AllButSockets => *name != pins::SOCKETS,
                Shared::None => false,
            };
            if is_shared {
                loader.map_pin_path(name, pins::map(pins, name));
            }
        }
        let set_retval = u8::from(KernelVersion::running()? >= SET_RETVAL);
        let device_knows_caller = u8::from(device_knows_caller());
        loader.override_global("HAS_SET_RETVAL", &set_retval, true);
        loader.override_global("DEVICE_KNOWS_CALLER", &device_knows_caller, true);
        let programs = loader
            .load(OBJECT)
            .map_err(|error| InterceptError::bpf("opening the kernel maps", error))?;
        Ok(Self { programs })
    }

    /// Loads a program of a type that aya has no name for: for this hook its instructions are the same, only
    /// the attach type differs.
    pub fn load_by_hand(
        &self,
        name: &'static str,
        attach_type: bpf_attach_type,
    ) -> Result<OwnedFd, InterceptError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            InterceptError::bpf(format!("loading {name}"), error)
        };
        let mut object = aya_obj::Object::parse(OBJECT).map_err(|error| failed(error.into()))?;
        let maps = std::mem::take(&mut object.maps);
        let mut relocated = Vec::with_capacity(maps.len());
        for (name, definition) in &maps {
            let map = self.programs.map(name);
            let fd = map
                .and_then(descriptor)
                .ok_or(InterceptError::ObjectLacks("a map"))?;
            relocated.push((name.as_str(), fd.as_raw_fd(), definition));
        }
        let sections: HashSet<usize> = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        object
            .relocate_maps(relocated.into_iter(), &sections)
            .map_err(|error| failed(error.into()))?;
        object
            .relocate_calls(&sections)
            .map_err(|error| failed(error.into()))?;
        let program = object
            .programs
            .get(name)
            .ok_or(InterceptError::ObjectLacks(name))?;
        let function = object
            .functions
            .get(&program.function_key())
            .ok_or(InterceptError::ObjectLacks(name))?;
        sys::load_sock_addr(name, &function.instructions, &program.license, attach_type)
            .map_err(|error| failed(error.into()))
    }
}

/// The descriptor of a map of one of the kinds that the object has.
fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    let data = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data)
        | Map::SockMap(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}

/// Whether device programs may ask for the caller's cgroup and name on this kernel.
fn device_knows_caller() -> bool {
    use bpf_func_id::*;
    [
        BPF_FUNC_get_current_ancestor_cgroup_id,
        BPF_FUNC_get_current_pid_tgid,
        BPF_FUNC_get_current_comm,
    ]
    .into_iter()
    .all(|helper| aya::sys::is_helper_supported(ProgramType::CgroupDevice, helper).unwrap_or(false))
}
