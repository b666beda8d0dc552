//! The kernel edge: the only module that knows aya and bpf(2).
//!
//! [`guard`] puts the kernel programs on the agents' cgroup and keeps them there; [`FlowTable`] tells for an
//! accepted socket where it wanted to go and who connected it; [`cgroup`] finds and enters cgroups.
//!
//! The kernel programs are in the crate `gateway-ebpf`. What must never happen: a process in the agents'
//! cgroup whose connect(2) runs none of them. So links are pinned and outlive every process, replacing them
//! is atomic, and [`guard::verify`] looks at the attachment itself, not at the pins.

#![expect(unsafe_code, reason = "bpf(2), where aya has no call for it")]

use std::path::PathBuf;

pub mod cgroup;
pub mod denials;
pub mod descriptors;
pub mod dns;
pub mod features;
mod flow;
pub mod guard;
mod hooks;
mod initial;
pub mod isolate;
mod lookup;
pub mod lsm;
mod maps;
pub mod netns;
mod object;
mod pins;
mod sys;
mod version;

pub use cgroup::join_gateway_cgroup;
pub use flow::{Flow, FlowKind};
pub use gateway_ebpf::decide::Denial;
pub use gateway_ebpf::{Counters, KernelEvent, Listener};
pub use initial::require_host_namespaces;
pub use lookup::{NetnsLookup, attach_lookup, publish_sockets, register_netns, registered_netns};
pub use maps::{
    CounterTable, DatagramTable, EventRing, FlowTable, Heartbeat, Maps, MapsId, TargetTable,
};
pub use version::{KernelVersion, OLDEST_KERNEL, required_kernel};

/// What went wrong at the kernel edge, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    #[error("no cgroup v2 mount: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`")]
    NoCgroup2,
    // The causes are part of the text, so they are not sources: a printed chain would repeat them.
    #[error("{}: {cause}{}", .path.display(), hint(.cause))]
    File {
        path: PathBuf,
        cause: std::io::Error,
    },
    #[error("{what}: {}{}", chain(.cause.as_ref()), hint_any(.cause.as_ref()))]
    Bpf {
        what: String,
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("kernel.pins {} is not below a BPF file system: choose a path below /sys/fs/bpf", .0.display())]
    NotBpffs(PathBuf),
    #[error("this build's kernel programs lack {0}: rebuild with `cargo xtask build`")]
    ObjectLacks(&'static str),
    #[error("agents are not intercepted: {}", .0.join("; "))]
    NotEnforced(Vec<String>),
    #[error("{} still has processes, which would be unwatched: stop them first, or use --force", .0.display())]
    AgentsRunning(PathBuf),
    #[error(
        "Linux {0} cannot hold agents: before {OLDEST_KERNEL} a socket can lose its cgroup and with it every \
         hook (kernel commit 8520e224f547); boot {OLDEST_KERNEL} or later"
    )]
    KernelTooOld(KernelVersion),
    #[error("this kernel's version cannot be told from {0:?}")]
    KernelUnknown(String),
    #[error(
        "this process is in a {0} namespace of its own, where cgroups and processes have other numbers than the \
         kernel programs see: run it on the host (a container: --cgroupns=host --pid=host)"
    )]
    Namespace(&'static str),
    #[error("the port must not be 0")]
    NoPort,
}

impl InterceptError {
    fn file(path: &std::path::Path, cause: std::io::Error) -> Self {
        Self::File {
            path: path.to_path_buf(),
            cause,
        }
    }

    fn bpf(
        what: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Bpf {
            what: what.into(),
            cause: cause.into(),
        }
    }
}

const NOT_ROOT: &str = " (this needs root)";

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => NOT_ROOT,
        _ => "",
    }
}

fn hint_any(error: &(dyn std::error::Error + Send + Sync + 'static)) -> &'static str {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return hint(io);
        }
        next = error.source();
    }
    ""
}

/// aya's errors say little at the top: `a: b: c`.
fn chain(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}
