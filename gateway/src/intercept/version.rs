//! Which kernel this is, and which is the oldest that will do.

use std::fmt;
use std::fs;
use std::path::Path;

use super::InterceptError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    pub major: u32,
    pub minor: u32,
}

/// Before 5.15 a socket lost its version 2 cgroup as soon as anybody used net_cls or net_prio of version 1
/// (kernel commit 8520e224f547), and with it every hook: agents would be unwatched without a trace.
pub const OLDEST_KERNEL: KernelVersion = KernelVersion {
    major: 5,
    minor: 15,
};

/// The first with cgroup hooks for Unix sockets: from it on the core closes them.
pub const UNIX_SOCKET_HOOKS: KernelVersion = KernelVersion { major: 6, minor: 7 };

impl KernelVersion {
    pub fn running() -> Result<Self, InterceptError> {
        let path = Path::new("/proc/sys/kernel/osrelease");
        let release =
            fs::read_to_string(path).map_err(|error| InterceptError::file(path, error))?;
        Self::parse(&release).ok_or(InterceptError::KernelUnknown(release))
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|character: char| !character.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// This kernel's version, if it is one that can hold agents.
pub fn required_kernel() -> Result<KernelVersion, InterceptError> {
    require(KernelVersion::running()?)
}

fn require(running: KernelVersion) -> Result<KernelVersion, InterceptError> {
    if running < OLDEST_KERNEL {
        return Err(InterceptError::KernelTooOld(running));
    }
    Ok(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        for (release, expected) in [
            ("6.18.44-fc-v657\n", version(6, 18)),
            ("5.15.0-119-generic\n", version(5, 15)),
            ("6.1\n", version(6, 1)),
            ("5.4.0+\n", version(5, 4)),
            ("", None),
            ("6", None),
            ("x.y", None),
        ] {
            assert_eq!(KernelVersion::parse(release), expected, "{release}");
        }
    }

    #[test]
    fn the_oldest_kernel_is_named_in_the_refusal() {
        let old = KernelVersion {
            major: 5,
            minor: 14,
        };
        let refusal = require(old).unwrap_err().to_string();
        assert!(
            refusal.contains("5.14") && refusal.contains("5.15"),
            "{refusal}"
        );
        assert!(require(OLDEST_KERNEL).is_ok());
    }
}
