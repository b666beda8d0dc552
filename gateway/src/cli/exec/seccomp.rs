//! The system calls that an agent has no use for but to get out: a filter that nothing below can take off.
//!
//! The kernel programs see every socket of the internet families. This filter sees to it that there are no
//! others: packet, vsock, Bluetooth or crypto sockets have no hook. It also closes the ways to another
//! process's sockets (ptrace, `pidfd_getfd`), to new namespaces, and to interfaces of the kernel that have
//! been used to break it. It lists what is denied: an agent is any program, so the rest must work.
//!
//! Four filters are stacked, one per answer, because clients turn to something else only on the errno they
//! know. The kernel runs all and takes the strictest.

use anyhow::{Context as _, Result};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// Answered with EPERM, whatever the arguments.
const FORBIDDEN: &[c_long] = &[
    // Another process's memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Namespaces and mounts. Unshare and clone are below: they have harmless uses.
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    // Files by inode, past every mount.
    libc::SYS_open_by_handle_at,
    // The kernel's own programs, keys and counters.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_syslog,
    // The host.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Answered with ENOSYS, as by an older kernel: libraries fall back to what can be filtered. The flags of
/// clone3 are in memory, where no filter can read them; io_uring opens sockets of every family without a
/// system call.
const MISSING: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// The newest system call that was looked at for the lists above. Newer ones do not exist for agents:
/// 467 is `open_tree_attr`, one more way to mount.
const NEWEST_KNOWN: u32 = 466;

/// Families an agent may open. What netlink can say is limited to routes and addresses.
const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

const NEW_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The low byte of clone(2)'s flags is a signal, so this one is a namespace for unshare(2) alone.
const NEW_TIME_NAMESPACE: i32 = 0x80;

/// With `SOCK_PACKET` the family `AF_INET` means `AF_PACKET`; the other bits are flags.
const SOCK_PACKET: u64 = 10;
const SOCK_TYPE_MASK: u64 = 0xf;

/// What personality(2) may set: nothing, Linux as it is on 32 bits, or nothing new (a question).
const PERSONALITIES: [u64; 3] = [0, 0x8, 0xffff_ffff];

type Rules = Vec<(c_long, Vec<SeccompRule>)>;

/// Puts the filters on this thread and all it becomes. There must be no other thread, and `no_new_privs`
/// must be set. They need no capability, so this can be the last thing before the command.
pub fn install() -> Result<()> {
    for program in programs()? {
        seccompiler::apply_filter(&program).context(
            "installing the system call filter: this needs a kernel with CONFIG_SECCOMP_FILTER",
        )?;
    }
    Ok(())
}

fn programs() -> Result<Vec<BpfProgram>> {
    Ok(vec![
        foreign_numbers(),
        program(sockets()?, libc::EAFNOSUPPORT)?,
        program(always(MISSING), libc::ENOSYS)?,
        program([always(FORBIDDEN), conditional()?].concat(), libc::EPERM)?,
    ])
}

/// seccompiler adds the check of the architecture: calls of another one (32 bit programs) end the process.
fn program(rules: Rules, errno: i32) -> Result<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)
        .context("there is no system call filter for this machine")?;
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        architecture,
    )?;
    Ok(filter.try_into()?)
}

fn always(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, vec![])).collect()
}

fn sockets() -> Result<Rules> {
    let other_family = FAMILIES
        .iter()
        .map(|family| argument(0, SeccompCmpOp::Ne, number(*family)))
        .collect::<Result<_>>()?;
    let other_netlink = vec![
        argument(0, SeccompCmpOp::Eq, number(libc::AF_NETLINK))?,
        argument(2, SeccompCmpOp::Ne, number(libc::NETLINK_ROUTE))?,
    ];
    let packet_in_disguise = vec![argument(
        1,
        SeccompCmpOp::MaskedEq(SOCK_TYPE_MASK),
        SOCK_PACKET,
    )?];
    let pair = vec![argument(0, SeccompCmpOp::Ne, number(libc::AF_UNIX))?];
    Ok(vec![
        (
            libc::SYS_socket,
            vec![
                SeccompRule::new(other_family)?,
                SeccompRule::new(other_netlink)?,
                SeccompRule::new(packet_in_disguise)?,
            ],
        ),
        (libc::SYS_socketpair, vec![SeccompRule::new(pair)?]),
    ])
}

fn conditional() -> Result<Rules> {
    let with_flag = |flag: &i32| rule(0, SeccompCmpOp::MaskedEq(number(*flag)), number(*flag));
    let clone = NEW_NAMESPACES.iter().map(with_flag);
    let unshare = NEW_NAMESPACES
        .iter()
        .chain(&[NEW_TIME_NAMESPACE])
        .map(with_flag);
    let personality = PERSONALITIES
        .iter()
        .map(|allowed| argument(0, SeccompCmpOp::Ne, *allowed))
        .collect::<Result<_>>()?;
    // Both put input into a terminal that the caller's shell reads when the agent is gone.
    let terminal = [libc::TIOCSTI, libc::TIOCLINUX]
        .map(|request| rule(1, SeccompCmpOp::Eq, request as u32 as u64));
    Ok(vec![
        (libc::SYS_clone, clone.collect::<Result<_>>()?),
        (libc::SYS_unshare, unshare.collect::<Result<_>>()?),
        (libc::SYS_personality, vec![SeccompRule::new(personality)?]),
        (
            libc::SYS_ioctl,
            terminal.into_iter().collect::<Result<_>>()?,
        ),
    ])
}

fn rule(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    Ok(SeccompRule::new(vec![argument(index, operator, value)?])?)
}

/// The kernel reads these arguments as 32 bits, so the filter must not look at the others.
fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition> {
    Ok(SeccompCondition::new(
        index,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?)
}

fn number(constant: i32) -> u64 {
    u64::from(constant.unsigned_abs())
}

/// Numbers above the newest known one are ENOSYS. On x86-64 that covers the x32 ABI, whose numbers are the
/// usual ones with bit 30 set, which no rule about the usual ones would match.
fn foreign_numbers() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_IF_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    /// Where `struct seccomp_data` has the number (linux/seccomp.h).
    const NUMBER: u32 = 0;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        instruction(LOAD_WORD, 0, 0, NUMBER),
        instruction(JUMP_IF_GREATER, 0, 1, NEWEST_KNOWN),
        instruction(
            RETURN,
            0,
            0,
            SeccompAction::Errno(libc::ENOSYS.unsigned_abs()).into(),
        ),
        instruction(RETURN, 0, 0, SeccompAction::Allow.into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_compiles() {
        for program in programs().expect("the rules are valid") {
            assert!((4..4096).contains(&program.len()), "{}", program.len());
        }
    }

    /// A call in two lists would get the answer of one of them, by accident.
    #[test]
    fn every_call_is_in_one_list() {
        let rules = [
            sockets().expect("valid"),
            always(MISSING),
            always(FORBIDDEN),
            conditional().expect("valid"),
        ]
        .concat();
        let mut calls: Vec<c_long> = rules.iter().map(|(call, _)| *call).collect();
        calls.sort_unstable();
        let all = calls.len();
        calls.dedup();
        assert_eq!(calls.len(), all);
        assert!(calls.iter().all(|call| *call <= NEWEST_KNOWN.into()));
    }
}
