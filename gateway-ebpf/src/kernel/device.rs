//! Devices: the harmless standard ones, and those that the configuration lists.

use core::ptr::addr_of;

use aya_ebpf::Global;
use aya_ebpf::macros::cgroup_device;
use aya_ebpf::programs::DeviceContext;
use gateway_ebpf::DeviceKey;
use gateway_ebpf::decide::{self, Denial};

use super::account::Attempt;
use super::answer::{ALLOW_DEVICE, deny};
use super::caller::Caller;
use super::maps::{self, DEVICES};

/// Whether the kernel lets device programs ask who calls. Set by the loader; where it is 0 denials are
/// counted together, without the agent.
#[unsafe(no_mangle)]
static DEVICE_KNOWS_CALLER: Global<u8> = Global::new(0);

#[cgroup_device]
pub fn device(ctx: DeviceContext) -> i32 {
    // SAFETY: context words.
    let (access, major, minor) = unsafe {
        (
            addr_of!((*ctx.device).access_type).read_volatile(),
            addr_of!((*ctx.device).major).read_volatile(),
            addr_of!((*ctx.device).minor).read_volatile(),
        )
    };
    let device = DeviceKey {
        // The upper half says what for: making, reading, writing.
        kind: access & 0xffff,
        major,
        minor,
    };
    if decide::standard_device(device) || is_listed(device) {
        return ALLOW_DEVICE;
    }
    deny(Denial::Device, caller(), Attempt::UNKNOWN)
}

#[inline(always)]
fn is_listed(device: DeviceKey) -> bool {
    let any = DeviceKey {
        minor: DeviceKey::ANY_MINOR,
        ..device
    };
    DEVICES.get_ptr(device).is_some() || DEVICES.get_ptr(any).is_some()
}

#[inline(always)]
fn caller() -> Caller {
    if DEVICE_KNOWS_CALLER.load() == 0 {
        return Caller {
            is_current: false,
            ..Caller::unknown()
        };
    }
    match maps::settings() {
        Some(settings) => Caller::current(settings),
        None => Caller::unknown(),
    }
}
