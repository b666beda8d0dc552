//! A session's bytes, both directions, as the agent and the target saw them.
//!
//! [`frame`] is the file format, [`postgres_text`] shows recorded PostgreSQL to a person, [`terminal`] is
//! what keeps hostile text from steering that person's terminal. All of it is pure; the files belong to
//! [`crate::store::recordings`].

pub mod frame;
pub mod postgres_text;
pub mod terminal;
