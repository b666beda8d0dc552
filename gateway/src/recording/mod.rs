//! A session's bytes, both directions, as the agent and the target saw them.
//!
//! [`frame`] is the file format. All of it is pure; the files belong to [`crate::store::recordings`].

pub mod frame;
