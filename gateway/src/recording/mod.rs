//! A session's bytes, both directions, as the agent and the target saw them.
//!
//! [`frame`] is the file format, [`postgres_text`] shows recorded PostgreSQL to a person, [`terminal`] is
//! what keeps hostile text from steering that person's terminal. All of it is pure; the files belong to
//! [`crate::store::recordings`].

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

pub mod frame;
pub mod postgres_text;
pub mod terminal;
