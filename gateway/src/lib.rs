//! Sluice: a transparent interception gateway.
//!
//! An agent's connection is redirected here by the kernel programs, identified, decided statement by
//! statement, masked, recorded, and forwarded. [`session`] is that pipeline; every other module is one
//! thing the pipeline uses. `docs/architecture.md` has the map and the invariants.

// Only `intercept` talks to the kernel below the standard library; it lifts this for itself.
#![deny(unsafe_code)]

pub mod app;
pub mod audit;
pub mod broker;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod identity;
pub mod intercept;
pub mod policy;
pub mod privileges;
pub mod protocol;
pub mod recording;
pub mod session;
pub mod sql;
pub mod store;
pub mod telemetry;
