//! Programs: what they are, and loading those that aya has no name for.

use std::ffi::CStr;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_prog_info, bpf_prog_type,
};

use super::{bpf, by_id, fill_info, text};

/// A loaded program, as the kernel describes it.
#[derive(Debug, Clone)]
pub struct LoadedProgram {
    pub name: String,
    pub maps: Vec<u32>,
    /// How often it ran, and for how long, while the kernel was counting.
    pub runs: u64,
    pub run_ns: u64,
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
