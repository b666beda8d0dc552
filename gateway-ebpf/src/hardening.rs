//! What the LSM tier decides: the ways around the other hooks that an agent has no business with.

use crate::decide::{Denial, same_agent};

pub const AF_UNIX: i32 = 1;
pub const AF_INET: i32 = 2;
pub const AF_INET6: i32 = 10;
pub const AF_NETLINK: i32 = 16;
/// getifaddrs(3) and if_nametoindex(3) need it; changing anything through it needs capabilities.
pub const NETLINK_ROUTE: i32 = 0;

/// `PTRACE_MODE_ATTACH` of linux/ptrace.h: to control a process or to get at its memory or descriptors, not
/// only at what /proc shows.
pub const PTRACE_MODE_ATTACH: u32 = 2;

/// Which sockets an agent may create. What the kernel makes for itself on an agent's behalf is not the agent's:
/// a new network namespace, for one, comes with raw and netlink sockets.
#[inline(always)]
pub const fn socket(family: i32, protocol: i32, by_kernel: bool) -> Result<(), Denial> {
    match (family, protocol) {
        _ if by_kernel => Ok(()),
        (AF_UNIX | AF_INET | AF_INET6, _) | (AF_NETLINK, NETLINK_ROUTE) => Ok(()),
        _ => Err(Denial::AddressFamily),
    }
}

/// What an agent may do to another process: look, but not touch. Whose process it is cannot be told here
/// without reading kernel structures, so its own are no exception; threads of one process never get here.
#[inline(always)]
pub const fn trace(mode: u32) -> Result<(), Denial> {
    if mode & PTRACE_MODE_ATTACH == 0 {
        Ok(())
    } else {
        Err(Denial::Privilege)
    }
}

/// Whether a process of the subtree `from` may reach the Unix socket that one of `to` made.
#[inline(always)]
pub const fn unix(from: u64, to: u64, agents: u64) -> Result<(), Denial> {
    if same_agent(from, to, agents) {
        Ok(())
    } else {
        Err(Denial::UnixSocket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        for family in 0..=46 {
            let allowed = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK].contains(&family);
            assert_eq!(socket(family, 0, false).is_ok(), allowed, "family {family}");
            assert!(
                socket(family, 0, true).is_ok(),
                "family {family}, the kernel's"
            );
        }
        for protocol in 1..=22 {
            let denied = Err(Denial::AddressFamily);
            assert_eq!(
                socket(AF_NETLINK, protocol, false),
                denied,
                "netlink {protocol}"
            );
        }
    }

    #[test]
    fn looking_is_allowed_and_attaching_is_not() {
        const READ: u32 = 1;
        const FSCREDS: u32 = 8;
        const REALCREDS: u32 = 16;
        for (mode, allowed) in [
            (READ | FSCREDS, true),
            (READ | REALCREDS, true),
            (PTRACE_MODE_ATTACH | FSCREDS, false),
            (PTRACE_MODE_ATTACH | REALCREDS, false),
        ] {
            assert_eq!(trace(mode).is_ok(), allowed, "mode {mode}");
        }
    }

    #[test]
    fn unix_sockets_are_for_the_same_agent() {
        const AGENTS: u64 = 10;
        for (name, from, to, allowed) in [
            ("the same agent", 11, 11, true),
            ("another agent", 11, 12, false),
            ("a service of the host", 11, 0, false),
            ("in the agents' cgroup itself", AGENTS, AGENTS, false),
            ("from outside, to outside", 0, 0, false),
        ] {
            assert_eq!(unix(from, to, AGENTS).is_ok(), allowed, "{name}");
        }
    }
}
