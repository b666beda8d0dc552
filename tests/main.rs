//! The integration tests: one binary, one file per thing that is shown.
//!
//! Everything is real: the kernel programs, PostgreSQL, psql, pgbench, the Python drivers, the tokens.
//! `cargo xtask test` installs what they need and runs them as root.

mod harness;

mod agent_tls;
mod broker;
mod bypass;
mod cancel;
mod client_matrix;
mod copy;
mod denials;
mod deny_table;
mod dns;
mod evidence;
mod gateway_killed;
mod handover;
mod held_back;
mod hostile_bytes;
mod hostile_pipelines;
mod intercept;
mod interception;
mod isolate;
mod masks;
mod masks_and_schema;
mod parameters;
mod pg_suites;
mod prepared;
mod privileges;
mod regressions;
mod replication;
mod secrets;
mod split;
mod status;
mod streaming;
mod tokens;
mod unmodified_clients;
mod upstream;
