//! The integration tests: one binary, one file per thing that is shown.
//!
//! Everything is real: the kernel programs, PostgreSQL, psql, pgbench, the Python drivers, the tokens.
//! `cargo xtask test` installs what they need and runs them as root.

mod harness;

mod denials;
mod gateway_killed;
mod tokens;
mod unmodified_clients;
mod upstream;
#[test]
fn zz_dev_server() {
    let s = harness::Postgres::asking_for(harness::Authentication::Trust);
    std::fs::write("/tmp/zz-port", s.port().to_string()).unwrap();
    while std::path::Path::new("/tmp/zz-port").exists() { std::thread::sleep(std::time::Duration::from_millis(200)); }
}
