//! The only disk: the log, the recordings, the policies.

pub mod log;
pub mod policies;
pub mod recordings;
