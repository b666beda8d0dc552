//! Every client works as if the gateway were not there: each is run twice with the same words, directly and as an
//! agent through a gateway that allows everything and masks nothing, and what the two runs saw is compared, test by
//! test.
//!
//! The ordinary run has the drivers' matrices, psql and pgbench. `cargo xtask test clients` adds the clients' own
//! suites, PostgreSQL 18 and a large dump, fetches what those need, and prints the table. Without it they are listed
//! as ignored, and fail when they are run all the same.

mod crates;
mod drivers;
mod dump;
mod postgres18;
mod programs;
mod sheet;
mod start_up;
mod suites;
mod way;
