//! What the kernel programs and the gateway agree on.
//!
//! A redirected connection passes through three maps, keyed each time by what is known at that moment:
//!
//! ```text
//! connect()            SK_ORIG[client socket]      = Flow         the original destination and who asked
//! SYN about to leave   CONNS[netns, 4-tuple]       = Flow         the source port is known now
//! handshake done       SK_ACC[accepted socket]     = Flow         CONNS entry consumed
//! ```
//!
//! This library holds the types stored there ([`flow`]), the addresses in them ([`address`]) and the
//! decisions ([`decide`]) as pure functions. It is compiled for the kernel and for the host; on the host
//! the decisions are tested.
#![no_std]

pub mod address;
pub mod decide;
pub mod flow;
pub mod hardening;

pub use address::Address;
pub use flow::{
    ConnKey, Counters, DatagramKey, DeviceKey, Flow, KernelEvent, Listener, Owner, ReportedKey,
    Settings, TargetKey,
};
