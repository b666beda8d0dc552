//! What may be done, and what the agent gets to see of it: pure decisions, no clock, no disk.
pub mod masking;
