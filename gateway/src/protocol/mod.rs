//! Bytes to messages and back, without I/O.
//!
//! Everything here is fed by a peer that may be hostile: every length is checked against a cap before
//! it is believed, every read goes through [`cursor::Cursor`], trailing bytes are an error, and nothing
//! panics. A decoder answers `Ok(None)` when it needs more bytes.

#![cfg_attr(
    not(test),
    deny(
        clippy::as_conversions,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod cursor;
pub mod postgres;
