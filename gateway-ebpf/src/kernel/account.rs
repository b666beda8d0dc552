//! The counters, which are exact, and the events, which are a courtesy: they may be lost, and nothing
//! depends on them.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_map_update_elem;
use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
};
use gateway_ebpf::decide::Denial;
use gateway_ebpf::flow::COMM_LEN;
use gateway_ebpf::{Address, Counters, KernelEvent};

use super::caller::Caller;
use super::maps::{COUNTERS, EVENTS};

/// What a denied call was after, as far as its hook can tell.
#[derive(Clone, Copy)]
pub struct Attempt {
    pub netns_cookie: u64,
    pub destination: Address,
    pub port: u16,
    /// `IPPROTO_*`, or the socket's type.
    pub protocol: u32,
}

impl Attempt {
    pub const UNKNOWN: Attempt = Attempt {
        netns_cookie: 0,
        destination: Address([0; 4]),
        port: 0,
        protocol: 0,
    };
}

/// The counters of a subtree that is counted for the first time.
#[unsafe(no_mangle)]
static NOTHING_COUNTED: Counters = Counters {
    connects: 0,
    redirected: 0,
    local: 0,
    dns: 0,
    packets_out: 0,
    bytes_out: 0,
    packets_in: 0,
    bytes_in: 0,
    denied: [0; Denial::COUNT],
};

/// Where what finds no room is counted; the guard has made it.
const OVERFLOW: u64 = 0;

#[inline(always)]
fn counters(subtree: u64) -> Option<*mut Counters> {
    if let Some(counters) = COUNTERS.get_ptr_mut(subtree) {
        return Some(counters);
    }
    // SAFETY: key and value are of the map's types; the helper copies both. That another CPU was first, or
    // that there is no room, shows below.
    unsafe {
        bpf_map_update_elem(
            addr_of!(COUNTERS).cast_mut().cast(),
            addr_of!(subtree).cast(),
            addr_of!(NOTHING_COUNTED).cast::<c_void>(),
            BPF_NOEXIST.into(),
        );
    }
    COUNTERS
        .get_ptr_mut(subtree)
        .or_else(|| COUNTERS.get_ptr_mut(OVERFLOW))
}

/// Atomic: many CPUs count at once. In assembly, because for this target the language has atomic types
/// but no operations on them.
#[inline(always)]
fn add(counter: *mut u64, count: u64) {
    // SAFETY: an aligned field of a map value, which every CPU changes in this way only.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {count}",
            counter = in(reg) counter,
            count = in(reg) count,
            options(nostack),
        );
    }
}

/// What is counted besides denials.
#[derive(Clone, Copy)]
pub enum What {
    Connect,
    Redirected,
    Local,
    Dns,
}

#[inline(always)]
pub fn count(by: Caller, what: What) {
    let Some(counters) = counters(by.subtree) else {
        return;
    };
    // SAFETY: fields of a map value.
    let counter = unsafe {
        match what {
            What::Connect => addr_of_mut!((*counters).connects),
            What::Redirected => addr_of_mut!((*counters).redirected),
            What::Local => addr_of_mut!((*counters).local),
            What::Dns => addr_of_mut!((*counters).dns),
        }
    };
    add(counter, 1);
}

#[inline(always)]
pub fn sent(by: Caller, bytes: u32) {
    if let Some(counters) = counters(by.subtree) {
        // SAFETY: fields of a map value.
        unsafe {
            add(addr_of_mut!((*counters).packets_out), 1);
            add(addr_of_mut!((*counters).bytes_out), bytes.into());
        }
    }
}

#[inline(always)]
pub fn received(by: Caller, bytes: u32) {
    if let Some(counters) = counters(by.subtree) {
        // SAFETY: fields of a map value.
        unsafe {
            add(addr_of_mut!((*counters).packets_in), 1);
            add(addr_of_mut!((*counters).bytes_in), bytes.into());
        }
    }
}

#[inline(always)]
pub fn denied(why: Denial, by: Caller, attempt: Attempt) {
    if let Some(counters) = counters(by.subtree) {
        // SAFETY: the array has an element for every denial.
        let counter = unsafe {
            let all: *mut u64 = addr_of_mut!((*counters).denied).cast();
            all.add(why as usize)
        };
        add(counter, 1);
    }
    tell(why, by, attempt);
}

/// Field by field into the ring: a struct literal would become a call to memset, which does not exist here.
#[inline(always)]
fn tell(why: Denial, by: Caller, attempt: Attempt) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        return;
    };
    let event: *mut KernelEvent = entry.as_mut_ptr();
    // SAFETY: the entry is as long as the type, and every field is written before it is submitted.
    unsafe {
        (*event).boot_ns = bpf_ktime_get_boot_ns();
        (*event).cgroup_id = by.cgroup_id;
        (*event).subtree = by.subtree;
        (*event).netns_cookie = attempt.netns_cookie;
        (*event).destination = attempt.destination;
        (*event).reason = why as u32;
        (*event).protocol = attempt.protocol;
        (*event).port = attempt.port.into();
        (*event).reserved = 0;
        if by.is_current {
            (*event).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
            (*event).uid = bpf_get_current_uid_gid() as u32;
            bpf_get_current_comm(addr_of_mut!((*event).comm).cast(), COMM_LEN as u32);
        } else {
            (*event).tgid = 0;
            (*event).uid = 0;
            let comm: *mut u64 = addr_of_mut!((*event).comm).cast();
            comm.write_unaligned(0);
            comm.add(1).write_unaligned(0);
        }
    }
    entry.submit(0);
}
