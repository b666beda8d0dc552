//! What is written as evidence, and how a later reader can tell that it was not changed.
//!
//! [`event`] names what can happen, [`chain`] ties the lines of the log together by hash, [`ledger`]
//! folds events back into sessions, [`oneline`] shows an event to a person. All of it is pure; the file
//! itself belongs to [`crate::store::log`].

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

pub mod chain;
pub mod event;
pub mod ledger;
pub mod oneline;
