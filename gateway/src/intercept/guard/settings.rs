//! What the guard tells the kernel programs.

use std::path::Path;
use std::time::Duration;

use gateway_ebpf::decide::Denial;
use gateway_ebpf::{Counters, DeviceKey, Settings};

use super::Places;
use crate::config::{self, Device, DeviceKind, UnixSockets};
use crate::intercept::maps::{self, Table};
use crate::intercept::{InterceptError, cgroup, pins};

/// The gateway beats every half second; after this long without one it is taken for dead.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(3);

/// The key of the counters that find no room of their own.
const OVERFLOW: u64 = 0;

const NOTHING_COUNTED: Counters = Counters {
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

/// Writes what the kernel programs go by. Entries of a configuration that is gone are removed.
pub(super) fn configure(
    kernel: &config::Kernel,
    places: &Places,
    port: u16,
) -> Result<(), InterceptError> {
    let agents_id =
        cgroup::id(&places.agents).map_err(|error| InterceptError::file(&places.agents, error))?;
    let settings = Settings {
        agents_id,
        heartbeat_max_ns: HEARTBEAT_MAX.as_nanos() as u64,
        gateway_port: u32::from(port),
        agents_level: depth(&kernel.agents_cgroup),
        local_v4: kernel
            .local_address
            .map_or(0, |v4| u32::from_ne_bytes(v4.octets())),
        local_v6: kernel
            .local_address6
            .map_or([0; 4], |v6| maps::kernel_address(v6.into()).0),
        allow_unix: u32::from(kernel.unix_sockets == UnixSockets::Allow),
    };
    allow_devices(kernel)?;
    let counters: Table<u64, Counters> = Table::open(&kernel.pins, pins::COUNTERS)?;
    if counters.get(&OVERFLOW)?.is_none() {
        counters.set(&OVERFLOW, &NOTHING_COUNTED)?;
    }
    Table::open(&kernel.pins, pins::SETTINGS)?.set(&0_u32, &settings)
}

fn allow_devices(kernel: &config::Kernel) -> Result<(), InterceptError> {
    let devices: Table<DeviceKey, u32> = Table::open(&kernel.pins, pins::DEVICES)?;
    let allowed: Vec<DeviceKey> = kernel.devices.iter().map(device_key).collect();
    for key in &allowed {
        devices.set(key, &1)?;
    }
    for key in devices.keys()? {
        if !allowed.contains(&key) {
            devices.remove(&key)?;
        }
    }
    Ok(())
}

fn device_key(device: &Device) -> DeviceKey {
    DeviceKey {
        kind: match device.kind {
            DeviceKind::Block => DeviceKey::BLOCK,
            DeviceKind::Character => DeviceKey::CHARACTER,
        },
        major: device.major,
        minor: device.minor.unwrap_or(DeviceKey::ANY_MINOR),
    }
}

/// How deep a cgroup is below the root of the hierarchy.
pub(super) fn depth(cgroup: &str) -> u32 {
    let names = cgroup.split('/').filter(|name| !name.is_empty());
    names.count() as u32
}

/// What was told; `None` when nothing is loaded or configured yet.
pub(super) fn read(pins: &Path) -> Result<Option<Settings>, InterceptError> {
    let path = pins::map(pins, pins::SETTINGS);
    if !path
        .try_exists()
        .map_err(|error| InterceptError::file(&path, error))?
    {
        return Ok(None);
    }
    let settings = Table::open(pins, pins::SETTINGS)?.get(&0_u32)?;
    Ok(settings.filter(|settings: &Settings| settings.gateway_port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths() {
        for (cgroup, expected) in [("agents.slice", 1), ("a/b", 2), ("a//b/", 2), ("", 0)] {
            assert_eq!(depth(cgroup), expected, "{cgroup}");
        }
    }
}
