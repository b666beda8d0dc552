//! The tries: a program of two instructions, a map of one element, a thread that gives itself a namespace.
//! Whatever is made here is gone when the function returns.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;

use aya::maps::MapType;
use aya::programs::{LsmAttachType, ProgramError, ProgramType};
use aya::sys::{
    BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported,
};
use aya_obj::generated::{
    BPF_ALU64, BPF_EXIT, BPF_JMP, BPF_K, BPF_MOV, bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn,
    bpf_map_type, bpf_prog_type,
};
use nix::sched::{CloneFlags, unshare};

use super::super::sys;
use super::Support;

/// Whether the kernel takes programs of this type for each of the hooks.
pub(super) fn programs(of_type: bpf_prog_type, hooks: &[bpf_attach_type]) -> Support {
    let results = hooks.iter().map(|hook| load(of_type, *hook).map(drop));
    first_failure(results).unwrap_or_else(yes)
}

/// Cgroup links are what outlives the loader. A kernel that knows them refuses this one for its descriptor.
pub(super) fn cgroup_link() -> Support {
    let program = match load(
        bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK,
        bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE,
    ) {
        Ok(program) => program,
        Err(error) => return refused(&error),
    };
    // SAFETY: all-zero is a valid bpf_attr; there is no descriptor -1, so nothing is attached.
    let tried = unsafe {
        let mut attr: bpf_attr = zeroed();
        attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        attr.link_create.__bindgen_anon_2.target_fd = u32::MAX;
        attr.link_create.attach_type = bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE as u32;
        sys::bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
    };
    match tried {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => yes(),
        Err(error) => refused(&error),
        Ok(_) => Support::Unknown("a link to nothing was made".to_owned()),
    }
}

pub(super) fn maps(kinds: &[(&str, MapType)]) -> Support {
    all_of(kinds.iter().map(|(name, kind)| {
        let tried = is_map_supported(*kind);
        (
            *name,
            tried.map_err(|SyscallError { io_error, .. }| refused(&io_error)),
        )
    }))
}

pub(super) fn helpers(in_program: ProgramType, helpers: &[(&str, BpfHelper)]) -> Support {
    all_of(helpers.iter().map(|(name, helper)| {
        let tried = is_helper_supported(in_program, *helper);
        (*name, tried.map_err(|error| refused_program(&error)))
    }))
}

/// Loads a program for one of the LSM's hooks; it is attached to no cgroup.
pub(super) fn lsm_program() -> Support {
    match is_program_supported(ProgramType::Lsm(LsmAttachType::Cgroup)) {
        Ok(true) => yes(),
        Ok(false) => Support::Absent("this kernel has none".to_owned()),
        Err(error) => refused_program(&error),
    }
}

/// Asks for the active LSMs by number (lsm_list_modules(2), Linux 6.8).
pub(super) fn lsm_modules() -> Support {
    const LSM_LIST_MODULES: libc::c_long = 461;
    const LSM_ID_BPF: u64 = 110;
    let mut ids = [0_u64; 64];
    let mut size = size_of_val(&ids) as u32;
    // SAFETY: the kernel writes at most `size` bytes to `ids`, and the length to `size`.
    let count = unsafe { libc::syscall(LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut size, 0) };
    match usize::try_from(count)
        .ok()
        .and_then(|count| ids.get(..count))
    {
        Some(active) if active.contains(&LSM_ID_BPF) => Support::Present("active".to_owned()),
        Some(_) => Support::Absent("not active".to_owned()),
        None => Support::Unknown("mount securityfs to see the list".to_owned()),
    }
}

/// A map is read by a thread that has only its descriptor.
pub(super) fn map_without_privileges() -> Support {
    let map = match sys::create_map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 8, 1) {
        Ok(map) => map,
        Err(error) => return refused(&error),
    };
    let reader = thread::spawn(move || {
        drop_capabilities()?;
        read_element(&map)
    });
    match reader.join() {
        Ok(Ok(())) => yes(),
        Ok(Err(error)) => Support::Absent(error.to_string()),
        Err(_) => Support::Unknown("the try ended early".to_owned()),
    }
}

/// A thread of its own gets the namespaces, and takes them away with it.
pub(super) fn namespaces() -> Support {
    const WANTED: [(&str, CloneFlags); 4] = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("mount", CloneFlags::CLONE_NEWNS),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("ipc", CloneFlags::CLONE_NEWIPC),
    ];
    let tried =
        thread::spawn(|| WANTED.map(|(name, flag)| (name, unshare(flag).map_err(io::Error::from))));
    let Ok(tried) = tried.join() else {
        return Support::Unknown("the try ended early".to_owned());
    };
    let failed = tried.iter().find_map(|(name, result)| {
        let error = result.as_ref().err()?;
        Some(match refused(error) {
            Support::Unknown(why) => Support::Unknown(format!("{name}: {why}")),
            _ => Support::Absent(format!("{name}: {error}")),
        })
    });
    failed.unwrap_or_else(|| Support::Present("net, mount, pid, ipc".to_owned()))
}

/// Without a size there is nothing to do: EINVAL from kernels that know the call.
pub(super) fn clone3() -> Support {
    // SAFETY: a null argument of size 0 is refused before it is looked at.
    known(unsafe { libc::syscall(libc::SYS_clone3, 0_usize, 0_usize) })
}

/// Closes a range in which no descriptor can be.
pub(super) fn close_range() -> Support {
    // SAFETY: descriptors never get this high, so nothing is closed.
    known(unsafe { libc::syscall(libc::SYS_close_range, i32::MAX, i32::MAX, 0) })
}

pub(super) fn pidfd() -> Support {
    // SAFETY: no memory is involved; pid 0 is refused.
    known(unsafe { libc::syscall(libc::SYS_pidfd_open, 0, 0) })
}

/// Whether the call exists, whatever it made of its arguments.
fn known(result: libc::c_long) -> Support {
    let error = io::Error::last_os_error();
    match result {
        -1 if error.raw_os_error() == Some(libc::ENOSYS) => Support::Absent("absent".to_owned()),
        -1 if error.raw_os_error() == Some(libc::EPERM) => {
            Support::Absent("refused: a seccomp filter?".to_owned())
        }
        _ => yes(),
    }
}

fn yes() -> Support {
    Support::Present("yes".to_owned())
}

fn first_failure(mut results: impl Iterator<Item = io::Result<()>>) -> Option<Support> {
    results.find_map(|result| result.err().map(|error| refused(&error)))
}

/// The names of those that are missing, if some are.
fn all_of<'a>(tried: impl Iterator<Item = (&'a str, Result<bool, Support>)>) -> Support {
    let mut names = Vec::new();
    for (name, supported) in tried {
        match supported {
            Ok(true) => names.push(name),
            Ok(false) => return Support::Absent(format!("no {name}")),
            Err(support) => return support,
        }
    }
    Support::Present(names.join(", "))
}

/// EINVAL and E2BIG are what an older kernel says to what it does not know.
fn refused(error: &io::Error) -> Support {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::E2BIG) => Support::Absent("this kernel has none".to_owned()),
        Some(libc::EPERM) if !nix::unistd::geteuid().is_root() => {
            Support::Unknown("only root can try".to_owned())
        }
        _ => Support::Absent(error.to_string()),
    }
}

fn refused_program(error: &ProgramError) -> Support {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => refused(io_error),
        other => Support::Absent(other.to_string()),
    }
}

/// Loads `return 1`, which every hook's verifier takes.
fn load(of_type: bpf_prog_type, hook: bpf_attach_type) -> io::Result<OwnedFd> {
    let instruction = |code: u32, imm: i32| bpf_insn {
        code: code as u8,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm,
    };
    let program = [
        instruction(BPF_ALU64 | BPF_MOV | BPF_K, 1),
        instruction(BPF_JMP | BPF_EXIT, 0),
    ];
    // SAFETY: all-zero is a valid bpf_attr; program and licence outlive the call.
    let fd = unsafe {
        let mut attr: bpf_attr = zeroed();
        let load = &mut attr.__bindgen_anon_3;
        load.prog_type = of_type as u32;
        load.insns = program.as_ptr() as u64;
        load.insn_cnt = program.len() as u32;
        load.license = c"GPL".as_ptr() as u64;
        // Takes its type from the link, and older kernels want a zero here.
        if of_type != bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS
            && of_type != bpf_prog_type::BPF_PROG_TYPE_CGROUP_DEVICE
        {
            load.expected_attach_type = hook as u32;
        }
        sys::bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?
    };
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Of a map of one element of eight bytes.
fn read_element(map: &OwnedFd) -> io::Result<()> {
    let key = 0_u32;
    let mut value = 0_u64;
    // SAFETY: all-zero is a valid bpf_attr; key and value are as long as the map's and outlive the call.
    unsafe {
        let mut attr: bpf_attr = zeroed();
        let lookup = &mut attr.__bindgen_anon_2;
        lookup.map_fd = map.as_raw_fd() as u32;
        lookup.key = &raw const key as u64;
        lookup.__bindgen_anon_1.value = &raw mut value as u64;
        sys::bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    }
    Ok(())
}

/// Of the calling thread only, and for good.
fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // Effective, permitted and inheritable, two words each.
    let none = [0_u32; 6];
    // SAFETY: header and data are as capset(2) wants them for version 3, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
