//! The only disk: the log, the recordings, the policies.

pub mod recordings;
