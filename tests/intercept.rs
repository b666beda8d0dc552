//! The kernel's part, alone: what the programs do to real sockets of real processes in real cgroups.
//!
//! Here the test is the gateway: it beats, registers its network namespace and targets, accepts on listeners
//! that a helper made inside the gateway's cgroup (a socket keeps its creator's cgroup), and reads the flows.
//! The agents are Python as user nobody. Nothing is attached above the test's own cgroup.

mod datagrams;
mod denied;
mod guard;
mod instance;
mod local;
mod maps;
mod outside;
mod packets;
mod redirected;
mod sources;
