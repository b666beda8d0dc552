//! SIGHUP: a successor takes over, without a connect that is refused or lost.
//!
//! The gateway starts its own program again, which reads configuration and policies anew: a reload and an
//! upgrade are the same thing. Both processes hold one end of a socket ([`channel`]); the listeners travel
//! over it, so their backlogs stay, and connects wait there for the moment in which nobody accepts.
//!
//! ```text
//! gateway                                             successor
//! share the log, start it          ── maps ─────────► everything that can fail: configuration, policies,
//! serves on                                           credentials, log, a first look at guard and disk
//!                                  ◄───────── ready ──
//! stops accepting                  ── listeners, go ►
//!                                  ◄─────── serving ── accepts, beats
//! drains without limit, and        ◄──────── cancel ── a cancel request for a session that is still there
//! answers its cancel requests      ── cancelled ────►
//! ends                                                only writer of the log again
//! ```
//!
//! If the successor fails, ends, or takes too long anywhere before *serving*, it is ended, and the gateway
//! goes on as if nothing had been.

mod channel;
mod message;
mod predecessor;
mod successor;

pub use message::ToPredecessor;
pub use predecessor::{Gone, Herald, Predecessor};

use predecessor::TAKE_OVER;
pub use successor::{Estate, Program, Successor};

/// Why there was no hand-over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("{doing}: {cause}")]
    Io {
        doing: &'static str,
        cause: std::io::Error,
    },
    #[error("the successor ended before it was ready; its own last words are above")]
    Ended,
    #[error("the successor refused: {0}")]
    Refused(String),
    #[error("the successor was not {what} within {seconds} s")]
    Late { what: &'static str, seconds: u64 },
    #[error("the other side said what makes no sense here: {0}")]
    Garbled(String),
    #[error("the predecessor ended before it handed over")]
    NoPredecessor,
    #[error(transparent)]
    Log(#[from] crate::store::log::LogError),
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> HandoverError {
    move |cause| HandoverError::Io { doing, cause }
}
