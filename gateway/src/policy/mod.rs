//! What may be done, and what the agent gets to see of it: pure decisions, no clock, no disk.
//!
//! [`PolicySet::parse`] takes Cedar policies whole or not at all; [`evaluate`] decides one operation,
//! and [`PolicySet::decide`] remembers what it said.
//! A statement is several questions at once: each of its verbs on each of its tables, each function it
//! calls, each setting it touches. Every one of them must be permitted; the first that is not is the
//! denial. Masked columns used where no mask reaches are denied before any policy is asked.

mod denial;
mod evaluate;
pub mod masking;
mod remembered;
mod set;

pub use denial::Denial;
pub use evaluate::{Login, Operation, Principal, Process, Verdict, evaluate};
pub use set::{PolicyError, PolicySet};
