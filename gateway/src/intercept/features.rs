//! What this kernel can do, and what each tier of interception needs of it.
//!
//! Three tiers. The *core* is the cgroup programs: without all of it agents are not intercepted. The *launcher*
//! is what `sluice exec --isolate` takes away from an agent besides. The *LSM* tier closes, in the kernel, what
//! the core cannot see and the launcher only closes for agents that it started; many kernels do not offer it.
//!
//! Features are tried, not derived from the version: distributions port features back, and switch others
//! off. Only the floor goes by version ([`OLDEST_KERNEL`](super::OLDEST_KERNEL)): what is wrong below it cannot
//! be tried.

use std::fs;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::BpfHelper;
use aya_obj::generated::{bpf_attach_type as attach, bpf_prog_type as prog};
use serde::Serialize;

use super::version::{KernelVersion, UNIX_SOCKET_HOOKS, required_kernel};

mod probe;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    Core,
    Launcher,
    Lsm,
}

impl Tier {
    pub const ALL: [Tier; 3] = [Tier::Core, Tier::Launcher, Tier::Lsm];

    pub fn letter(self) -> char {
        match self {
            Tier::Core => 'A',
            Tier::Launcher => 'B',
            Tier::Lsm => 'C',
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Tier::Core => "core",
            Tier::Launcher => "launcher",
            Tier::Lsm => "LSM",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Tier::Core => "core: the cgroup programs, needed",
            Tier::Launcher => "launcher: needed for sluice exec --isolate",
            Tier::Lsm => "LSM: optional hardening",
        }
    }

    /// What agents can do, that the core does not see, where the tier is not complete.
    pub fn open_without(self) -> Vec<&'static str> {
        self.open_on(KernelVersion::running().ok())
    }

    fn open_on(self, running: Option<KernelVersion>) -> Vec<&'static str> {
        let mut open = self.open_on_every_kernel().to_vec();
        if self == Tier::Lsm && running.is_none_or(|running| running < UNIX_SOCKET_HOOKS) {
            open.push("Unix sockets of others");
        }
        open
    }

    fn open_on_every_kernel(self) -> &'static [&'static str] {
        match self {
            Tier::Core => &["agents are not intercepted"],
            Tier::Launcher => &[
                "agents share the host's network, files, processes and sockets: Unix sockets of daemons, other \
                 address families",
            ],
            Tier::Lsm => &[
                "sockets that no cgroup program sees (packet, vsock, netlink, AF_ALG, …), unless the launcher's seccomp \
                 filter refuses them",
                "user namespaces, and packet sockets in them, unless the launcher's filter refuses them",
                "tracing other processes of the agent's user and taking over their sockets, unless the launcher put it \
                 into a pid namespace of its own",
            ],
        }
    }
}

/// How much a tier depends on a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Required,
    /// Something is worse without it; the string says what.
    Better(&'static str),
}

/// What a try showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    Present(String),
    Absent(String),
    /// It could not be tried, as anybody but root cannot.
    Unknown(String),
}

/// One thing that the kernel has or lacks.
#[derive(Debug)]
pub struct Feature {
    pub tier: Tier,
    pub name: &'static str,
    /// The first release that has it; distributions may have ported it back.
    pub since: &'static str,
    pub need: Need,
    pub hint: &'static str,
    probe: fn() -> Support,
}

impl Feature {
    pub fn support(&self) -> Support {
        (self.probe)()
    }

    const fn core(name: &'static str, since: &'static str, probe: fn() -> Support) -> Self {
        Self {
            tier: Tier::Core,
            name,
            since,
            need: Need::Required,
            hint: "a kernel with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL; kernel lockdown off, bpf(2) not filtered",
            probe,
        }
    }

    const fn launcher(name: &'static str, since: &'static str, probe: fn() -> Support) -> Self {
        Self {
            tier: Tier::Launcher,
            hint: "a kernel with namespaces and CONFIG_SECCOMP_FILTER, not restricted by a container",
            ..Self::core(name, since, probe)
        }
    }

    const fn lsm(name: &'static str, since: &'static str, probe: fn() -> Support) -> Self {
        Self {
            tier: Tier::Lsm,
            ..Self::core(name, since, probe)
        }
    }

    const fn better(self, without: &'static str) -> Self {
        Self {
            need: Need::Better(without),
            ..self
        }
    }

    const fn hint(self, hint: &'static str) -> Self {
        Self { hint, ..self }
    }
}

const SOCK_ADDR: prog = prog::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;

/// Everything that matters, in the order of the tiers.
pub const FEATURES: &[Feature] = &[
    Feature::core("kernel", "5.15", kernel).hint(
        "Sluice needs Linux 5.15: before it, cgroup v1 classes switch interception off silently",
    ),
    Feature::core("cgroup v2", "4.5", cgroup2)
        .hint("mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"),
    Feature::core("cgroup.freeze", "5.2", freeze)
        .better("agents go on running while their interception is repaired")
        .hint("a kernel of 5.2 or later"),
    Feature::core("bpffs", "4.4", bpffs).hint("a kernel with CONFIG_BPF_SYSCALL"),
    Feature::core("connect", "4.17", || {
        probe::programs(
            SOCK_ADDR,
            &[attach::BPF_CGROUP_INET4_CONNECT, attach::BPF_CGROUP_INET6_CONNECT],
        )
    }),
    Feature::core("sendmsg", "4.18", || {
        probe::programs(
            SOCK_ADDR,
            &[attach::BPF_CGROUP_UDP4_SENDMSG, attach::BPF_CGROUP_UDP6_SENDMSG],
        )
    }),
    Feature::core("recvmsg", "5.2", || {
        probe::programs(
            SOCK_ADDR,
            &[attach::BPF_CGROUP_UDP4_RECVMSG, attach::BPF_CGROUP_UDP6_RECVMSG],
        )
    }),
    Feature::core("getpeername", "5.8", || {
        probe::programs(
            SOCK_ADDR,
            &[
                attach::BPF_CGROUP_INET4_GETPEERNAME,
                attach::BPF_CGROUP_INET6_GETPEERNAME,
            ],
        )
    }),
    Feature::core("getsockname", "5.8", || {
        probe::programs(
            SOCK_ADDR,
            &[
                attach::BPF_CGROUP_INET4_GETSOCKNAME,
                attach::BPF_CGROUP_INET6_GETSOCKNAME,
            ],
        )
    }),
    Feature::core("bind", "4.17", || {
        probe::programs(
            SOCK_ADDR,
            &[attach::BPF_CGROUP_INET4_BIND, attach::BPF_CGROUP_INET6_BIND],
        )
    }),
    Feature::core("unix connect, sendmsg", "6.7", || {
        probe::programs(
            SOCK_ADDR,
            &[attach::BPF_CGROUP_UNIX_CONNECT, attach::BPF_CGROUP_UNIX_SENDMSG],
        )
    })
    .better("agents can connect to the host's Unix sockets, unless sluice exec --isolate hides them")
    .hint("a kernel of 6.7 or later"),
    Feature::core("sock_create", "4.10", || {
        probe::programs(
            prog::BPF_PROG_TYPE_CGROUP_SOCK,
            &[attach::BPF_CGROUP_INET_SOCK_CREATE],
        )
    }),
    Feature::core("sock_ops", "4.13", || {
        probe::programs(
            prog::BPF_PROG_TYPE_SOCK_OPS,
            &[attach::BPF_CGROUP_SOCK_OPS],
        )
    }),
    Feature::core("egress, ingress", "4.10", || {
        probe::programs(
            prog::BPF_PROG_TYPE_CGROUP_SKB,
            &[attach::BPF_CGROUP_INET_EGRESS, attach::BPF_CGROUP_INET_INGRESS],
        )
    }),
    Feature::core("device", "4.15", || {
        probe::programs(
            prog::BPF_PROG_TYPE_CGROUP_DEVICE,
            &[attach::BPF_CGROUP_DEVICE],
        )
    }),
    Feature::core("sk_lookup", "5.9", || {
        probe::programs(prog::BPF_PROG_TYPE_SK_LOOKUP, &[attach::BPF_SK_LOOKUP])
    }),
    Feature::core("cgroup links", "5.7", probe::cgroup_link),
    Feature::core("maps", "5.8", || {
        probe::maps(&[
            ("sk_storage", MapType::SkStorage),
            ("lru_hash", MapType::LruHash),
            ("sockmap", MapType::SockMap),
            ("ringbuf", MapType::RingBuf),
        ])
    }),
    Feature::core("socket helpers", "5.7", || {
        probe::helpers(
            ProgramType::CgroupSockAddr,
            &[
                ("sk_storage_get", BpfHelper::BPF_FUNC_sk_storage_get),
                ("skc_lookup_tcp", BpfHelper::BPF_FUNC_skc_lookup_tcp),
                ("get_netns_cookie", BpfHelper::BPF_FUNC_get_netns_cookie),
                (
                    "get_current_ancestor_cgroup_id",
                    BpfHelper::BPF_FUNC_get_current_ancestor_cgroup_id,
                ),
                ("ringbuf_output", BpfHelper::BPF_FUNC_ringbuf_output),
            ],
        )
    }),
    Feature::core("netns cookie", "5.15", || {
        probe::helpers(
            ProgramType::SockOps,
            &[("in sock_ops", BpfHelper::BPF_FUNC_get_netns_cookie)],
        )
    }),
    Feature::core("bpf_set_retval", "5.18", || {
        probe::helpers(
            ProgramType::CgroupSockAddr,
            &[("in connect", BpfHelper::BPF_FUNC_set_retval)],
        )
    })
    .better("every denied connect fails with EPERM instead of ECONNREFUSED or ENETUNREACH")
    .hint("a kernel of 5.18 or later"),
    Feature::core("maps by descriptor", "5.19", probe::map_without_privileges).hint(
        "`sluice run` has no privileges and uses maps it was handed: a kernel of 5.19 or later, or sysctl kernel.unprivileged_bpf_disabled=0",
    ),
    Feature::launcher("namespaces", "3.8", probe::namespaces),
    Feature::launcher("seccomp filter", "3.5", seccomp),
    Feature::launcher("clone3", "5.7", probe::clone3).hint("a kernel of 5.7 or later"),
    Feature::launcher("close_range", "5.9", probe::close_range).hint("a kernel of 5.9 or later"),
    Feature::launcher("pidfd", "5.3", probe::pidfd).hint("a kernel of 5.3 or later"),
    Feature::lsm("bpf among the LSMs", "5.7", lsm_list)
        .hint("CONFIG_BPF_LSM, and `bpf` in the kernel's command line: lsm=…,bpf"),
    Feature::lsm("kernel BTF", "5.2", btf).hint("a kernel with CONFIG_DEBUG_INFO_BTF"),
    Feature::lsm("LSM cgroup programs", "6.0", probe::lsm_program)
        .hint("the kernel must permit loading them: lockdown off, no stricter policy above it"),
];

// ------------------------------------------------------------------------------ what is read, not tried

fn kernel() -> Support {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match required_kernel() {
        Ok(_) => Support::Present(release.trim().to_owned()),
        Err(error) => Support::Absent(error.to_string()),
    }
}

fn cgroup2() -> Support {
    let Ok(mount) = super::cgroup::cgroup2_mount() else {
        return Support::Absent("not mounted".to_owned());
    };
    let hybrid = if mount == Path::new("/sys/fs/cgroup") {
        ""
    } else {
        " (hybrid: version 1 beside it)"
    };
    Support::Present(format!("{}{hybrid}", mount.display()))
}

/// The file is in every cgroup but the root.
fn freeze() -> Support {
    let own = super::cgroup::cgroup2_mount().ok().and_then(|mount| {
        let children = fs::read_dir(mount).ok()?.flatten();
        children
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path().join("cgroup.freeze"))
            .next()
    });
    match own {
        Some(file) if file.exists() => Support::Present("yes".to_owned()),
        Some(_) => Support::Absent("absent".to_owned()),
        None => Support::Unknown("there is no cgroup yet to look at".to_owned()),
    }
}

fn bpffs() -> Support {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    bpffs_in(&mounts, &known)
}

fn bpffs_in(mounts: &str, filesystems: &str) -> Support {
    let mounted = mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next() == Some("bpf")).then_some(place)
    });
    let known = || {
        filesystems
            .lines()
            .any(|line| line.split_ascii_whitespace().next_back() == Some("bpf"))
    };
    match mounted {
        Some(place) => Support::Present(place.to_owned()),
        None if known() => {
            Support::Present("not mounted yet; `sluice guard load` mounts it".to_owned())
        }
        None => Support::Absent("this kernel has none".to_owned()),
    }
}

fn btf() -> Support {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(PATH).exists() {
        Support::Present(PATH.to_owned())
    } else {
        Support::Absent("absent".to_owned())
    }
}

fn seccomp() -> Support {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match actions.split_ascii_whitespace().any(|one| one == "errno") {
        true => Support::Present("yes".to_owned()),
        false => Support::Absent("absent".to_owned()),
    }
}

/// Securityfs says it in words; where it is not mounted, a newer kernel can be asked.
pub(super) fn lsm_list() -> Support {
    match fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(list) => match list.trim().split(',').any(|name| name == "bpf") {
            true => Support::Present(list.trim().to_owned()),
            false => Support::Absent(list.trim().to_owned()),
        },
        Err(_) => probe::lsm_modules(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_bpf_file_system_is() {
        let known = "nodev\tsysfs\nnodev\tbpf\n\text4\n";
        let mounted = "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n";
        let named_so = "bpf /mnt ext4 rw 0 0\n";
        let present = |text: &str| Support::Present(text.to_owned());
        for (name, mounts, known, expected) in [
            ("mounted", mounted, known, present("/sys/fs/bpf")),
            (
                "not yet",
                named_so,
                known,
                present("not mounted yet; `sluice guard load` mounts it"),
            ),
            (
                "never",
                named_so,
                "\text4\n",
                Support::Absent("this kernel has none".to_owned()),
            ),
        ] {
            assert_eq!(bpffs_in(mounts, known), expected, "{name}");
        }
    }

    /// The tests' own host runs the guard, so it must have every required feature of the core. Needs root.
    #[test]
    fn this_host_has_the_core() {
        for feature in FEATURES {
            let support = feature.support();
            if feature.tier == Tier::Core && feature.need == Need::Required {
                assert!(
                    matches!(support, Support::Present(_)),
                    "{}: {support:?}",
                    feature.name
                );
            }
        }
    }

    #[test]
    fn unix_sockets_are_open_only_before_the_core_closes_them() {
        let open = |major, minor| Tier::Lsm.open_on(Some(KernelVersion { major, minor }));
        assert!(open(6, 6).contains(&"Unix sockets of others"));
        assert!(!open(6, 7).contains(&"Unix sockets of others"));
        assert_eq!(open(6, 7).len(), 3);
    }

    #[test]
    fn names_are_unique_and_tiers_in_order() {
        let mut names: Vec<&str> = FEATURES.iter().map(|feature| feature.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FEATURES.len());
        assert!(FEATURES.is_sorted_by_key(|feature| feature.tier));
    }
}
