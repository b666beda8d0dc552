//! Which agent acts.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_skb_ancestor_cgroup_id,
    bpf_skb_cgroup_id,
};
use gateway_ebpf::Settings;

use super::maps::{self, SK_OWNER};

/// A cgroup and the agent's subtree it is in.
#[derive(Clone, Copy)]
pub struct Caller {
    pub cgroup_id: u64,
    /// The child of the agents' cgroup; the agents' cgroup itself for who is in none; 0 for who is outside.
    pub subtree: u64,
    /// A process made the call just now: its ids and name can be asked for.
    pub is_current: bool,
}

impl Caller {
    /// Before there are settings.
    #[inline(always)]
    pub fn unknown() -> Self {
        // SAFETY: a helper without preconditions.
        let cgroup_id = unsafe { bpf_get_current_cgroup_id() };
        Self {
            cgroup_id,
            subtree: 0,
            is_current: true,
        }
    }

    /// The calling process.
    #[inline(always)]
    pub fn current(settings: &Settings) -> Self {
        Self {
            subtree: current_subtree(settings),
            ..Self::unknown()
        }
    }

    /// The calling process; when it is outside of the agents' cgroup, the agent that made the socket.
    #[inline(always)]
    pub fn of_socket(settings: &Settings, socket: *mut bpf_sock) -> Self {
        let mut caller = Self::current(settings);
        if caller.subtree == 0
            && let Some(owner) = maps::stored(&SK_OWNER, socket)
        {
            caller.subtree = owner.subtree;
        }
        caller
    }

    /// The agent whose socket the packet belongs to.
    #[inline(always)]
    pub fn of_packet(settings: Option<&Settings>, packet: *mut __sk_buff) -> Self {
        // SAFETY: helpers that look at the packet's socket.
        let cgroup_id = unsafe { bpf_skb_cgroup_id(packet) };
        let subtree = match settings {
            // SAFETY: as above.
            Some(settings) => match unsafe {
                bpf_skb_ancestor_cgroup_id(packet, settings.agents_level as i32 + 1)
            } {
                0 => settings.agents_id,
                subtree => subtree,
            },
            None => 0,
        };
        Self {
            cgroup_id,
            subtree,
            is_current: false,
        }
    }
}

/// The calling process' ancestor at the level of the agents' cgroup.
#[inline(always)]
pub fn ancestor(settings: &Settings) -> u64 {
    // SAFETY: a helper without preconditions; 0 for a cgroup that is not that deep.
    unsafe { bpf_get_current_ancestor_cgroup_id(settings.agents_level as i32) }
}

#[inline(always)]
fn current_subtree(settings: &Settings) -> u64 {
    if ancestor(settings) != settings.agents_id {
        return 0;
    }
    // SAFETY: as above.
    match unsafe { bpf_get_current_ancestor_cgroup_id(settings.agents_level as i32 + 1) } {
        0 => settings.agents_id,
        subtree => subtree,
    }
}
