//! Sluice's kernel programs.
//!
//! On the agents' cgroup: `connect4/6`, `sendmsg4/6`, `recvmsg4/6`, `getpeername4/6`, `getsockname4/6`,
//! `bind4/6`, `sock_create`, `setsockopt`, `agent_sock_ops`, `egress`, `ingress`, `device`, `connect_unix`, `sendmsg_unix`.
//! On the gateway's cgroup: `gateway_sock_ops`. Above the agents' cgroup: `guard_connect4/6`,
//! `guard_sendmsg4/6`. On network namespaces: `port_lookup`. What they decide is in the library, where it is
//! tested.
//!
//! Rules: every early return denies; a program says yes only through a named constant of
//! [`kernel::answer`]. All context words are read into locals before the first branch, because LLVM
//! otherwise merges loads into one at a computed offset, which the verifier refuses.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("the kernel programs are built with `cargo xtask build-ebpf`");
    std::process::exit(1);
}
