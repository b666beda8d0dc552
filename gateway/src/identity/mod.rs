//! Who is at the other end of a flow.
//!
//! Three independent answers make an identity: the [cgroup](cgroup) says which registered agent it is, the
//! agent's [token](token) proves that its issuer vouches for it right now, and the [process](process) that
//! connected is put on record.

pub mod cgroup;
pub mod process;
pub mod token;
