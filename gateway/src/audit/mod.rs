//! What is written as evidence, and how a later reader can tell that it was not changed.
//!
//! [`event`] names what can happen, [`chain`] ties the lines of the log together by hash, [`ledger`]
//! folds events back into sessions, [`oneline`] shows an event to a person. All of it is pure; the file
//! itself belongs to [`crate::store::log`].

pub mod chain;
pub mod event;
pub mod ledger;
pub mod oneline;
